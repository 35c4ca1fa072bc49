"""Names in a graph: short, and fit to be shown in an error or a log."""

from __future__ import annotations

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.reading.bounds import MAX_NAME

__all__ = ["check_name"]


def check_name(name: str, where: str, what: str) -> None:
    """Refuse a name that is too long, or has characters (a line feed, an escape) that a terminal obeys.

    Raises:
        InvalidGraph: saying what it is the name of.
    """
    if len(name) > MAX_NAME:
        raise InvalidGraph(f"{where}: {what} has {len(name):,} characters, more than {MAX_NAME} (MAX_NAME)")
    if not name.isprintable():
        raise InvalidGraph(f"{where}: {what} has characters that cannot be printed, {name[:80]!a}; rename it")
