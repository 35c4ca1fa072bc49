"""Products of whole numbers that are rounded to 8 bits again, as a product and what rounds it.

    QLinearMatMul(a, b)   ->   QuantizeLinear(float(MatMulInteger(a, b)) * (scale of a * of b / of y), 1)

Parts that share what is summed over have whole numbers, which add exactly, and their sum is rounded. That is
to the bit what the fused operator gives: it multiplies by the same one number, and rounds alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from edge_attention.graphs.axes.lowering import Lowering, Rewrite, Unlowerable

__all__ = ["QUANTISED"]

_LEVELS = ("int8", "uint8")


def _matmul(node: NodeProto, at: Mapping[str, Any], write: Lowering) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.input[:8]
    _require_plain(write, a, a_scale, b, b_scale, b_zero, y_scale, y_zero)
    total = write("MatMulInteger", a, b, a_zero, b_zero)
    factor = write("Div", write("Mul", a_scale, b_scale), y_scale)
    _rounded(write, total, factor, y_zero, node.output[0])


def _gemm(node: NodeProto, at: Mapping[str, Any], write: Lowering) -> None:
    """ONNX Runtime's QGemm: a bias of whole numbers; without a scale of its result that is float32."""
    a, a_scale, a_zero, b, b_scale, b_zero = node.input[:6]
    y_scale, y_zero = (node.input[p] if write.has(node, p) else "" for p in (7, 8))
    _require_plain(write, a, a_scale, b, b_scale, b_zero, y_scale, y_zero)
    if bool(y_scale) != bool(y_zero):
        raise Unlowerable
    a, b = (
        write("Transpose", name, perm=[1, 0]) if at.get(f"trans{which}") else name
        for name, which in ((a, "A"), (b, "B"))
    )
    total = write("MatMulInteger", a, b, a_zero, b_zero)
    if write.has(node, 6):
        total = write("Add", total, node.input[6])
    factor = a_scale
    if at.get("alpha", 1.0) != 1.0:
        factor = write("Mul", write.const(at["alpha"], np.float32), factor)
    factor = write("Mul", factor, b_scale)
    if y_scale:
        _rounded(write, total, write("Div", factor, y_scale), y_zero, node.output[0])
    else:
        write("Mul", write("Cast", total, to=TensorProto.FLOAT), factor, out=node.output[0])


def _require_plain(
    write: Lowering, a: str, a_scale: str, b: str, b_scale: str, b_zero: str, y_scale: str, y_zero: str
) -> None:
    """Leave what has other scales than one of a, one of y, and one of b or one a column."""
    if len(write.shape(a)) < 2 or len(write.shape(b)) < 2:
        raise Unlowerable
    if any(write.form(name).dtype != "float32" for name in (a_scale, b_scale, y_scale) if name):
        raise Unlowerable
    if any(prod(write.shape(name)) != 1 for name in (a_scale, y_scale, y_zero) if name):
        raise Unlowerable
    if any(len(write.shape(name)) > 1 for name in (a_scale, b_scale, b_zero, y_scale, y_zero) if name):
        raise Unlowerable
    if y_zero and write.form(y_zero).dtype not in _LEVELS:
        raise Unlowerable


def _rounded(write: Lowering, total: str, factor: str, zero: str, out: str) -> None:
    real = write("Mul", write("Cast", total, to=TensorProto.FLOAT), factor)
    one = write.const(np.ones(write.shape(zero)), np.float32)
    write("QuantizeLinear", real, one, zero, out=out)


QUANTISED: Mapping[tuple[str, str], Rewrite] = {
    ("", "QLinearMatMul"): _matmul,
    ("com.microsoft", "QGemm"): _gemm,
}
