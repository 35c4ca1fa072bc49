"""`FleetAttention`: scaled dot-product attention whose keys and values are on the fleet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_attention.client.sync import Client, Context
from edge_attention.core.errors import (
    DeadlineExceeded,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    InvalidTensor,
    NotFound,
    Unavailable,
    Unimplemented,
)
from edge_attention.core.messages.attention import TOKEN_BYTES, WIDTH
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.tensors import Float32, Int64
from edge_attention.torch.held_keys import ContextsMade, KeysLease, array_of

__all__ = ["FleetAttention"]

_HEADS = 1024
"""Query heads of one context, at most."""


class FleetAttention(nn.Module):  # type: ignore[misc, unused-ignore]
    """`scaled_dot_product_attention(query, key, value)` with keys and values on the nodes of a fleet.

    Each forward with `key` and `value` spreads their tokens evenly over the nodes; queries travel down,
    partial results up, and what comes back is exact or an error. Differentiable by query, key and value: the
    way back is computed where the keys and values are. They are forgotten there when the graph of the forward
    is gone, at the next call or at `close()`.

    With a `context` (`client.context("memory")`) it attends to what is stored there instead, and takes
    `query` alone: a memory that many boxes hold together. Then gradients are of the queries.

    It has no parameters. It belongs to the process and client that it was made with.

    Args:
        client: of the fleet.
        context: a context, or its name; None: keys and values come with each call.
        nodes: where tokens go; by default all that are there.
        is_causal, window, scale: what they are where a call does not say.
        replicas: nodes that hold each token.
        deadline: seconds of a forward, and of a backward.
    """

    def __init__(
        self,
        client: Client,
        context: Context | str | None = None,
        *,
        nodes: Sequence[str] = (),
        is_causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
        replicas: int = 1,
        deadline: float = 60.0,
    ) -> None:
        super().__init__()
        if not isinstance(client, Client):
            raise InvalidArgument(f"client is {type(client).__name__}; give an edge_attention.Client")
        self.client = client
        self.context = client.context(context) if isinstance(context, str) else context
        self.nodes = tuple(nodes)
        self.is_causal = is_causal
        self.window = window
        self.scale = scale
        self.replicas = replicas
        self.deadline = deadline
        self._made = ContextsMade(client)

    def extra_repr(self) -> str:
        where = "keys and values of each call" if self.context is None else f"context {self.context.name!r}"
        return f"{where}, is_causal={self.is_causal}, window={self.window}, scale={self.scale}"

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool | None = None,
        scale: float | None = None,
        enable_gqa: bool = False,
        *,
        window: int | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Attention as `torch.nn.functional.scaled_dot_product_attention` has it.

        Args:
            query: [..., query_heads, L, E].
            key, value: [..., key_heads, S, E] and [..., key_heads, S, Ev]; none with a context.
            is_causal: query i sees keys 0 to i; over a context, up to its own position.
            window: a query sees only so many last keys up to and with its own (PyTorch has no such argument).
            positions: int64 [L], the key that each query sits on, for is_causal and window; by default 0 to
                L - 1 as in PyTorch, over a context its last L.
            enable_gqa: heads of query may be a multiple of those of key, as in PyTorch.

        Returns [..., query_heads, L, Ev] in query's dtype and on its device; 0 for a query that sees no key.

        Raises:
            Unimplemented: `attn_mask`, or dropout.
            Unavailable, DeadlineExceeded: a node that holds keys did not answer in time.
        """
        answered = self._answered
        if torch.compiler.is_compiling():  # what it does is calls: the graph is broken here
            answered = torch._dynamo.disable(answered)
        return answered(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window, positions
        )

    def _answered(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        attn_mask: Any,
        dropout_p: float,
        is_causal: bool | None,
        scale: float | None,
        enable_gqa: bool,
        window: int | None,
        positions: Tensor | None,
    ) -> Tensor:
        given = {"query": query, "key": key, "value": value}
        if any(map(_in_transform, given.values())):
            raise Unimplemented(
                "FleetAttention inside of torch.func (vmap, grad, jacrev): what it is given travels to other "
                "boxes as numbers, and there are none in such a transform; give samples as dimensions in "
                "front of the heads, [samples, heads, L, E], in one call, and take gradients by backward()"
            )
        for name, tensor in given.items():
            if tensor is None and name != "query":
                continue
            if isinstance(tensor, np.ndarray):
                raise InvalidTensor(
                    f"{name} is an array of NumPy; give a tensor, as torch.from_numpy({name})"
                )
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise InvalidTensor(f"{name} is {kind}; give a tensor of floating-point numbers")
        if attn_mask is not None:
            raise Unimplemented(
                "attn_mask is an array, and the keys that it masks lie on other boxes: which keys a query "
                "sees is a range here: is_causal, window and positions; leave keys that nobody is to see out "
                "of key and value"
            )
        if dropout_p and self.training:
            raise Unimplemented(
                f"dropout_p is {dropout_p:g}: attention weights stay on the boxes that computed them, exact; "
                "leave it at 0, and drop elements of what comes back"
            )
        causal = self.is_causal if is_causal is None else is_causal
        seen = _QueryView(
            bool(causal),
            self.window if window is None else window,
            self.scale if scale is None else scale,
            self.deadline,
        )
        if self.context is not None:
            if key is not None or value is not None:
                raise InvalidArgument("this FleetAttention attends to a context: give query alone")
            return self._remembered(self.context, query, seen, positions)
        if key is None or value is None:
            raise InvalidArgument("key and value are missing; give them, or make it with a context")
        if query.dim() == key.dim() == value.dim() == 2:  # one head, without a dimension of its own
            query, key, value = (tensor.unsqueeze(0) for tensor in (query, key, value))
            return self._spread(query, key, value, seen, positions, enable_gqa).squeeze(0)
        return self._spread(*_same_lead(query, key, value), seen, positions, enable_gqa)

    def __deepcopy__(self, memo: dict[int, Any]) -> FleetAttention:
        """Another of the same client, as of a model whose layers are copies or are averaged."""
        copy = FleetAttention(
            self.client,
            self.context,
            nodes=self.nodes,
            is_causal=self.is_causal,
            window=self.window,
            scale=self.scale,
            replicas=self.replicas,
            deadline=self.deadline,
        )
        memo[id(self)] = copy
        copy.train(self.training)
        return copy

    def close(self) -> None:
        """Forget keys and values on the fleet; a backward that is still to come fails then."""
        self._made.forget(all_of_them=True)

    def _spread(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        seen: _QueryView,
        positions: Tensor | None,
        grouped: bool,
    ) -> Tensor:
        lead = query.shape[:-3]
        for name, tensor in (("key", key), ("value", value)):
            if tensor.dim() < 3 or tensor.shape[:-3] != lead:
                raise InvalidTensor(
                    f"{name} has shape {list(tensor.shape)} and query {list(query.shape)}; both are [..., "
                    "heads, tokens, dim] with the same dimensions in front"
                )
        heads, length, dim = query.shape[-3:]
        key_heads, tokens = key.shape[-3:-1]
        if not all((heads, dim, key_heads, tokens, value.shape[-1])):
            raise InvalidTensor(
                f"query {list(query.shape)}, key {list(key.shape)} and value {list(value.shape)} have one "
                "head, key and element at least"
            )
        if key.shape[-1] != dim or value.shape[-3:-1] != key.shape[-3:-1]:
            raise InvalidTensor(
                f"query {list(query.shape)}, key {list(key.shape)} and value {list(value.shape)} do not fit: "
                "key has query's last dimension, value key's heads and tokens"
            )
        if heads != key_heads and not (grouped and heads % key_heads == 0):
            raise InvalidTensor(
                f"query has {heads} heads and key {key_heads}; with enable_gqa=True query's may be a multiple"
            )
        width = value.shape[-1]
        batch = math.prod(lead)
        if not batch or not length:
            return query.new_zeros(*lead, heads, length, width)
        # The heads of several samples are heads of one context, as far as one has room for them.
        fit = min(
            _HEADS // heads,
            WIDTH // (heads * max(dim, width)),
            TOKEN_BYTES // (4 * key_heads * (dim + width)),
        )
        if not fit:
            raise InvalidTensor(
                f"{heads} heads of {max(dim, width)} are more than a context has; split them over calls"
            )
        at = torch.arange(length) if positions is None else positions
        where = seen.masked and _positions(at, length)
        out = []
        for begin in range(0, batch, fit):
            parts = [
                tensor.reshape(batch, *tensor.shape[-3:])[begin : begin + fit].flatten(0, 1)
                for tensor in (query, key, value)
            ]
            needs = torch.is_grad_enabled() and (parts[1].requires_grad or parts[2].requires_grad)
            needs = needs or (torch.is_grad_enabled() and parts[0].requires_grad)
            lease = self._made.store(parts[1], parts[2], len(parts[0]), self._nodes(), self.replicas)
            found = _Attend.apply(parts[0], parts[1], parts[2], lease, seen, where)
            if not needs:
                lease.end()
            out.append(found.reshape(-1, heads, length, width))
        with suppress(EdgeAttentionError):  # what is there all the same is dropped at the next call
            self._made.forget()
        return torch.cat(out).reshape(*lead, heads, length, width)

    def _remembered(
        self, context: Context, query: Tensor, seen: _QueryView, positions: Tensor | None
    ) -> Tensor:
        spec = context.spec
        if query.dim() < 3 or query.shape[-3] != spec.query_heads or query.shape[-1] != spec.key_dim:
            raise InvalidTensor(
                f"query has shape {list(query.shape)}; context {spec.name!r} takes [..., "
                f"{spec.query_heads}, L, {spec.key_dim}]"
            )
        lead, length = query.shape[:-3], query.shape[-2]
        where: Int64 | bool = False
        if seen.masked:
            last = context.describe().tokens
            at = torch.arange(last - length, last) if positions is None else positions
            where = np.tile(_positions(at, length), math.prod(lead))
        # The queries of all samples are queries of one attend: [heads, samples x L, E].
        rows = query.reshape(-1, *query.shape[-3:]).transpose(0, 1).flatten(1, 2)
        none = query.new_zeros(0)
        found = _Attend.apply(rows, none, none, KeysLease(context), seen, where)
        split = found.reshape(spec.query_heads, -1, length, spec.value_dim).transpose(0, 1)
        return split.reshape(*lead, spec.query_heads, length, spec.value_dim)

    def _nodes(self) -> tuple[str, ...]:
        names = self.nodes or tuple(n.name for n in self.client.nodes() if n.state is NodeState.READY)
        if not names:
            raise Unavailable(
                "no node is there to hold keys and values; start one: edge-node --aggregator ..."
            )
        return names


