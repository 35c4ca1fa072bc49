"""A model's file, read without its weights: the graph checked strictly, and where each weight lies.

    model.onnx ── mapped ──> everything but large constants ──> the strict reader ──> ModelProto without data
                    └──────> name -> file, offset, dtype, shape ──> slices, read when they are needed

The bytes of a weight are looked at only when a piece of it is read, so a model of many GB takes as much
memory as its graph. External data must lie in the model's folder.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import DataLoss, InvalidGraph, NotFound
from edge_attention.core.schedule.extents import take
from edge_attention.core.schedule.schedule import Weight
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.both_steps import known_inputs, lift_weights, loosen_mask, step_with_past
from edge_attention.graphs.axes.node_order import put_in_order
from edge_attention.graphs.axes.older import modern
from edge_attention.graphs.reading import read_older

__all__ = ["KEPT_BYTES", "MAX_WEIGHTS", "OpenModel", "WeightPlace", "open_model"]

KEPT_BYTES = 1024
"""Constants up to this size stay in the graph."""
MAX_WEIGHTS = 100_000
"""Initializers of a model."""
MAX_GRAPH = 64 << 20
"""Bytes of a model without its large constants."""

_GRAPH, _INITIALIZER, _SPARSE = 7, 5, 15
_DIMS, _DATA_TYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14
_FLOATS, _DOUBLES = 4, 10
"""Fields that hold numbers of one size each, one after the other, as raw data does."""


@dataclass(frozen=True)
class WeightPlace:
    """Where a constant's bytes are.

    Attributes:
        file: "" for the model's own, else relative to its folder.
        dtype: NumPy's name.
    """

    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A model whose weights are still in its file.

    Attributes:
        model: as the strict reader gives it; the initializers in `places` have type and shape, and no data.
        places: initializer -> where its bytes are.
        given: input of one element -> what it is, wherever the model is cut.
    """

    path: Path
    model: ModelProto
    places: Mapping[str, WeightPlace]
    given: Mapping[str, int] = field(default_factory=dict)

    def read(self, name: str) -> Array:
        """All of an initializer.

        Raises:
            NotFound: there is none of that name.
            DataLoss: the file has become shorter.
        """
        if (place := self.places.get(name)) is not None:
            return np.array(mapped(self.path, place))
        for tensor in self.model.graph.initializer:
            if tensor.name == name:
                return np.asarray(numpy_helper.to_array(tensor))
        raise NotFound(f"the model has no weight {name!r}")

    def piece(self, weight: Weight) -> Array:
        """What of an initializer the extent takes, and no more of it is read. Raises as `read`."""
        if (place := self.places.get(weight.name)) is not None:
            return np.array(take(mapped(self.path, place), weight.extent), order="C")
        return np.array(take(self.read(weight.name), weight.extent), order="C")


def mapped(path: Path, place: WeightPlace) -> Array:
    """A weight, as a view of the file.

    Raises:
        DataLoss: the file is gone, or shorter than it was.
    """
    file = path.parent / place.file if place.file else path
    if not place.nbytes:
        return np.zeros(place.shape, place.dtype)
    try:
        view = np.memmap(file, place.dtype, "r", place.offset, place.shape)
    except (OSError, ValueError) as error:
        raise DataLoss(f"weights of the model cannot be read from {file.name}: {error}") from None
    return view.view(np.ndarray)


