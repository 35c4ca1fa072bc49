"""Which column of a file is the ids of its rows."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from edge_attention.core.errors import InvalidArgument

__all__ = ["find_id_column"]


def find_id_column(
    names: Sequence[str], wanted: str | None, path: Path, vectors: Container[str] = ()
) -> int | None:
    """The place of the column `wanted`, by name or as `#1`; None: of `id` or `ids`, empty: of none.

    `vectors`: columns of several values a row. Such a one called `ids` is tokens, and the ids of rows only
    where it is asked for (and then refused).

    Raises:
        InvalidArgument: there is no such column.
    """
    if wanted is None:
        return next((i for i, n in enumerate(names) if n in ("id", "ids") and n not in vectors), None)
    if not wanted:
        return None
    if wanted in names:
        if names.count(wanted) > 1:
            raise InvalidArgument(
                f"{path.name} has {names.count(wanted)} columns {wanted!r}; say which by its place, as ?id=#2"
            )
        return names.index(wanted)
    place = wanted[1:]
    if wanted[0] == "#" and place.isdecimal() and len(place) < 9 and 0 < int(place) <= len(names):
        return int(place) - 1
    known = ", ".join(name or "(no name)" for name in names)[:500]
    raise InvalidArgument(f"{path.name} has no column {wanted!r} for ids; it has {known}")
