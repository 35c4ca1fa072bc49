"""Makes gradient graphs fast: products over rows before differentiating, no axes of size one after it.

`onnx-ad` carries a trailing axis of seed directions through every tensor of a gradient. There is one
direction here, so the axis has size one, and what it costs is not arithmetic: ONNX Runtime copies for a
transpose that moves it, reduces over it, and broadcasts along it one element at a time. Measured on a
transformer encoder: a third of the step.

All shapes are static here, so a tensor whose elements lie in the same order is the same tensor seen with
another shape. `squeeze_ones` follows each value back to the tensor that holds its elements and lets the
next operator read that, in the shape without ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_attention.graphs.onnx_file import fixed_shapes, infer_shapes, ints

__all__ = ["flatten_products", "squeeze_ones"]

Shape = tuple[int, ...]

# Same elements in the same order, whatever the shape (Expand and Transpose: where that holds).
_VIEWS = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_ELEMENTWISE = {
    *("Abs", "Add", "Ceil", "Cos", "Div", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual"),
    *("Less", "LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "And", "Pow", "Reciprocal"),
    *("Relu", "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "Where", "Gelu"),
}
_REDUCTIONS = {"ReduceSum", "ReduceMean"}


def flatten_products(model: ModelProto) -> None:
    """Turn, in place, `MatMul(x[..., K], w[K, N])` into a product of rows [M, K] and w.

    The gradient of w is then one product, not a batch of them and a sum. Shapes must have been inferred;
    products of unknown shapes stay as they are.
    """
    shapes = fixed_shapes(model)
    nodes: list[NodeProto] = []
    for count, node in enumerate(model.graph.node):
        left, right = (shapes.get(name) for name in node.input[:2]) if len(node.input) > 1 else (None, None)
        if node.op_type != "MatMul" or not left or not right or len(left) < 3 or len(right) != 2:
            nodes.append(node)
            continue
        rows, product = f"adjoint/rows/{count}/in", f"adjoint/rows/{count}/out"
        wide, full = f"adjoint/rows/{count}/shape", f"adjoint/rows/{count}/full"
        model.graph.initializer.extend([ints(wide, [-1, left[-1]]), ints(full, [*left[:-1], right[1]])])
        nodes += [
            helper.make_node("Reshape", [node.input[0], wide], [rows]),
            helper.make_node("MatMul", [rows, node.input[1]], [product], name=node.name),
            helper.make_node("Reshape", [product, full], list(node.output)),
        ]
        for name, shape in ((rows, (math.prod(left[:-1]), left[-1])), (product, (-1, right[1]))):
            fixed = [math.prod(left[:-1]), *shape[1:]]
            model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, fixed))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def squeeze_ones(model: ModelProto) -> ModelProto:
    """The same graph without axes of size one in its arithmetic, and without copies that only move them.

    Takes a model of static shapes; names, dtypes and shapes of inputs and outputs stay. A model with
    subgraphs or with a shape that inference cannot tell comes back as it is.
    """
    inferred = infer_shapes(model)
    shapes = fixed_shapes(inferred)
    if any(_has_graph(node) for node in model.graph.node):
        return model
    if any(name and name not in shapes for node in model.graph.node for name in node.output):
        return model
    return _Squeezer(model, shapes).run()


class _Squeezer:
    def __init__(self, model: ModelProto, shapes: dict[str, Shape]) -> None:
        self._model = model
        self._declared = shapes  # as the graph says
        self._held = dict(shapes)  # as the tensor is here
        self._base: dict[str, str] = {}  # a name to the tensor that holds its elements
        self._made: dict[tuple[str, Shape], str] = {}
        self._nodes: list[NodeProto] = []
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._integers = {
            name: numpy_helper.to_array(tensor).reshape(-1).tolist()
            for name, tensor in self._constants.items()
            if tensor.data_type == TensorProto.INT64 and math.prod(tensor.dims) <= 64
        }
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                array = numpy_helper.to_array(node.attribute[0].t)
                if array.dtype == np.int64 and array.size <= 64:
                    self._integers[node.output[0]] = array.reshape(-1).tolist()
        self._outputs = [value.name for value in model.graph.output]
        self._added: list[TensorProto] = []

    def run(self) -> ModelProto:
        for node in self._model.graph.node:
            self._node(node)
        for name in self._outputs:
            if name in self._base:
                shape = self._ints(self._declared[name])
                self._nodes.append(helper.make_node("Reshape", [self._base[name], shape], [name]))
        result = ModelProto()
        result.CopyFrom(self._model)
        for field in ("node", "value_info"):
            result.graph.ClearField(field)
        result.graph.node.extend(self._nodes)
        result.graph.initializer.extend(self._added)
        return result

    def _node(self, node: NodeProto) -> None:
        kind = node.op_type if node.domain in ("", "ai.onnx") and len(node.output) == 1 else ""
        if kind and self._is_view(node):
            self._base[node.output[0]] = self._base.get(node.input[0], node.input[0])
        elif kind in _ELEMENTWISE:
            self._elementwise(node)
        elif kind in _REDUCTIONS:
            self._reduction(node)
        elif kind == "Transpose":
            self._transpose(node)
        elif kind == "MatMul":
            self._product(node)
        else:
            self._emit(node, [name and self._at(name, self._declared[name]) for name in node.input])

    def _is_view(self, node: NodeProto) -> bool:
        if node.op_type in _VIEWS:
            return True
        if node.op_type not in ("Expand", "Transpose"):
            return False
        before, after = self._declared[node.input[0]], self._declared[node.output[0]]
        if node.op_type == "Expand":
            return math.prod(before) == math.prod(after)
        moved = [axis for axis in self._permutation(node) if before[axis] != 1]
        return moved == sorted(moved)

    def _elementwise(self, node: NodeProto) -> None:
        full = self._declared[node.output[0]]
        kept = [axis for axis, size in enumerate(full) if size != 1]
        inputs: list[str] = []
        for name in node.input:
            if not name:
                inputs.append("")
                continue
            shape = self._declared[name]
            padded = (1,) * (len(full) - len(shape)) + shape
            inputs.append(self._at(name, _without_leading_ones([padded[axis] for axis in kept])))
        self._emit(node, inputs, tuple(full[axis] for axis in kept))

    def _reduction(self, node: NodeProto) -> None:
        before = self._declared[node.input[0]]
        axes = self._axes(node, len(before))
        if axes is None:
            self._emit(node, [name and self._at(name, self._declared[name]) for name in node.input])
            return
        kept = [axis for axis, size in enumerate(before) if size != 1]
        over = [kept.index(axis) for axis in axes if axis in kept]
        if not over:
            self._base[node.output[0]] = self._base.get(node.input[0], node.input[0])
            return
        data = self._at(node.input[0], tuple(before[axis] for axis in kept))
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.attribute[:]
        copy.attribute.append(helper.make_attribute("keepdims", 0))
        by_attribute = any(attribute.name == "axes" for attribute in node.attribute)
        if by_attribute:
            copy.attribute.append(helper.make_attribute("axes", over))
        held = tuple(before[axis] for axis in kept if axis not in axes)
        self._emit(copy, [data] if by_attribute else [data, self._ints(over)], held)

    def _axes(self, node: NodeProto, rank: int) -> list[int] | None:
        """The axes a reduction sums over, from 0; None where they are not known or none are given."""
        given = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
        if given is None and len(node.input) > 1 and node.input[1]:
            given = self._integers.get(node.input[1])
        return [axis % rank for axis in given] if given else None

    def _transpose(self, node: NodeProto) -> None:
        before = self._declared[node.input[0]]
        kept = [axis for axis, size in enumerate(before) if size != 1]
        order = [kept.index(axis) for axis in self._permutation(node) if axis in kept]
        sizes = tuple(before[axis] for axis in kept)
        copy = helper.make_node("Transpose", [], [node.output[0]], name=node.name, perm=order)
        self._emit(copy, [self._at(node.input[0], sizes)], tuple(sizes[axis] for axis in order))

    def _permutation(self, node: NodeProto) -> list[int]:
        rank = len(self._declared[node.input[0]])
        given = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        return list(reversed(range(rank))) if given is None else given

    def _product(self, node: NodeProto) -> None:
        left, right = (self._declared[name] for name in node.input)
        full = self._declared[node.output[0]]
        if min(len(left), len(right)) < 2:
            self._emit(node, [self._at(name, self._declared[name]) for name in node.input])
            return
        if math.prod(right[:-2]) == 1:  # one matrix on the right: rows on the left
            held: Shape = (math.prod(full[:-1]), full[-1])
            shapes = [(held[0], left[-1]), right[-2:]]
        else:
            batch = [axis for axis, size in enumerate(full[:-2]) if size != 1]
            held = (*(full[axis] for axis in batch), *full[-2:])
            shapes = []
            for shape in (left, right):
                padded = (1,) * (len(full) - len(shape)) + shape
                outer = _without_leading_ones([padded[axis] for axis in batch])
                shapes.append((*outer, *shape[-2:]))
        inputs = [self._at(name, shape) for name, shape in zip(node.input, shapes, strict=True)]
        self._emit(node, inputs, held)

    def _emit(self, node: NodeProto, inputs: Sequence[str], held: Shape | None = None) -> None:
        """Append the node with other inputs; its output has shape `held` here, or the declared one."""
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(inputs)
        name = node.output[0]
        if held is not None and held != self._declared[name]:
            if name in self._outputs:
                copy.output[0] = f"{name}/squeezed"
                self._base[name] = copy.output[0]
            self._held[copy.output[0]] = held
        self._nodes.append(copy)

    def _at(self, name: str, shape: Shape) -> str:
        """The name of a tensor with the elements of `name` in that shape."""
        base = self._base.get(name, name)
        if self._held[base] == shape:
            return base
        key = (base, shape)
        if key not in self._made:
            self._made[key] = f"{base}/as/{'x'.join(map(str, shape))}"
            if base in self._constants and math.prod(shape) <= 64:
                array = numpy_helper.to_array(self._constants[base]).reshape(shape)
                self._added.append(numpy_helper.from_array(array, self._made[key]))
            else:
                target = self._ints(shape)
                self._nodes.append(helper.make_node("Reshape", [base, target], [self._made[key]]))
        return self._made[key]

    def _ints(self, values: Sequence[int]) -> str:
        name = f"adjoint/ints/{'x'.join(map(str, values))}"
        key = (name, ())
        if key not in self._made:
            self._made[key] = name
            self._added.append(ints(name, values))
        return name


def _has_graph(node: NodeProto) -> bool:
    return any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute)


def _without_leading_ones(shape: Sequence[int]) -> Shape:
    start = next((i for i, size in enumerate(shape) if size != 1), len(shape))
    return tuple(shape[start:])
