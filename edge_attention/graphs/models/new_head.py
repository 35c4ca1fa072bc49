"""A new head on what a file computes: a linear layer, or two, on a pooled value of it.

    head = NewHead("last_hidden_state", outputs=3)      # pooled over tokens, then [B, D] @ [D, 3] + [3]

So an encoder that somebody else has trained gets one's own classes, without the framework it came from.
The parameters are `head.weight` [D, outputs] and `head.bias`, with a hidden layer `head.hidden.weight` and
`head.hidden.bias` before them; what comes out is called `logits`, whatever the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import NewHead
from edge_attention.graphs.models.value_specs import value_spec
from edge_attention.graphs.onnx_file import ints, opset_of, rename_values, values_of
from edge_attention.graphs.reading.bounds import MAX_BYTES

__all__ = ["LOGITS", "POOLS", "add_head", "values_for"]

LOGITS = "logits"
"""The output that a new head has."""
POOLS = ("mean", "max", "first", "last", "flatten", "none")
"""How a value of several vectors a row becomes one: over tokens [B, T, D], or places [B, D, ...]."""
_MASK = "attention_mask"
"""The input that says which tokens count, where the job names none and the file has it."""
_LOW = -1e9  # below any feature


def add_head(
    model: ModelProto, head: NewHead, seed: int, place: str, others: Sequence[str] = ()
) -> tuple[list[str], str]:
    """Append the head, in place, to a model of opset 13 or later, whose only output is `logits` then.

    Initial weights are drawn as PyTorch's `Linear` draws its own; the same `seed` gives the same. `others`:
    outputs that the file had besides. Returns its parameters' names, and for a person what it is on.

    Raises InvalidGraph for a value that is not there or has no form that can be pooled.
    """
    graph = model.graph
    dtype, shape = value_spec(model, head.of, place, others)
    if dtype != np.dtype(np.float32) or len(shape) < 2 or shape[0] is not None or not all(shape[1:]):
        raise InvalidGraph(
            f"{place}: '{head.of}' is {dtype} {_show(shape)}; a head goes on float32 values whose first "
            "dimension is the batch and whose others are fixed"
        )
    if LOGITS in values_of(graph):
        rename_values(graph, {LOGITS: f"model/{LOGITS}"})
        head = replace(head, of=f"model/{LOGITS}" if head.of == LOGITS else head.of)
    writer = _HeadWriter(model)
    pooled, width, said = _pool(writer, head, [size or 0 for size in shape[1:]], place)
    _check_size(head, width, place)
    rng = np.random.default_rng(seed)
    if head.hidden:
        pooled = writer("Relu", _linear(writer, pooled, width, head.hidden, "head.hidden", rng))
        width = head.hidden
    last = _linear(writer, pooled, width, head.outputs, "head", rng)
    graph.node.append(helper.make_node("Identity", [last], [LOGITS], name="head/logits"))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [None, head.outputs]))
    return writer.parameters, said


def _check_size(head: NewHead, width: int, place: str) -> None:
    if head.outputs < 1 or head.hidden < 0:
        raise InvalidGraph(
            f"{place}: a head of {head.outputs} outputs and {head.hidden} hidden ones; give 1 output or "
            "more, and 0 hidden ones or more"
        )
    layers = [width, *([head.hidden] if head.hidden else []), head.outputs]
    numbers = sum(a * b for a, b in pairwise(layers))
    if numbers > MAX_BYTES // 4:
        raise InvalidGraph(
            f"{place}: the head on the {width:,} numbers of '{head.of}' would have {numbers:,} parameters, "
            f"more than the {MAX_BYTES // 4:,} that a file holds (MAX_BYTES); pool it, or make it smaller"
        )


def values_for(head: NewHead, outputs: Sequence[str]) -> list[str]:
    """What of a file with these outputs the head needs; inputs that the file may not have among it."""
    mask = head.mask or ("" if head.pool in ("first", "flatten", "none") else _MASK)
    return [head.of or outputs[0], *([mask] if mask else [])]


def _pool(g: _HeadWriter, head: NewHead, inner: list[int], place: str) -> tuple[str, int, str]:
    """The pooled value [B, D], D, and how it was pooled."""
    rank, pool = len(inner), head.pool or ("mean" if len(inner) > 1 else "none")
    if pool not in POOLS:
        raise InvalidGraph(f"{place}: no way to pool called '{pool}'; there are {', '.join(POOLS)}")
    of = f"'{head.of}' {_show((None, *inner))}"
    if pool == "flatten" or (pool == "none" and rank == 1):
        width = math.prod(inner)
        return (g("Flatten", head.of, axis=1) if rank > 1 else head.of), width, of
    if pool == "none" or rank == 1:
        raise InvalidGraph(
            f"{place}: {of} has {'several vectors' if rank > 1 else 'one vector'} a row, which pool = "
            f"'{pool}' does not fit; use {'mean' if rank > 1 else 'none'}"
        )
    if rank == 2:
        mask = _mask(g, head, inner[0], place)
        return (
            _tokens(g, head.of, pool, mask),
            inner[1],
            f"the {pool} of {of}" + (f" where {mask} is not 0" if mask else ""),
        )
    if pool not in ("mean", "max") or head.mask:
        raise InvalidGraph(
            f"{place}: {of} has channels and places; pool = 'mean', 'max' or 'flatten' fits it"
        )
    return (
        g.reduced(pool, head.of, *range(2, rank + 1)),
        inner[0],
        f"the {pool} of {of} over places",
    )


def _mask(g: _HeadWriter, head: NewHead, tokens: int, place: str) -> str:
    """The input that tells which tokens count; empty: all do."""
    inputs = {value.name: value.type.tensor_type for value in g.graph.input}
    name = head.mask or (_MASK if _MASK in inputs and head.pool != "first" else "")
    if not name:
        return ""
    if (
        name not in inputs
        or len(inputs[name].shape.dim) != 2
        or inputs[name].shape.dim[1].dim_value != tokens
    ):
        if head.mask:
            raise InvalidGraph(
                f"{place}: head.mask is '{name}', which is no input [batch, {tokens}] of what '{head.of}' "
                f"needs; its inputs are {list(inputs)}"
            )
        return ""
    return name


def _tokens(g: _HeadWriter, value: str, pool: str, mask: str) -> str:
    """[B, T, D] to [B, D]."""
    if pool == "first":
        return g("Gather", value, g.scalar(0), axis=1)
    if not mask:
        if pool == "last":
            return g("Gather", value, g.scalar(-1), axis=1)
        return g.reduced(pool, value, 1)
    counts = g("Cast", g("Cast", mask, to=TensorProto.BOOL), to=TensorProto.FLOAT)  # [B, T], 0 or 1
    column = g("Unsqueeze", counts, g.ints(2))
    if pool == "max":
        absent = g("Mul", g("Sub", column, g.number(1.0)), g.number(-_LOW))
        return g.reduced("max", g("Add", g("Mul", value, column), absent), 1)
    if pool == "last":  # the last token that counts
        places = g("CumSum", counts, g.scalar(1))
        last = g("Equal", places, g.reduced("max", places, 1, keepdims=1))
        column = g("Unsqueeze", g("Mul", g("Cast", last, to=TensorProto.FLOAT), counts), g.ints(2))
        return g("ReduceSum", g("Mul", value, column), g.ints(1), keepdims=0)
    summed = g("ReduceSum", g("Mul", value, column), g.ints(1), keepdims=0)
    several = g("Max", g("ReduceSum", counts, g.ints(1), keepdims=1), g.number(1.0))
    return g("Div", summed, several)


def _linear(g: _HeadWriter, value: str, width: int, outputs: int, name: str, rng: np.random.Generator) -> str:
    bound = 1 / math.sqrt(width)
    weight = g.parameter(f"{name}.weight", rng.uniform(-bound, bound, (width, outputs)))
    bias = g.parameter(f"{name}.bias", rng.uniform(-bound, bound, outputs))
    return g("Gemm", value, weight, bias)


class _HeadWriter:
    """Appends nodes under names of its own."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = graph = model.graph
        self._opset = opset_of(model)
        self._taken = values_of(graph)
        self.parameters: list[str] = []

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = self._fresh(kind.lower())
        self.graph.node.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def reduced(self, how: str, value: str, *axes: int, keepdims: int = 0) -> str:
        """The mean or max over axes, which are an attribute before opset 18."""
        kind = f"Reduce{how.capitalize()}"
        if self._opset >= 18:
            return self(kind, value, self.ints(*axes), keepdims=keepdims)
        return self(kind, value, axes=list(axes), keepdims=keepdims)

    def ints(self, *values: int) -> str:
        return self._constant(ints(self._fresh("sizes"), values))

    def scalar(self, value: int) -> str:
        return self._constant(numpy_helper.from_array(np.array(value, np.int64), self._fresh("axis")))

    def number(self, value: float) -> str:
        return self._constant(numpy_helper.from_array(np.array(value, np.float32), self._fresh("number")))

    def parameter(self, name: str, value: np.ndarray) -> str:
        while name in self._taken:  # the file has a head of its own, before the value
            name = f"new_{name}"
        self._taken.add(name)
        self.parameters.append(name)
        return self._constant(numpy_helper.from_array(value.astype(np.float32), name))

    def _constant(self, tensor: TensorProto) -> str:
        self.graph.initializer.append(tensor)
        return tensor.name

    def _fresh(self, kind: str) -> str:
        name = f"head/{kind}_{len(self._taken)}"
        while name in self._taken:
            name += "'"
        self._taken.add(name)
        return name


def _show(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("B" if dim is None else str(dim) for dim in shape) + "]"