def open_model(path: Path) -> OpenModel:
    """Read a model's graph, and where its weights are.

    Raises:
        InvalidGraph: it is no model, or has what is not allowed in one; external data elsewhere than in its
            folder, or not as long as it says.
    """
    where = path.name
    with path.open("rb") as file:
        size = path.stat().st_size
        if not size:
            raise InvalidGraph(f"{where} is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            slim, places, shapes = _Slimming(data, where, path.parent).slimmed()
    model = modern(read_older(slim, where), where)
    _require_made_once(model, where)
    put_in_order(model.graph)
    _say_sizes(model)
    # Each of them was an input while the strict reader looked at the graph.
    declared = {value.name: value for value in model.graph.input if value.name in places}
    kept = [value for value in model.graph.input if value.name not in places]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for name in places:
        if name not in declared:
            continue
        tensor = model.graph.initializer.add()
        tensor.name = name
        tensor.data_type = declared[name].type.tensor_type.elem_type
        tensor.dims.extend(shapes[name])
        tensor.data_location = TensorProto.EXTERNAL
    loosen_mask(model)
    if step_with_past(model):
        lift_weights(model)
    held = {name: place for name, place in places.items() if name in declared}
    return OpenModel(path, model, held, known_inputs(model))


def _say_sizes(model: ModelProto) -> None:
    """Where a file names sizes of four-dimensional inputs by the numbers that they are ("12", as the exporter
    of transformers does of keys and values), give them these numbers: by name they would be open."""
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim in dims[1:] if len(dims) == 4 else ():
            name = dim.dim_param
            if name.isascii() and name.isdigit() and len(name) < 10 and int(name):
                dim.dim_value = int(name)


def _require_made_once(model: ModelProto, where: str) -> None:
    """Refuse a graph in which two operators make a value of one name: which is meant is anybody's guess."""
    made = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        for name in filter(None, node.output):
            if name in made:
                raise InvalidGraph(f"{where}: '{name}' is made twice, the second time by {node.op_type}")
            made.add(name)


class _Slimming:
    """One pass over the file's bytes: large constants become inputs of the graph."""

    def __init__(self, data: mmap.mmap, where: str, folder: Path) -> None:
        self._data, self._where, self._folder = data, where, folder
        self._places: dict[str, WeightPlace] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._names: set[str] = set()
        self._kept = 0

    def slimmed(self) -> tuple[bytes, dict[str, WeightPlace], dict[str, tuple[int, ...]]]:
        out = bytearray()
        graphs = 0
        for number, start, first, last in self._fields(0, len(self._data)):
            if number == _GRAPH:
                graphs += 1
                if graphs > 1:
                    raise self._broken(start)
                graph = self._graph(first, last)
                out += _varint(_GRAPH << 3 | 2) + _varint(len(graph)) + graph
            else:
                out += self._copied(start, last)
        return bytes(out), self._places, self._shapes

    def _graph(self, start: int, end: int) -> bytes:
        out = bytearray()
        inputs: set[str] = set()
        for number, _, first, last in self._fields(start, end):
            if number == 11:  # an input; old files list initializers there, too
                inputs.add(self._name_of(first, last))
        new: list[bytes] = []
        for number, begin, first, last in self._fields(start, end):
            if number == _INITIALIZER:
                value = self._weight(first, last)
                if value is not None:
                    name = self._last_name
                    if name not in inputs:
                        new.append(value)
                    continue
            if number == _SPARSE:
                dense = self._dense(first, last)
                out += _varint(_INITIALIZER << 3 | 2) + _varint(len(dense)) + dense
                continue
            out += self._copied(begin, last)
        for value in new:
            out += _varint(11 << 3 | 2) + _varint(len(value)) + value
        return bytes(out)

    def _name_of(self, start: int, end: int) -> str:
        for number, _, first, last in self._fields(start, end):
            if number == 1:
                return bytes(self._data[first:last]).decode("utf-8", "replace")
        return ""

    def _weight(self, start: int, end: int) -> bytes | None:
        """Note where a large constant is, and declare an input instead; None: it is to stay as it is."""
        rest = bytearray()
        raw: tuple[int, int] | None = None
        packed: tuple[int, int, int] | None = None
        for number, begin, first, last in self._fields(start, end):
            if number == _RAW:
                if raw is not None:
                    raise self._broken(begin)
                raw = (first, last)
            elif number in (_FLOATS, _DOUBLES) and self._data[begin] & 7 == 2:
                if packed is not None:
                    return None
                packed = (number, first, last)
            elif last - begin > MAX_GRAPH:
                raise InvalidGraph(
                    f"{self._where}: a constant's numbers are neither raw data nor floats in a row; save the "
                    "model with raw data"
                )
            else:
                rest += self._data[begin:last]
        try:
            tensor = TensorProto.FromString(bytes(rest))
        except Exception:
            raise self._broken(start) from None
        external = tensor.data_location == TensorProto.EXTERNAL
        if tensor.name in self._names:
            raise InvalidGraph(
                f"{self._where}: two constants are called {tensor.name[:80]!r}; export it again"
            )
        self._names.add(tensor.name)
        if not tensor.name or tensor.HasField("segment"):
            return None
        try:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        except (KeyError, ValueError):
            return None
        if dtype.kind not in "fiub" or tensor.data_type in _PACKED_TYPES:
            return None
        shape = tuple(tensor.dims)
        size = math.prod(shape) * dtype.itemsize
        if any(dim < 0 for dim in shape) or (size <= KEPT_BYTES and not external):
            return None
        numbers = any(len(getattr(tensor, name)) for name in ("int32_data", "int64_data", "uint64_data"))
        if external:
            place = self._external(tensor, dtype, shape, size)
        else:
            if packed is not None and (
                raw is not None or dtype.name != {4: "float32", 10: "float64"}[packed[0]]
            ):
                return None
            span = raw if packed is None else packed[1:]
            if span is None or numbers or span[1] - span[0] != size:
                return None  # the strict reader says what is wrong with it, or it is small numbers one by one
            place = WeightPlace("", span[0], dtype.name, shape)
        if len(self._places) >= MAX_WEIGHTS:
            raise InvalidGraph(f"{self._where}: more than {MAX_WEIGHTS:,} initializers (MAX_WEIGHTS)")
        self._places[tensor.name] = place
        self._shapes[tensor.name] = shape
        self._last_name = tensor.name
        return helper.make_tensor_value_info(tensor.name, tensor.data_type, shape).SerializeToString()

    def _dense(self, start: int, end: int) -> bytes:
        """A sparse initializer as a dense one, which stays in the graph."""
        try:
            if end - start > MAX_GRAPH // 4:  # numbers of one byte are eight in memory
                raise InvalidGraph(
                    f"{self._where}: a sparse initializer of {end - start:,} bytes; make it dense"
                )
            sparse = SparseTensorProto.FromString(self._copied(start, end))
        except InvalidGraph:
            raise
        except Exception:
            raise self._broken(start) from None
        name, shape = sparse.values.name, tuple(sparse.dims)
        what = f"{self._where}: the sparse initializer {name[:80]!r}"
        if not name or name in self._names:
            raise InvalidGraph(f"{what} has no name of its own; make it dense")
        self._names.add(name)
        if any(part.data_location == TensorProto.EXTERNAL for part in (sparse.values, sparse.indices)):
            raise InvalidGraph(f"{what} has its numbers in another file; make it dense")
        try:
            values = np.asarray(numpy_helper.to_array(sparse.values))
            places = np.asarray(numpy_helper.to_array(sparse.indices))
        except Exception as error:  # whatever it says of bytes that are too many or too few
            raise InvalidGraph(f"{what} cannot be read ({error}); make it dense") from None
        count = math.prod(shape)
        flat = places.ndim == 1
        fits = all(dim > 0 for dim in shape) and values.ndim == 1 and values.dtype.kind in "fiub"
        fits = fits and places.dtype == np.int64 and places.ndim in (1, 2) and len(places) == len(values)
        if not fits or not (flat or places.shape[1:] == (len(shape),)):
            raise InvalidGraph(
                f"{what} has {values.dtype.name} {list(values.shape)} at {list(places.shape)} places of "
                f"{list(shape)}, which do not go together; make it dense"
            )
        size = count * values.dtype.itemsize
        if self._kept + size > MAX_GRAPH:
            raise InvalidGraph(
                f"{what} takes {size:,} bytes once it is dense, and {MAX_GRAPH:,} is the most of what stays "
                "in the graph (MAX_GRAPH); make it dense in the file"
            )
        if ((places < 0) | (places >= (count if flat else np.array(shape, np.int64)))).any():
            raise InvalidGraph(f"{what} has numbers beyond its shape {list(shape)}; make it dense")
        self._kept += size
        dense = np.zeros(shape, values.dtype)
        dense.reshape(-1)[places if flat else np.ravel_multi_index(tuple(places.T), shape)] = values
        return numpy_helper.from_array(dense, name).SerializeToString()

    def _external(
        self, tensor: TensorProto, dtype: np.dtype[np.generic], shape: tuple[int, ...], size: int
    ) -> WeightPlace:
        said = {one.key: one.value for one in tensor.external_data}
        name = said.get("location", "")
        what = f"{self._where}: the data of {tensor.name[:80]!r}"
        parts = Path(name).parts
        if not name or "\\" in name or Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise InvalidGraph(f"{what} must lie in the model's folder, not at {name[:80]!r}")
        file = self._folder / name
        try:
            inside = file.resolve(strict=True).is_relative_to(self._folder.resolve())
            length = file.stat().st_size if inside and file.is_file() else -1
        except (OSError, RuntimeError):
            raise InvalidGraph(
                f"{what} should be in {name[:80]!r}, which is not there; bring it, too"
            ) from None
        if length < 0:
            raise InvalidGraph(f"{what} must lie in the model's folder, in a plain file")
        try:
            offset, given = int(said.get("offset", "0") or 0), int(said.get("length", size) or size)
        except ValueError:
            raise InvalidGraph(f"{what} is at no place that is a number") from None
        if offset < 0 or given != size or offset + size > length:
            raise InvalidGraph(
                f"{what} takes {size:,} bytes from {offset:,}, and {name[:80]!r} has {length:,}"
            )
        return WeightPlace(name, offset, dtype.name, shape)

    # The form of protobuf's messages

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, begin of the tag, begin and end of the value of each field between."""
        at = start
        while at < end:
            begin = at
            tag, at = self._number(at, end)
            kind = tag & 7
            if kind == 2:
                size, at = self._number(at, end)
                last = at + size
            elif kind == 0:
                _, last = self._number(at, end)
            elif kind in (1, 5):
                last = at + (8 if kind == 1 else 4)
            else:
                raise self._broken(begin)
            if last > end:
                raise self._broken(begin)
            yield tag >> 3, begin, at, last
            at = last

    def _number(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
        raise self._broken(at)

    def _copied(self, start: int, end: int) -> bytes:
        self._kept += end - start
        if self._kept > MAX_GRAPH:
            raise InvalidGraph(
                f"{self._where}: more than {MAX_GRAPH:,} bytes beside its large initializers (MAX_GRAPH); "
                "weights that graphs inside an If or a Loop hold count: have them in the main graph"
            )
        return self._data[start:end]

    def _broken(self, at: int) -> InvalidGraph:
        return InvalidGraph(f"{self._where}: not an ONNX file, or damaged at byte {at:,}; export it again")


_PACKED_TYPES = frozenset(
    number
    for name, number in TensorProto.DataType.items()
    if "INT4" in name
    or "INT2" in name
    or name in ("BFLOAT16", "STRING")
    or "FLOAT4" in name
    or "FLOAT8" in name
)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
