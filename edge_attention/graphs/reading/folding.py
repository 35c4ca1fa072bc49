"""What a graph's constants would become when it is loaded: ONNX Runtime computes what depends on no input.

A file of a hundred bytes can so ask for gigabytes. What each node would make of constants is followed by
shape, and of small ones by value, as far as a line an operator tells; what is not told counts nothing:
whoever loads foreign graphs has a limit of memory besides. What only changes form (a weight transposed, or
cast) is not counted.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.reading.bounds import MAX_FOLDED
from edge_attention.graphs.reading.tensors import BITS

__all__ = ["check_folding"]

_FOLLOWED = 64  # elements of the largest constant whose value is followed: sizes, axes, scales
_GROWS = 4  # times as large as what it is made of, or as the file: counted from there on

_TYPES = {
    1: "<f4",
    2: "u1",
    3: "i1",
    4: "<u2",
    5: "<i2",
    6: "<i4",
    7: "<i8",
    9: "?",
    11: "<f8",
    12: "<u4",
    13: "<u8",
}
_FIELDS = {1: "float_data", 7: "int64_data", 11: "double_data", 12: "uint64_data", 13: "uint64_data"}


@dataclass(frozen=True)
class _Constant:
    """`dims` and `value` are None where they are not known."""

    dims: tuple[int, ...] | None
    bits: int
    value: NDArray[Any] | None = None

    @property
    def bytes(self) -> int:
        return prod(self.dims) * self.bits // 8 if self.dims is not None else 0


_Scope = MutableMapping[str, _Constant]


def check_folding(graph: Any, functions: Sequence[Any], size: int, where: str) -> None:
    """Refuse a graph, its functions included, whose constants would become too large. `size`: of the file.

    Raises:
        InvalidGraph: naming the node that goes past the bound.
    """
    _Folding(where, size).graph(graph, {})
    for function in functions:
        _Folding(where, size).nodes(function.node, {})


class _Folding:
    def __init__(self, where: str, size: int) -> None:
        self._where = where
        self._size = size
        self._total = 0

    def graph(self, graph: Any, outer: _Scope) -> None:
        scope: _Scope = ChainMap({}, outer)
        for tensor in graph.initializer:
            scope[tensor.name] = _constant(tensor)
        for value in graph.input:  # a default that a caller may replace is none
            scope.pop(value.name, None)
        self.nodes(graph.node, scope)

    def nodes(self, nodes: Any, scope: _Scope) -> None:
        for node in nodes:
            graphs = [graph for attribute in node.attribute for graph in _graphs(attribute)]
            for graph in graphs:
                self.graph(graph, scope)
            names = [name for name in node.input if name]
            if graphs or node.op_type.startswith("Random") or any(name not in scope for name in names):
                continue
            made = _made(node, [scope.get(name) for name in node.input])
            for name in node.output:
                scope[name] = made
            source = min(sum(scope[name].bytes for name in names), self._size)
            if made.bytes > _GROWS * source + (1 << 20):
                self._total += made.bytes
            if self._total > MAX_FOLDED:
                label = node.name or next(iter(node.output), "")
                raise InvalidGraph(
                    f"{self._where}: loading it would compute {self._total:,} bytes from constants, more "
                    f"than {MAX_FOLDED:,} (MAX_FOLDED), up to operator {node.op_type} (node {label!r}); make "
                    "sizes inputs, or export without what is that large"
                )


def _graphs(attribute: Any) -> Iterator[Any]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _constant(tensor: Any) -> _Constant:
    dims = tuple(tensor.dims)
    kind = _TYPES.get(tensor.data_type)
    value = None
    if kind is not None and prod(dims) <= _FOLLOWED and not tensor.external_data:
        if tensor.HasField("raw_data"):
            value = np.frombuffer(tensor.raw_data, kind)
        else:
            field = _FIELDS.get(tensor.data_type, "int32_data")
            value = np.array(getattr(tensor, field)).astype(kind)
        value = value.reshape(dims)
    return _Constant(dims, BITS[tensor.data_type], value)


def _made(node: Any, inputs: Sequence[_Constant | None]) -> _Constant:
    """What a node makes of constants; an input that is left out is None."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    bits = next((given.bits for given in inputs if given is not None), 32)
    if node.op_type == "Cast" and "to" in attributes:
        bits = BITS.get(attributes["to"].i, bits)
    elif node.op_type in ("Shape", "Size", "NonZero", "ArgMax", "ArgMin"):
        bits = 64
    elif node.op_type == "OneHot" and len(inputs) == 3 and inputs[2] is not None:
        bits = inputs[2].bits
    rule = _RULES.get(node.op_type)
    if rule is None:
        return _Constant(None, bits)
    not_told = (_Unknown, IndexError, ValueError, OverflowError, ZeroDivisionError, TypeError)
    with suppress(*not_told), np.errstate(all="ignore"):
        made = rule(attributes, inputs)
        if isinstance(made, _Constant):
            return made
        if all(size >= 0 for size in made):
            return _Constant(made, bits, _value(node.op_type, attributes, inputs, made))
    return _Constant(None, bits)


