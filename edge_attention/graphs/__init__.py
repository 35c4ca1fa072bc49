"""Builds, reads and differentiates ONNX graphs."""