@dataclass(frozen=True)
class _QueryView:
    """What a query sees, and how it is scored; `deadline`: seconds."""

    causal: bool
    window: int | None
    scale: float | None
    deadline: float

    @property
    def masked(self) -> bool:
        return self.causal or self.window is not None


class _Attend(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
    """query [heads, L, E], key and value [key heads, S, ...] or empty: [heads, L, Ev]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, lease: KeysLease, seen: _QueryView, where: Any
    ) -> Tensor:
        queries = array_of(query.transpose(0, 1))
        answer = lease.context.attend(
            queries,
            causal=seen.causal,
            window=seen.window,
            scale=seen.scale,
            positions=where if seen.masked else None,
            deadline=seen.deadline,
        )
        if not answer.exact:
            lacking = "; ".join(sorted({gap.reason for gap in answer.missing}))
            raise DeadlineExceeded(
                f"FleetAttention: {len(answer.missing)} parts of the keys did not answer in "
                f"{seen.deadline:g} s ({lacking}); give it a longer deadline, or replicas"
            )
        # A memory may have grown since: what the answer stands on is what its gradients are of.
        stands = max((part.stop for part in answer.coverage), default=answer.tokens)
        ctx.until = answer.tokens if key.numel() else stands
        # Of keys of its own all have a gradient: 0 where no query sees them.
        ctx.coverage = () if key.numel() else answer.coverage
        ctx.lease, ctx.seen, ctx.where = lease, seen, where
        ctx.save_for_backward(query, torch.tensor(answer.out), torch.tensor(answer.lse))
        ctx.kinds = [(tensor.dtype, tensor.device) for tensor in (key, value)]
        return _tensor(answer.out, query.dtype, query.device)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: what comes back would be a constant without a word
            raise Unimplemented(
                "FleetAttention has no gradients of gradients: its way back is computed on other boxes; "
                "leave create_graph out, or use scaled_dot_product_attention for this part"
            )
        query, out, lse = ctx.saved_tensors
        seen, tokens = ctx.seen, ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        try:
            found = ctx.lease.context.gradients(
                array_of(query.transpose(0, 1)),
                out.numpy(),
                lse.numpy(),
                array_of(dout.transpose(0, 1)),
                causal=seen.causal,
                window=seen.window,
                scale=seen.scale,
                positions=ctx.where if seen.masked else None,
                deadline=seen.deadline,
                until=ctx.until,
                tokens=tokens,
                coverage=ctx.coverage,
            )
        except NotFound as error:
            raise FailedPrecondition(
                "FleetAttention: the keys and values of this forward are not on the fleet any more "
                f"({error.message})"
            ) from error
        except EdgeAttentionError as error:
            raise type(error)(f"FleetAttention, on the way back: {error.message}") from error
        grads: list[Tensor | None] = [_tensor(found.queries, query.dtype, query.device)]
        for wanted, array, (dtype, device) in zip(
            ctx.needs_input_grad[1:3], (found.keys, found.values), ctx.kinds, strict=True
        ):
            grads.append(None if array is None or not wanted else _tensor(array, dtype, device))
        return (*grads, None, None, None)


def _in_transform(tensor: Any) -> bool:
    """Whether it stands for others in a transform of torch.func."""
    return isinstance(tensor, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _same_lead(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same with one set of dimensions in front of heads and tokens, as PyTorch broadcasts them."""
    parts = (query, key, value)
    try:
        lead = torch.broadcast_shapes(*(tensor.shape[:-3] for tensor in parts))
    except RuntimeError:
        return parts  # which is refused with the shapes
    if any(tensor.dim() < 3 for tensor in parts):
        return parts
    return tuple(tensor.expand(*lead, *tensor.shape[-3:]) for tensor in parts)


def _positions(positions: Tensor, length: int) -> Int64:
    if not isinstance(positions, Tensor) or positions.is_floating_point() or positions.is_complex():
        kind = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
        raise InvalidTensor(f"positions is {kind}; give a tensor of whole numbers, one a query")
    at = np.asarray(positions.detach().cpu().numpy(), np.int64)
    if at.shape != (length,):
        raise InvalidTensor(f"positions has shape {list(at.shape)}; it must be [{length}], one a query")
    return at


def _tensor(array: Float32, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[tokens, heads, dim] to [heads, tokens, dim]."""
    return torch.from_numpy(np.array(array)).to(device, dtype).transpose(0, 1)
