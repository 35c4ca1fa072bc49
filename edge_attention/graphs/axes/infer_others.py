"""The types of what ONNX Runtime's own operators make: onnx knows their names as little as their shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx import TensorProto, defs, helper, shape_inference

from edge_attention.core.schedule.schedule import TensorForm

__all__ = ["OTHERS"]

Forms = Sequence[TensorForm | None]
Attributes = Mapping[str, Any]
MakesForms = Callable[[Forms, Attributes], Sequence[TensorForm | None]]
_Shape = tuple[int, ...]
_OPSET = 17
"""Of ONNX's operators that others' are like."""


def _known(form: TensorForm | None) -> TensorForm:
    if form is None:
        raise ValueError("not known")
    return form


def _same(forms: Forms, at: Attributes) -> list[TensorForm]:
    return [_known(forms[0])]


def _skip_norm(forms: Forms, at: Attributes) -> list[TensorForm]:
    x = _known(forms[0])
    moments = TensorForm("float32", (*x.shape[:-1], 1))
    return [x, moments, moments, x]


def _broadcast(*shapes: _Shape) -> _Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(max(sizes) if min(sizes) else 0 for sizes in zip(*padded, strict=True))


def _each(*positions: int, of: int = 0) -> MakesForms:
    """Of what is at `positions`, element by element, in the type of `of`."""

    def made(forms: Forms, at: Attributes) -> list[TensorForm]:
        shapes = [_known(forms[position]).shape for position in positions]
        return [TensorForm(_known(forms[of]).dtype, _broadcast(*shapes))]

    return made


def _matmul_shape(a: _Shape, b: _Shape) -> _Shape:
    """The shape of a product of matrices, `a` and `b` of two dimensions or more."""
    return (*_broadcast(a[:-2], b[:-2]), a[-2], b[-1])


def _turned(shape: _Shape, turn: int, outer: int = 0) -> _Shape:
    if outer:  # [m, ..., k] as [..., m, k]
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if turn else shape


def _fused_matmul(forms: Forms, at: Attributes) -> list[TensorForm]:
    a, b = _known(forms[0]), _known(forms[1])
    left = _turned(a.shape, at.get("transA", 0), at.get("transBatchA", 0))
    right = _turned(b.shape, at.get("transB", 0), at.get("transBatchB", 0))
    return [TensorForm(a.dtype, _matmul_shape(left, right))]


def _quantized_matmul(forms: Forms, at: Attributes) -> list[TensorForm]:
    a, b = _known(forms[0]), _known(forms[1])
    return [TensorForm("float32", _matmul_shape(a.shape, b.shape))]


def _matmul_nbits(forms: Forms, at: Attributes) -> list[TensorForm]:
    a = _known(forms[0])
    return [TensorForm(a.dtype, (*a.shape[:-1], at["N"]))]


def _gather_blocks(forms: Forms, at: Attributes) -> list[TensorForm]:
    data, ids, scales = (_known(form) for form in forms[:3])
    shape = list(data.shape)
    if data.dtype == "uint8":  # several numbers in a byte
        shape[-1] *= 8 // at.get("bits", 4)
    axis = at.get("gather_axis", 0) % len(shape)
    return [TensorForm(scales.dtype, (*shape[:axis], *ids.shape, *shape[axis + 1 :]))]


def _cached_attention(forms: Forms, at: Attributes) -> list[TensorForm]:
    q, v = _known(forms[0]), _known(forms[2])
    return [TensorForm("float32", (*q.shape[:-1], width)) for width in (v.shape[-1], 1)]


def _like(kind: str, *positions: int, of: int = 0) -> MakesForms:
    """As ONNX's operator makes of what is at `positions`, in the type of `of`."""

    def made(forms: Forms, at: Attributes) -> list[TensorForm]:
        if at.get("channels_last"):
            raise ValueError("channels are last")
        schema = defs.get_schema(kind, _OPSET)
        names = [f"x{position}" for position in positions]
        types = {
            name: helper.make_tensor_type_proto(TensorProto.FLOAT, _known(forms[position]).shape)
            for name, position in zip(names, positions, strict=True)
        }
        kept = {name: value for name, value in at.items() if name in schema.attributes}
        node = helper.make_node(kind, names, ["y"], **kept)
        opsets = [helper.make_opsetid("", _OPSET)]
        found = shape_inference.infer_node_outputs(schema, node, types, opset_imports=opsets, ir_version=8)
        shape = tuple(dim.dim_value for dim in found["y"].tensor_type.shape.dim)
        return [TensorForm(_known(forms[of]).dtype, shape)]

    return made


