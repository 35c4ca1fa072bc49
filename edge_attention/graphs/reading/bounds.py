"""How large a graph may be. One file, so that each bound has one name; the error that a bound raises says it.

Measured with ONNX Runtime 1.32 on one core: 10,000 nodes load in 0.1 to 0.3 s, 50,000 in 1.7 to 4.4 s and
300 MB, and the time grows with the square of their number. Exported models of billions of weights and their
gradient graphs have 5,000 to 30,000.
"""

from __future__ import annotations

__all__ = [
    "MAX_ATTRIBUTES",
    "MAX_BYTES",
    "MAX_CALLS",
    "MAX_DEPTH",
    "MAX_ELEMENTS",
    "MAX_FOLDED",
    "MAX_IR_VERSION",
    "MAX_MESSAGES",
    "MAX_NAME",
    "MAX_NESTING",
    "MAX_NODES",
    "MAX_OPSET",
    "MAX_PACKED",
    "MAX_PARTS",
    "MAX_RANK",
    "MAX_VALUES",
    "MIN_CONVERTED",
    "MIN_IR_VERSION",
    "MIN_OPSET",
]

MIN_OPSET, MAX_OPSET = 13, 26  # below 13, `axes` are attributes; above 26, ONNX Runtime does not read it
MIN_CONVERTED = 7  # from there on onnx's converter raises a model that is to be trained
MIN_IR_VERSION, MAX_IR_VERSION = 3, 13

MAX_BYTES = 256 << 20
"""Bytes of an ONNX file."""

MAX_PARTS = 4_000_000
"""Fields of the file, numbers of a list that is not packed included: 30 bytes of memory each, once parsed."""

MAX_MESSAGES = 2_000_000
"""Messages in the file, some 50 bytes each; nodes, attributes and tensors, 200 bytes, count four times."""

MAX_PACKED = 8 << 20
"""Bytes of numbers of variable length, which take up to sixteen times as much while they are read."""

MAX_NESTING = 56
"""Messages within messages. Protobuf itself ends at 100, and forgets unknown fields down to 64."""

MAX_NODES = 50_000
"""Nodes in the graph, in the graphs within it, and in functions as often as they are called."""

MAX_DEPTH = 12
"""Graphs within graphs: bodies of Loop, Scan and If."""

MAX_CALLS = 32
"""Functions that call functions."""

MAX_VALUES = 8192
"""Inputs or outputs of a graph, a node or a function."""

MAX_ATTRIBUTES = 64
"""Attributes of a node."""

MAX_NAME = 1024
"""Characters of a name."""

MAX_RANK = 16

MAX_ELEMENTS = 1 << 40
"""Elements of a shape, dimensions of zero left out."""

MAX_FOLDED = 512 << 20
"""Bytes of what nodes compute from constants alone: ONNX Runtime does so when it loads the graph."""
