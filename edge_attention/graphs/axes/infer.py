"""The types of what a node makes, from those of what it is given: by onnx, by us for others' operators."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, defs, helper, numpy_helper, shape_inference

from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.infer_others import OTHERS
from edge_attention.graphs.reading.needed import reads

__all__ = ["form_of", "infer_bodies", "infer_types", "type_of"]

_MAX_FOLLOWED = 4096
"""Elements of the largest value by which shapes are found: sizes, axes, bounds."""

Types = Mapping[str, TypeProto]


def type_of(form: TensorForm) -> TypeProto:
    return helper.make_tensor_type_proto(dtype_number(form.dtype), form.shape)


def dtype_number(name: str) -> int:
    """ONNX's number of a dtype, by NumPy's name of it."""
    found = _NUMBERS.get(name)
    if found is None:
        raise ValueError(f"{name} is no type of tensors")
    return found


def form_of(found: TypeProto) -> TensorForm | None:
    """dtype and shape; None where some of it is not known, or it is no tensor."""
    tensor = found.tensor_type
    if not found.HasField("tensor_type") or not tensor.elem_type or not tensor.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in tensor.shape.dim):
        return None
    name = _NAMES.get(tensor.elem_type)
    return TensorForm(name, tuple(dim.dim_value for dim in tensor.shape.dim)) if name else None


_NAMES: dict[int, str] = {}
for _number in onnx.TensorProto.DataType.values():
    if _number not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        try:
            _NAMES[_number] = helper.tensor_dtype_to_np_dtype(_number).name
        except (KeyError, TypeError):
            continue
_NUMBERS = {name: number for number, name in _NAMES.items()}


_BEFORE = {"LayerNormalization": 17}
"""Operators that ONNX Runtime knows in files of opsets before ONNX had them; its optimizer writes these."""


def infer_types(
    node: NodeProto, types: Types, values: Mapping[str, Array], opsets: Mapping[str, int], ir_version: int
) -> dict[str, TypeProto]:
    """By output what is known of its type; an output of which nothing is known is left out.

    Args:
        types: of what the node reads, as far as they are known.
        values: constants among what it reads.

    Raises onnx's InferenceError where the shapes contradict each other.
    """
    own = OTHERS.get((node.domain, node.op_type))
    try:
        if own is not None:
            shapes = [_form(types, name) for name in node.input]
            made = own(shapes, {a.name: helper.get_attribute_value(a) for a in node.attribute})
            return {
                name: type_of(form) for name, form in zip(node.output, made, strict=False) if name and form
            }
        if node.op_type in _BEFORE and not node.domain:
            opsets = {**opsets, "": max(_BEFORE[node.op_type], opsets.get("", 1))}
        schema = defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
        given = {name: types.get(name, TypeProto()) for name in node.input if name}
        data = {
            name: numpy_helper.from_array(values[name])
            for name in node.input
            if name in values and values[name].size <= _MAX_FOLLOWED
        }
        return dict(
            shape_inference.infer_node_outputs(
                schema,
                node,
                given,
                data,
                opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
                ir_version=ir_version,
            )
        )
    except shape_inference.InferenceError:
        raise
    except Exception:  # onnx raises what its C++ half does; an unknown operator has no schema
        return {}


def infer_bodies(
    node: NodeProto, types: Types, values: Mapping[str, Array], opsets: Mapping[str, int], ir_version: int
) -> dict[str, TypeProto]:
    """By output of a node with graphs inside what is known of its type: a Scan makes as many rows as it is
    given, both branches of an If may make the same. Nothing is known of what contradicts itself."""
    read = [name for name in sorted(reads(node)) if name in types]
    small = [name for name in read if name in values and values[name].size <= _MAX_FOLLOWED]
    graph = helper.make_graph(
        [node],
        "inside",
        [helper.make_value_info(name, types[name]) for name in read if name not in small],
        [],
        [numpy_helper.from_array(values[name], name) for name in small],
    )
    versions = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = helper.make_model(graph, opset_imports=versions, ir_version=ir_version)
    found = _types_within(model)
    if node.op_type == "Loop":
        return _carried(node, types, model)
    return {name: found[name] for name in node.output if name in found}


def _types_within(model: ModelProto) -> dict[str, TypeProto]:
    """Of all values of a model's graph, as far as onnx knows them."""
    try:
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # onnx raises what its C++ half does
        return {}
    return {value.name: value.type for value in (*graph.input, *graph.value_info)}


def _carried(node: NodeProto, types: Types, around: ModelProto) -> dict[str, TypeProto]:
    """What a Loop carries from turn to turn is of the type it begins with, if a turn gives the same."""
    body = next(a.g for a in node.attribute if a.name == "body")
    begins = [types.get(name, TypeProto()) for name in node.input[2:]]
    inputs = [value.name for value in body.input]
    alone = ModelProto()
    alone.CopyFrom(around)
    del alone.graph.node[:]
    alone.graph.node.extend(body.node)
    alone.graph.initializer.extend(body.initializer)
    turn = [helper.make_tensor_type_proto(kind, []) for kind in (TensorProto.INT64, TensorProto.BOOL)]
    alone.graph.input.extend(map(helper.make_value_info, inputs, [*turn, *begins]))
    found = _types_within(alone)
    same: dict[str, TypeProto] = {}
    for output, kind, name in zip(
        node.output, begins, [value.name for value in body.output][1:], strict=False
    ):
        form = form_of(kind)
        if output and form is not None and name in found and form_of(found[name]) == form:
            same[output] = kind
        elif output:
            return {}  # the others were found as if this one stayed the same
    return same


def _form(types: Types, name: str) -> TensorForm | None:
    return form_of(types[name]) if name in types else None
