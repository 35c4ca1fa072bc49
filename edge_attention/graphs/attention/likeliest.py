"""The token that logits say is likeliest, so that nodes may go on with it before anybody asks them to."""

from __future__ import annotations

import onnx

from edge_attention.graphs.onnx_builder import FLOAT, INT64, Builder

__all__ = ["likeliest"]


def likeliest() -> onnx.ModelProto:
    """logits f32 [N, one, V] -> token i64 [N, one]: of several as likely the first, as of NumPy's argmax."""
    g = Builder("likeliest")
    logits = g.input("logits", FLOAT, ["N", "one", "V"])
    g.output("token", g("ArgMax", logits, axis=2, keepdims=0), INT64, ["N", "one"])
    return g.model()
