"""Refuses ONNX files that would make ONNX Runtime read something else than themselves. Needs no `onnx`."""

from __future__ import annotations

import re

from edge_attention.core.errors import InvalidGraph

__all__ = ["require_self_contained"]

# A StringStringEntryProto with key "location", whatever the varints' length: where an initializer says it is
# kept in a file, or (ONNX Runtime's own extension) at an address in memory.
_EXTERNAL = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")


def require_self_contained(data: bytes, what: str) -> None:
    """Refuse a file that keeps initializers elsewhere, or is of ONNX Runtime's own format.

    Raises:
        InvalidGraph: naming `what`.
    """
    if _EXTERNAL.search(data):
        raise InvalidGraph(
            f"{what} keeps initializers in other files (or calls something 'location'): put all into "
            "one ONNX file"
        )
    if data[4:8] == b"ORTM":
        raise InvalidGraph(f"{what} is in ONNX Runtime's own format; use ONNX")
