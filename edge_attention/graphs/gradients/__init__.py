"""Gradients of ONNX graphs: `onnx-ad`, and our rules where it is wrong or has none."""
