"""The types of what a node makes, from those of what it is given: by onnx, by us for others' operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from onnx import NodeProto, TypeProto, defs, helper, numpy_helper, shape_inference

from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array

__all__ = ["form_of", "infer_types", "type_of"]

_MAX_FOLLOWED = 4096
"""Elements of the largest value by which shapes are found: sizes, axes, bounds."""
FLOAT = onnx.TensorProto.FLOAT

Types = Mapping[str, TypeProto]
_Shape = tuple[int, ...]


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


def infer_types(
    node: NodeProto, types: Types, values: Mapping[str, Array], opsets: Mapping[str, int], ir_version: int
) -> dict[str, TypeProto]:
    """By output what is known of its type; an output of which nothing is known is left out.

    Args:
        types: of what the node reads, as far as they are known.
        values: constants among what it reads.

    Raises onnx's InferenceError where the shapes contradict each other.
    """
    own = _OTHERS.get((node.domain, node.op_type))
    try:
        if own is not None:
            shapes = [_form(types, name) for name in node.input]
            made = own(shapes, {a.name: helper.get_attribute_value(a) for a in node.attribute})
            return {
                name: type_of(form) for name, form in zip(node.output, made, strict=False) if name and form
            }
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


def _form(types: Types, name: str) -> TensorForm | None:
    return form_of(types[name]) if name in types else None


_Forms = Sequence[TensorForm | None]
_Attributes = Mapping[str, Any]


def _known(form: TensorForm | None) -> TensorForm:
    if form is None:
        raise ValueError("not known")
    return form


def _same(forms: _Forms, at: _Attributes) -> list[TensorForm]:
    return [_known(forms[0])]


def _skip_norm(forms: _Forms, at: _Attributes) -> list[TensorForm]:
    x = _known(forms[0])
    moments = TensorForm("float32", (*x.shape[:-1], 1))
    return [x, moments, moments, x]


def _broadcast(*shapes: _Shape) -> _Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(max(sizes) if min(sizes) else 0 for sizes in zip(*padded, strict=True))


def matmul_shape(a: _Shape, b: _Shape) -> _Shape:
    """The shape of a product of matrices, `a` and `b` of two dimensions or more."""
    return (*_broadcast(a[:-2], b[:-2]), a[-2], b[-1])


def _turned(shape: _Shape, turn: int, outer: int = 0) -> _Shape:
    if outer:  # [m, ..., k] as [..., m, k]
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if turn else shape


def _fused_matmul(forms: _Forms, at: _Attributes) -> list[TensorForm]:
    a, b = _known(forms[0]), _known(forms[1])
    left = _turned(a.shape, at.get("transA", 0), at.get("transBatchA", 0))
    right = _turned(b.shape, at.get("transB", 0), at.get("transBatchB", 0))
    return [TensorForm(a.dtype, matmul_shape(left, right))]


def _quantized_matmul(forms: _Forms, at: _Attributes) -> list[TensorForm]:
    a, b = _known(forms[0]), _known(forms[1])
    return [TensorForm("float32", matmul_shape(a.shape, b.shape))]


def _matmul_nbits(forms: _Forms, at: _Attributes) -> list[TensorForm]:
    a = _known(forms[0])
    return [TensorForm(a.dtype, (*a.shape[:-1], at["N"]))]


def _cached_attention(forms: _Forms, at: _Attributes) -> list[TensorForm]:
    q, v = _known(forms[0]), _known(forms[2])
    return [TensorForm("float32", (*q.shape[:-1], v.shape[-1]))]


_OTHERS: Mapping[tuple[str, str], Callable[[_Forms, _Attributes], Sequence[TensorForm | None]]] = {
    ("com.microsoft", "BiasGelu"): _same,
    ("com.microsoft", "DynamicQuantizeMatMul"): _quantized_matmul,
    ("com.microsoft", "FastGelu"): _same,
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("com.microsoft", "Gelu"): _same,
    ("com.microsoft", "MatMulIntegerToFloat"): _quantized_matmul,
    ("com.microsoft", "MatMulNBits"): _matmul_nbits,
    ("com.microsoft", "QuickGelu"): _same,
    ("com.microsoft", "RotaryEmbedding"): _same,
    ("com.microsoft", "SkipLayerNormalization"): _skip_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_norm,
    ("com.microsoft", "TransposeMatMul"): _fused_matmul,
    ("edge_attention", "CachedAttention"): _cached_attention,
    # ONNX Runtime's own, in ONNX's domain.
    ("", "SimplifiedLayerNormalization"): _same,
}
