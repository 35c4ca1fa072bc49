"""Writes an ONNX model node by node, by the rules of its opset; weights have names and are random."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


class ModelWriter:
    """Collects the nodes of one model. Values are names."""

    def __init__(self, opset: int, seed: int, merged: bool) -> None:
        self.opset = opset
        self.inputs: list[str] = []
        self._seed = seed
        self._merged = merged
        self._nodes: list[onnx.NodeProto] = []
        self._sides: tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]] = ([], [])
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._by_value: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.nodes(kind, 1, *inputs, **attributes)[0]

    def nodes(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        number = len(self._nodes)
        names = [f"/{kind}_{number}_output_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=f"/{kind}_{number}", **attributes))
        return names

    def input(self, name: str, dtype: int, dims: Sequence[str | int]) -> str:
        self.inputs.append(name)
        self._sides[0].append(helper.make_tensor_value_info(name, dtype, dims))
        return name

    def output(self, name: str, value: str, dtype: int, dims: Sequence[str | int]) -> None:
        self._sides[1].append(helper.make_tensor_value_info(name, dtype, dims))
        self._nodes.append(helper.make_node("Identity", [value], [name], name=f"/to_{name}"))

    def weight(self, name: str, *shape: int, spread: float = 0.0, value: float | None = None) -> str:
        """An initializer: normal, or near to `value`. The same name is the same one."""
        if value is not None and self._merged:
            return self.const(np.full(shape, value, np.float32), name)
        if name not in self._initializers:
            rng = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
            noise = rng.standard_normal(shape).astype(np.float32)
            wide = np.float32(spread or max(shape[0], 2) ** -0.5)
            array = noise * wide if value is None else np.float32(value) + np.float32(0.2) * noise
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def const(self, value: npt.ArrayLike, name: str = "") -> str:
        """An initializer of this value; equal ones are one where the model is of an exporter that merges."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if self._merged and key in self._by_value:
            return self._by_value[key]
        name = name or f"const_{len(self._initializers)}"
        self._by_value[key] = name
        self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def cast(self, value: str, dtype: int) -> str:
        return self("Cast", value, to=dtype)

    def size(self, value: str, axis: int) -> str:
        """The size of an axis, a number (int64 []), as TorchScript writes it."""
        return self("Gather", self("Shape", value), self.const(np.int64(axis)), axis=0)

    def range(self, size: str) -> str:
        return self("Range", self.const(np.int64(0)), size, self.const(np.int64(1)))

    def reshape(self, value: str, *dims: int | str) -> str:
        """A name is of a number, int64 []."""
        if all(isinstance(dim, int) for dim in dims):
            return self("Reshape", value, self.ints(*(int(dim) for dim in dims)))
        sizes = [
            self.ints(dim) if isinstance(dim, int) else self("Unsqueeze", dim, self.ints(0)) for dim in dims
        ]
        return self("Reshape", value, self("Concat", *sizes, axis=0))

    def sliced(self, value: str, axis: int, start: str, stop: str) -> str:
        """From a number to a number: digits, or the name of an int64 []."""
        ends = [
            self.ints(int(end)) if end.isdigit() else self("Unsqueeze", end, self.ints(0))
            for end in (start, stop)
        ]
        return self("Slice", value, *ends, self.ints(axis), self.ints(1))

    def split(self, value: str, sizes: Sequence[int], axis: int) -> list[str]:
        return self.nodes("Split", len(sizes), value, self.ints(*sizes), axis=axis)

    def reduced(self, kind: str, value: str, axis: int, keep: bool = True) -> str:
        if kind == "ReduceSum" or self.opset >= 18:
            return self(kind, value, self.ints(axis), keepdims=int(keep))
        return self(kind, value, axes=[axis], keepdims=int(keep))

    def linear(self, how: str, x: str, name: str, rows: int, columns: int, bias: bool) -> str:
        """`x` [batch, tokens, rows] (or fewer axes) times a weight, and its bias where there is one."""
        more = [self.weight(f"{name}.bias", columns)] if bias else []
        if how == "gemm":
            flat = self.reshape(x, -1, rows)
            weight = self.weight(f"{name}.weight", columns, rows, spread=rows**-0.5)
            y = self("Gemm", flat, weight, *more, transB=1)
            sizes = [self("Shape", x), self.ints(0), self.ints(-1), self.ints(0), self.ints(1)]
            return self("Reshape", y, self("Concat", self("Slice", *sizes), self.ints(columns), axis=0))
        if how == "transposed":
            weight = self.weight(f"{name}.weight", columns, rows, spread=rows**-0.5)
            y = self("MatMul", x, self("Transpose", weight, perm=[1, 0]))
        else:
            y = self("MatMul", x, self.weight(f"{name}.weight", rows, columns))
        return self("Add", y, *more) if more else y

    def activated(self, kind: str, x: str) -> str:
        half, one = self.const(np.float32(0.5)), self.const(np.float32(1))
        if kind == "relu":
            return self("Relu", x)
        if kind == "silu":
            return self("Mul", x, self("Sigmoid", x))
        if kind == "gelu":
            return self("Gelu", x)
        if kind == "erf":
            inner = self("Erf", self("Div", x, self.const(np.float32(2**0.5))))
            return self("Mul", self("Mul", x, self("Add", inner, one)), half)
        cube = self("Mul", self("Pow", x, self.const(np.float32(3))), self.const(np.float32(0.044715)))
        inner = self("Tanh", self("Mul", self("Add", x, cube), self.const(np.float32((2 / np.pi) ** 0.5))))
        return self("Mul", self("Mul", x, half), self("Add", inner, one))

    def model(self) -> onnx.ModelProto:
        """The model, checked."""
        graph = helper.make_graph(self._nodes, "transformer", *self._sides, list(self._initializers.values()))
        opset = helper.make_opsetid("", self.opset)
        ir_version = 11 if self.opset >= 23 else 8
        made = helper.make_model(graph, opset_imports=[opset], ir_version=ir_version)
        onnx.checker.check_model(made, full_check=True)
        return made
