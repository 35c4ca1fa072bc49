"""What is known of a model's values while it is bound: their types, and of constants the value itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import prod

import numpy as np
from onnx import ModelProto, TensorProto, TypeProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.infer import form_of, type_of

__all__ = ["SMALL", "KnownValues", "Read"]

Read = Callable[[str], Array]
"""The value of an initializer whose data the model at hand does not have; asked for tables of whole numbers
and short vectors only."""

SMALL = 1024
"""Elements of a whole-number initializer up to which it is a literal: axes, shapes, bounds."""
_TABLE = 1 << 22
"""Elements of a table of whole numbers (position ids, a mask of all positions) that is read to be folded."""
_VECTOR = 4096
"""Elements of a vector of floats that is read to be folded, as the frequencies of rotary positions."""
_DISCRETE = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_DATA = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")


class KnownValues:
    """Types and values by name; initializers are read where they are asked for.

    Attributes:
        types: as far as they are known.
        values: of what is constant, as far as it was asked for or computed.
        soft: names in `values` that stay made by a node, or read from the file, unless they are computed
            away: what follows from vectors of the file alone. A bias that is cast stays a weight; frequencies
            that meet positions are folded.
        sized: names in `values` that follow from the sizes.
    """

    def __init__(self, model: ModelProto, read: Read | None, changing: Collection[str] = ()) -> None:
        self.types: dict[str, TypeProto] = {}
        self.values: dict[str, Array] = {}
        self.soft: set[str] = set()
        self.sized: set[str] = set()
        self._read = read
        self._changing = frozenset(changing)
        self._files: Mapping[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        for name, tensor in self._files.items():
            self.types[name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            if self.is_literal(name):
                self.value(name)

    def add(self, name: str, array: Array, sized: bool) -> None:
        """Say what a value is."""
        self.values[name] = array
        self.types[name] = helper.make_tensor_type_proto(
            helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        if sized:
            self.sized.add(name)

    def declare(self, name: str, form: TensorForm) -> None:
        self.types[name] = type_of(form)

    def form(self, name: str) -> TensorForm | None:
        """dtype and shape; None where they are not known."""
        found = self.types.get(name)
        return form_of(found) if found is not None else None

    def is_file(self, name: str) -> bool:
        """Whether it is an initializer."""
        return name in self._files

    def is_constant(self, name: str) -> bool:
        return name in self._files or name in self.values

    def is_literal(self, name: str) -> bool:
        """Whether it is an initializer that is no weight: one number, or a few whole ones."""
        tensor = self._files.get(name)
        if tensor is None or name in self._changing:
            return False
        size = prod(tensor.dims)
        return size <= 1 or (tensor.data_type in _DISCRETE and size <= SMALL)

    def is_weight(self, name: str) -> bool:
        return name in self._files and not self.is_literal(name)

    def can_be_known(self, name: str) -> bool:
        """Whether it has a value, or is an initializer that may be computed with."""
        return name in self.values or self._readable(name)

    def value(self, name: str) -> Array | None:
        """A value that is known, read from the file where it may be.

        Raises InvalidGraph where what is read has another shape than the model says.
        """
        if name in self.values or not self._readable(name):
            return self.values.get(name)
        tensor = self._files[name]
        external = tensor.data_location == TensorProto.EXTERNAL
        there = not external and (any(getattr(tensor, field) for field in _DATA) or not prod(tensor.dims))
        if not there and self._read is None:
            return None
        array = np.asarray(numpy_helper.to_array(tensor) if there or self._read is None else self._read(name))
        if array.shape != tuple(tensor.dims):
            raise InvalidGraph(f"initializer '{name}' was read with the shape {array.shape}, not its own")
        if tensor.data_type in _FLOATS and array.size > 1:
            self.soft.add(name)
        self.values[name] = array
        return array

    def _readable(self, name: str) -> bool:
        """Whether it is an initializer that may be computed with: whole numbers, and vectors of floats."""
        tensor = self._files.get(name)
        if tensor is None or name in self._changing:
            return False
        size = prod(tensor.dims)
        if size <= 1:
            return True
        if tensor.data_type in _DISCRETE:
            return size <= _TABLE
        vector = sum(dim > 1 for dim in tensor.dims) == 1
        return tensor.data_type in _FLOATS and vector and size <= _VECTOR
