"""Where an append of a prepared program goes: its call says, so that one program serves as sequences grow."""

from __future__ import annotations

import numpy as np

from edge_attention.core.errors import InvalidProgram, NotFound
from edge_attention.core.messages.program import Append
from edge_attention.core.tensors import Array
from edge_node.store.held import Held
from edge_node.store.store import Store

__all__ = ["placed", "require_sequence"]


def placed(append: Append, source: Array, place: Held, turn: int | None = None) -> tuple[Array, int]:
    """The rows of `source` that are appended, and at which token, as `place` says.

    Raises InvalidProgram: it does not say that, or of other rows than there are.
    """
    array = place.array
    if array.dtype != np.int64 or array.shape != (3,) or append.at is not None or turn is not None:
        raise InvalidProgram(
            f"{append.place} is {array.dtype} {list(array.shape)}: a place is int64 [3], of an append "
            "without a token and outside of a Repeat"
        )
    if place.origin is not None:
        raise InvalidProgram(f"{append.place} is private: where a sequence is written is seen from outside")
    first, count, at = array.tolist()
    if not 0 <= first <= first + count <= len(source):
        raise InvalidProgram(
            f"{append.place} says rows {first} to {first + count} of the source of {append.sequence}, which "
            f"has {len(source)}"
        )
    return source[first : first + count], at


def require_sequence(store: Store, name: str, at: int | None) -> None:
    """Raises NotFound: the sequence, of which there should be `at` tokens, is not there any more."""
    if at and not store.is_sequence(name):
        raise NotFound(f"this node stores nothing called {name!r}, to append to at token {at}")
