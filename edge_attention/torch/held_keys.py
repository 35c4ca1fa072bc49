"""Keys and values of a forward that are on the fleet, until autograd has no more use for them."""

from __future__ import annotations

import secrets
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from edge_attention.client.sync import Client, Context
from edge_attention.core.errors import NotFound
from edge_attention.core.tensors import Float32

__all__ = ["ContextsMade", "KeysLease", "array_of"]


class KeysLease:
    """A context that a forward reads, and its backward. `end` is called when neither will any more."""

    def __init__(self, context: Context, made: ContextsMade | None = None) -> None:
        self.context = context
        if made is not None:
            self._ended = weakref.finalize(self, made.ended.append, context.name)

    def end(self) -> None:
        self._ended()


class ContextsMade:
    """The contexts of a module's forwards that are on the fleet.

    Where a graph of autograd is collected no call may be made, on whichever thread it is: names are kept, and
    dropped at the next call.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._there: dict[str, Context] = {}
        self._lock = threading.Lock()
        self.ended: list[str] = []

    def store(
        self, key: Tensor, value: Tensor, query_heads: int, nodes: Sequence[str], replicas: int
    ) -> KeysLease:
        """Keys and values [heads, tokens, dim] as a context of an even share a node."""
        name = f"torch-{secrets.token_hex(8)}"
        context = self._client.create_context(
            name,
            query_heads=query_heads,
            key_heads=key.shape[0],
            key_dim=key.shape[-1],
            value_dim=value.shape[-1],
            replicas=replicas,
        )
        with self._lock:
            self._there[name] = context
        lease = KeysLease(context, self)
        keys, values = (array_of(tensor.transpose(0, 1)) for tensor in (key, value))
        bounds = [len(keys) * share // len(nodes) for share in range(len(nodes) + 1)]
        for node, start, stop in zip(nodes, bounds, bounds[1:], strict=False):
            if stop > start:
                pinned = node if replicas == 1 else None
                context.append(keys[start:stop], values[start:stop], node=pinned)
        return lease

    def forget(self, all_of_them: bool = False) -> None:
        """Drop the contexts that nothing needs any more; or all. Where one cannot be dropped, the next call
        tries again."""
        with self._lock:
            names = list(self._there) if all_of_them else [self.ended.pop() for _ in range(len(self.ended))]
            contexts = [found for name in names if (found := self._there.pop(name, None)) is not None]
        try:
            while contexts:
                with suppress(NotFound):
                    contexts[-1].drop()
                contexts.pop()
        finally:
            with self._lock:
                self._there |= {context.name: context for context in contexts}
            self.ended += [context.name for context in contexts]


def array_of(tensor: Tensor) -> Float32:
    """Its elements, in float32 on the CPU, one after the other."""
    return np.ascontiguousarray(tensor.detach().to("cpu", torch.float32).numpy())