def _quantised_concat(forms: Forms, at: Attributes) -> list[TensorForm]:
    """Scale and zero point of the result, then each x with its own."""
    given = [_known(form) for form in forms[2::3]]
    axis = at["axis"] % len(given[0].shape)
    size = sum(form.shape[axis] for form in given)
    shape = given[0].shape
    return [TensorForm(given[0].dtype, (*shape[:axis], size, *shape[axis + 1 :]))]


def _embeddings(forms: Forms, at: Attributes) -> list[TensorForm]:
    ids, words = _known(forms[0]), _known(forms[2])
    normal = TensorForm("float32", (*ids.shape, words.shape[1]))
    return [normal, TensorForm("int32", ids.shape[:1]), normal]


def _quantised_lstm(forms: Forms, at: Attributes) -> list[TensorForm]:
    x, directions = _known(forms[0]), 2 if at.get("direction", b"") == b"bidirectional" else 1
    tokens, batch = x.shape[:2]
    state = TensorForm("float32", (directions, batch, at["hidden_size"]))
    return [TensorForm("float32", (tokens, directions, batch, at["hidden_size"])), state, state]


OTHERS: Mapping[tuple[str, str], MakesForms] = {
    **{
        ("com.microsoft", name): _same
        for name in (
            "BiasGelu",
            "BiasSoftmax",
            "FastGelu",
            "Gelu",
            "GroupNorm",
            "MoE",
            "QLinearLeakyRelu",
            "QLinearSigmoid",
            "QLinearSoftmax",
            "QMoE",
            "QuickGelu",
            "RotaryEmbedding",
        )
    },
    ("com.microsoft", "BiasAdd"): _each(0, 1, 2),
    ("com.microsoft", "DynamicQuantizeLSTM"): _quantised_lstm,
    ("com.microsoft", "DynamicQuantizeMatMul"): _quantized_matmul,
    ("com.microsoft", "EmbedLayerNormalization"): _embeddings,
    ("com.microsoft", "FusedConv"): _like("Conv", 0, 1),
    ("com.microsoft", "FusedGemm"): _like("Gemm", 0, 1),
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("com.microsoft", "GatherBlockQuantized"): _gather_blocks,
    ("com.microsoft", "MatMulBnb4"): _matmul_nbits,
    ("com.microsoft", "MatMulIntegerToFloat"): _quantized_matmul,
    ("com.microsoft", "MatMulNBits"): _matmul_nbits,
    ("com.microsoft", "QEmbedLayerNormalization"): _embeddings,
    ("com.microsoft", "QLinearAdd"): _each(0, 3),
    ("com.microsoft", "QLinearAveragePool"): _like("AveragePool", 0),
    ("com.microsoft", "QLinearConcat"): _quantised_concat,
    ("com.microsoft", "QLinearConv"): _like("Conv", 0, 3),
    ("com.microsoft", "QLinearGlobalAveragePool"): _like("GlobalAveragePool", 0),
    ("com.microsoft", "QLinearMul"): _each(0, 3),
    ("com.microsoft", "QLinearWhere"): _each(0, 1, 4, of=1),
    ("com.microsoft", "SkipLayerNormalization"): _skip_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_norm,
    ("com.microsoft", "TransposeMatMul"): _fused_matmul,
    ("edge_attention", "CachedAttention"): _cached_attention,
    # ONNX Runtime's own, in ONNX's domain.
    ("", "SimplifiedLayerNormalization"): _same,
}
