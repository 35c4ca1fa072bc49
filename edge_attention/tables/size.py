"""How much a small file may hold: a file is refused before it is unpacked, not killed while it is."""

from __future__ import annotations

from pathlib import Path

from edge_attention.box import usable_memory
from edge_attention.core.errors import ResourceExhausted

__all__ = ["require_room"]


def require_room(path: Path, content: int) -> None:
    """Refuse a file whose `content` in bytes, unpacked, is over half of the memory there is here.

    Raises:
        ResourceExhausted: it is.
    """
    most = usable_memory() // 2
    if content > most:
        raise ResourceExhausted(
            f"{path.name} holds {content:,} bytes, unpacked, in a file of {path.stat().st_size:,}; half "
            f"of the memory here, {most:,}, is the limit: split the file"
        )
