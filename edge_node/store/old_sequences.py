"""Sequences as 0.1 kept them before there was a journal: a JSON manifest each, and no sum to verify them by.

What a power cut took of them reads as zeros. So a sequence ends here before its first token of which a head
is all zeros: a token may be known missing that was there, but none is served that was not.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.core.tensors import require_stored

log = logging.getLogger(__name__)


def old_sequences(folder: Path) -> Iterator[tuple[dict[str, Any], Path, Iterator[np.ndarray[Any, Any]]]]:
    """Of each its manifest, its file, and its tokens [tokens, heads, dim], a tile at a time."""
    for path in sorted(folder.glob("*.json")):
        try:
            found = json.loads(path.read_text())
            require_stored(found["name"])
            heads, tile, dim = layout = tuple(found["layout"])
            numbers = (*layout, found["tokens"] + 1)
            if not all(type(n) is int and 0 < n < 2**31 for n in numbers) or len(layout) != 3:
                raise ValueError("its manifest is damaged")
            one, tokens = math.prod(layout), found["tokens"]
            data = np.memmap(path.with_suffix(".tiles"), np.float32, "r")
            tiles = data[: -(-tokens // tile) * one].reshape(-1, heads, tile, dim)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("skipped the stored sequence %s: %s", path, error)
            continue
        yield found, path.with_suffix(".tiles"), _tokens(tiles, tokens)


def _tokens(tiles: np.ndarray[Any, Any], tokens: int) -> Iterator[np.ndarray[Any, Any]]:
    tile = tiles.shape[2]
    for index, there in enumerate(tiles):
        part = there[:, : min(tokens - index * tile, tile)].transpose(1, 0, 2)
        empty = np.flatnonzero(~part.any(axis=2).all(axis=1))
        yield part[: empty[0]] if len(empty) else part
        if len(empty):
            return
