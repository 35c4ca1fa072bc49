"""What a node makes of its local training: the update, clipped, and encoded as `core/encodings.py` says.

Everything is done parameter by parameter, so the graph needs memory for the largest parameter beside what
it is given and what it returns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from onnx import TensorProto

from edge_attention.core.encodings import LEVELS, Int8, Plain, TopK, UpdateEncoding
from edge_attention.core.errors import InvalidArgument
from edge_attention.graphs.models.parts import serialize
from edge_attention.graphs.onnx_builder import FLOAT, INT64, Builder

__all__ = ["WEIGHT", "difference_graph", "update_graph"]

WEIGHT = "weight"
"""What a node returns of its batches: what each counted, in rows, the mean over its steps."""

Shape = tuple[int, ...]
Source = Literal["difference", "gradient"]
_INT8, _INT32 = TensorProto.INT8, TensorProto.INT32
_TYPES = {np.dtype(np.float32): FLOAT, np.dtype(np.int8): _INT8, np.dtype(np.int32): _INT32}


def update_graph(
    shapes: Sequence[Shape],
    *,
    source: Source,
    clip: bool,
    encoding: UpdateEncoding,
    weighted: bool = False,
) -> bytes:
    """The graph of a node's update.

    Inputs, float32 of `shapes[i]`: of source "difference" `anchor/<i>` (what the node received) and `x/<i>`
    (what local steps made of it), and the update is their difference; of source "gradient" `grad/<i>`, which
    is the update. `loss_sum` [] and `steps` []. With `clip` `max_norm` []: an update that is longer, over all
    parameters, is scaled down to that length. If the encoding has feedback, `residual/<i>`: what earlier
    updates lost is added after clipping.

    With `weighted` also `loss/weight_sum` [], what the batches counted, in rows, by which `loss_sum` of
    source "difference" was weighted.

    Outputs `loss` [] (`loss_sum / steps`; of weighted steps `loss_sum` by what they counted, 0 where nothing
    did), with `weighted` WEIGHT [] (`loss/weight_sum / steps`), `norm` [] (length of the update before
    clipping), the encoding's `parts`, and with feedback `next/residual/<i>` (what this update lost; it stays
    on the node).

    Raises:
        InvalidArgument: an encoding that has no graph.
    """
    b = Builder("update")
    difference = source == "difference"
    sources = [
        [b.input(f"{name}/{i}", FLOAT, shape) for name in (("anchor", "x") if difference else ("grad",))]
        for i, shape in enumerate(shapes)
    ]
    updates = [b("Sub", *names) if difference else names[0] for names in sources]
    # ONNX Runtime measures all parameters first and would keep the updates of all for their encoding. The
    # reverse difference is as long, and freed at once.
    measured = [b("Sub", x, anchor) for anchor, x in sources] if difference else updates
    squares = [
        b("ReduceSumSquare", u, keepdims=0) for u, s in zip(measured, shapes, strict=True) if 0 not in s
    ]
    norm = b("Sqrt", b("Sum", b.const(np.float32(0)), *squares))
    scale = ""
    if clip:
        # Of length 0 the quotient is infinite, and 1 is less.
        scale = b("Min", b.const(np.float32(1)), b("Div", b.input("max_norm", FLOAT, []), norm))
    for i, (u, shape) in enumerate(zip(updates, shapes, strict=True)):
        if clip:
            u = b("Mul", u, scale)
        if encoding.feedback:
            u = b("Add", u, b.input(f"residual/{i}", FLOAT, shape))
        encoded = _encode(b, encoding, u, shape)
        specs = encoding.specs(i, shape)
        for (name, (dtype, dims)), value in zip(specs.items(), encoded, strict=True):
            b.output(name, value, _TYPES[dtype], dims)
        if encoding.feedback:
            lost = b("Sub", u, _decode(b, encoding, encoded, shape, b("Sub", u, u)))
            b.output(f"next/residual/{i}", lost, FLOAT, shape)
    total, steps = b.input("loss_sum", FLOAT, []), b.input("steps", FLOAT, [])
    divisor = steps
    if weighted:
        counted = b.input("loss/weight_sum", FLOAT, [])
        if difference:
            some = b("Greater", counted, b.const(np.float32(0)))
            divisor = b("Where", some, counted, b.const(np.float32(1)))
        b.output(WEIGHT, b("Div", counted, steps), FLOAT, [])
    b.output("loss", b("Div", total, divisor), FLOAT, [])
    b.output("norm", norm, FLOAT, [])
    return serialize(b.model())


def difference_graph(shapes: Sequence[Shape], encoding: UpdateEncoding) -> bytes:
    """The graph that brings a node's parameters to the next version.

    Inputs `p/<i>`, float32 of `shapes[i]`, and `difference/<i>` with the encoding's suffixes (as `specs(i,
    shape, "difference")` has them): the new parameter less the old. Outputs `next/p/<i>`: to the bit
    `p + encoding.decode(...)` in NumPy, so node and server never drift apart.
    """
    b = Builder("difference")
    for i, shape in enumerate(shapes):
        p = b.input(f"p/{i}", FLOAT, shape)
        specs = encoding.specs(i, shape, "difference").items()
        parts = [b.input(name, _TYPES[dtype], dims) for name, (dtype, dims) in specs]
        decoded = _decode(b, encoding, parts, shape, b("Sub", p, p))
        b.output(f"next/p/{i}", b("Add", p, decoded), FLOAT, shape)
    return serialize(b.model())


def _encode(b: Builder, encoding: UpdateEncoding, value: str, shape: Shape) -> list[str]:
    """The tensors that stand for `value`, in the order of the encoding's suffixes."""
    size = math.prod(shape)
    if isinstance(encoding, Plain):
        return [value]
    if size == 0:
        return [b.const(np.zeros(dims, dtype)) for dtype, dims in encoding.specs(0, shape).values()]
    flat = b("Reshape", value, b.ints(-1))
    if isinstance(encoding, Int8):
        blocks = encoding.blocks(size)
        if padding := blocks * encoding.block - size:
            flat = b("Pad", flat, b.ints(0, padding))
        rows = b("Reshape", flat, b.ints(blocks, encoding.block))
        largest = b("ReduceMax", b("Abs", rows), b.ints(1), keepdims=1)
        scale = b("Div", largest, b.const(np.float32(LEVELS)))
        # A block of zeros, or of numbers so small that the scale is zero, is divided by 1.
        one, zero = b.const(np.float32(1)), b.const(np.float32(0))
        divisor = b("Where", b("Greater", scale, zero), scale, one)
        limit = [b.const(np.float32(side)) for side in (-LEVELS, LEVELS)]
        q = b("Cast", b("Clip", b("Round", b("Div", rows, divisor)), *limit), to=_INT8)
        return [b("Reshape", q, b.ints(-1)), b("Reshape", scale, b.ints(-1))]
    if isinstance(encoding, TopK):
        k = b.ints(encoding.kept(size))
        largest = b.nodes("TopK", 2, b("Abs", flat), k, axis=0, sorted=0)[1]
        # In increasing order, so that whoever reads a range finds it by bisection.
        indices = b.nodes("TopK", 2, largest, k, axis=0, largest=0, sorted=1)[0]
        return [b("Cast", indices, to=_INT32), b("Gather", flat, indices, axis=0)]
    raise InvalidArgument(f"encoding {encoding.name} has no graph; choose another")


def _decode(b: Builder, encoding: UpdateEncoding, parts: Sequence[str], shape: Shape, zeros: str) -> str:
    """The tensor that `parts` stand for; `zeros` is one of its shape."""
    size = math.prod(shape)
    if isinstance(encoding, Plain):
        return parts[0]
    if size == 0:
        return zeros
    if isinstance(encoding, Int8):
        q, scale = parts
        blocks = encoding.blocks(size)
        rows = b("Reshape", b("Cast", q, to=FLOAT), b.ints(blocks, encoding.block))
        decoded = b("Mul", rows, b("Reshape", scale, b.ints(blocks, 1)))
        flat = b("Reshape", decoded, b.ints(-1))
        if blocks * encoding.block != size:
            flat = b("Slice", flat, b.ints(0), b.ints(size))
        return b("Reshape", flat, b.ints(*shape))
    if isinstance(encoding, TopK):
        indices, values = parts
        flat = b(
            "ScatterElements", b("Reshape", zeros, b.ints(-1)), b("Cast", indices, to=INT64), values, axis=0
        )
        return b("Reshape", flat, b.ints(*shape))
    raise InvalidArgument(f"encoding {encoding.name} has no graph; choose another")