class _Unknown(Exception):
    """A shape or a value that a rule needs is not known."""


_Attributes = Mapping[str, Any]
_Inputs = Sequence[_Constant | None]
_Dims = tuple[int, ...]


def _dims(inputs: _Inputs, position: int) -> _Dims:
    given = inputs[position]
    if given is None or given.dims is None:
        raise _Unknown
    return given.dims


def _numbers(inputs: _Inputs, position: int) -> list[Any]:
    given = inputs[position]
    if given is None or given.value is None:
        raise _Unknown
    numbers: list[Any] = given.value.reshape(-1).tolist()
    return numbers


def _broadcast(*shapes: _Dims) -> _Dims:
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(dims)) + dims for dims in shapes]
    return tuple(0 if 0 in sizes else max(sizes) for sizes in zip(*padded, strict=True))


def _int(attributes: _Attributes, name: str, otherwise: int) -> int:
    return int(attributes[name].i) if name in attributes else otherwise


def _same(_: _Attributes, inputs: _Inputs) -> _Dims:
    return _dims(inputs, 0)


def _all(_: _Attributes, inputs: _Inputs) -> _Dims:
    return _broadcast(*(_dims(inputs, k) for k, given in enumerate(inputs) if given is not None))


def _given(attributes: _Attributes, _: _Inputs) -> _Constant:
    if "value" in attributes:
        return _constant(attributes["value"].t)
    for name, field in (
        ("value_int", "i"),
        ("value_float", "f"),
        ("value_ints", "ints"),
        ("value_floats", "floats"),
    ):
        if name in attributes:
            kind, bits = (np.int64, 64) if "int" in name else (np.float32, 32)
            value = np.array(getattr(attributes[name], field), kind)
            return _Constant(value.shape, bits, value if value.size <= _FOLLOWED else None)
    raise _Unknown


def _filled(attributes: _Attributes, inputs: _Inputs) -> _Constant:
    bits = BITS.get(attributes["value"].t.data_type, 32) if "value" in attributes else 32
    dims = tuple(_numbers(inputs, 0))
    return _Constant(dims if all(size >= 0 for size in dims) else None, bits)


def _tiled(_: _Attributes, inputs: _Inputs) -> _Dims:
    return tuple(size * times for size, times in zip(_dims(inputs, 0), _numbers(inputs, 1), strict=True))


def _expanded(_: _Attributes, inputs: _Inputs) -> _Dims:
    return _broadcast(_dims(inputs, 0), tuple(_numbers(inputs, 1)))


def _ranged(_: _Attributes, inputs: _Inputs) -> _Dims:
    (start,), (limit,), (step,) = (_numbers(inputs, k) for k in range(3))
    return (max(ceil((limit - start) / step), 0),)


def _padded(_: _Attributes, inputs: _Inputs) -> _Dims:
    dims, pads = _dims(inputs, 0), _numbers(inputs, 1)
    if len(inputs) > 3 and inputs[3] is not None:
        raise _Unknown
    return tuple(size + pads[k] + pads[k + len(dims)] for k, size in enumerate(dims))


def _one_hot(_: _Attributes, inputs: _Inputs) -> _Dims:
    return (*_dims(inputs, 0), int(_numbers(inputs, 1)[0]))


def _joined(attributes: _Attributes, inputs: _Inputs) -> _Dims:
    shapes = [_dims(inputs, k) for k in range(len(inputs))]
    axis = _int(attributes, "axis", 0) % len(shapes[0])
    total = sum(dims[axis] for dims in shapes)
    return (*shapes[0][:axis], total, *shapes[0][axis + 1 :])


def _gathered(attributes: _Attributes, inputs: _Inputs) -> _Dims:
    dims = _dims(inputs, 0)
    axis = _int(attributes, "axis", 0) % len(dims)
    return (*dims[:axis], *_dims(inputs, 1), *dims[axis + 1 :])


def _resized(attributes: _Attributes, inputs: _Inputs) -> _Dims:
    if "axes" in attributes:
        raise _Unknown
    if len(inputs) > 3 and inputs[3] is not None:
        return tuple(_numbers(inputs, 3))
    dims, scales = _dims(inputs, 0), _numbers(inputs, 2)
    return tuple(int(size * scale) for size, scale in zip(dims, scales, strict=True))


def _product(_: _Attributes, inputs: _Inputs) -> _Dims:
    a, b = _dims(inputs, 0), _dims(inputs, 1)
    if len(a) < 2 or len(b) < 2:
        raise _Unknown
    return (*_broadcast(a[:-2], b[:-2]), a[-2], b[-1])


def _reshaped(attributes: _Attributes, inputs: _Inputs) -> _Dims:
    dims, wanted = _dims(inputs, 0), _numbers(inputs, 1)
    if not _int(attributes, "allowzero", 0):
        wanted = [size or dims[k] for k, size in enumerate(wanted)]
    count = prod(dims)
    rest = prod(size for size in wanted if size != -1)
    return tuple(count // rest if size == -1 else size for size in wanted)


def _shape_of(attributes: _Attributes, inputs: _Inputs) -> _Constant:
    dims = _dims(inputs, 0)
    dims = dims[_int(attributes, "start", 0) : _int(attributes, "end", len(dims))]
    return _Constant((len(dims),), 64, np.array(dims, np.int64))


def _transposed(attributes: _Attributes, inputs: _Inputs) -> _Dims:
    dims = _dims(inputs, 0)
    order = attributes["perm"].ints if "perm" in attributes else range(len(dims))[::-1]
    return tuple(dims[k] for k in order)


def _unsqueezed(_: _Attributes, inputs: _Inputs) -> _Dims:
    dims, axes = list(_dims(inputs, 0)), _numbers(inputs, 1)
    rank = len(dims) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        dims.insert(axis, 1)
    return tuple(dims)


def _squeezed(_: _Attributes, inputs: _Inputs) -> _Dims:
    dims = _dims(inputs, 0)
    named = {axis % len(dims) for axis in _numbers(inputs, 1)} if len(inputs) > 1 else range(len(dims))
    return tuple(size for k, size in enumerate(dims) if size != 1 or k not in named)


def _flattened(attributes: _Attributes, inputs: _Inputs) -> _Dims:
    dims, axis = _dims(inputs, 0), _int(attributes, "axis", 1)
    return prod(dims[:axis]), prod(dims[axis:])


_SAME = "Abs Cast Ceil Clip CumSum Exp EyeLike Floor Identity Neg Not Relu Round Sqrt Trilu"
_ALL = (
    "Add And BitwiseAnd Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow Sub "
    "Sum Where Xor"
)
_RULES: Mapping[str, Callable[[_Attributes, _Inputs], _Dims | _Constant]] = {
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_ALL.split(), _all),
    "Concat": _joined,
    "Constant": _given,
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Flatten": _flattened,
    "Gather": _gathered,
    "MatMul": _product,
    "OneHot": _one_hot,
    "Pad": _padded,
    "Range": _ranged,
    "Reshape": _reshaped,
    "Resize": _resized,
    "Shape": _shape_of,
    "Squeeze": _squeezed,
    "Tile": _tiled,
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
}

_ARITHMETIC: Mapping[str, Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]] = {
    "Add": np.add,
    "Div": lambda a, b: np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)),  # towards zero
    "Mul": np.multiply,
    "Sub": np.subtract,
}


def _value(op: str, attributes: _Attributes, inputs: _Inputs, dims: _Dims) -> NDArray[Any] | None:
    """The value of a small result, where it is one that sizes are computed with."""
    values = [given.value for given in inputs if given is not None and given.value is not None]
    if prod(dims) > _FOLLOWED or len(values) < len(inputs):
        return None
    if op == "Cast" and attributes["to"].i in _TYPES:
        return values[0].astype(_TYPES[attributes["to"].i])
    if op in ("Identity", "Reshape", "Squeeze", "Unsqueeze"):
        return values[0].reshape(dims)
    if op == "Concat" and len(dims) == 1:
        return np.concatenate(values)
    if op == "Gather" and len(_dims(inputs, 0)) == 1:
        return np.asarray(values[0][values[1]])
    if op in _ARITHMETIC and values[0].dtype.kind in "iu":
        return _ARITHMETIC[op](values[0], values[1])
    return None
