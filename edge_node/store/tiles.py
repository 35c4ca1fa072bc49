"""The layout of a stored sequence: tiles [tiles, heads, tile, dim]; token t is in tile t // tile.

The sum of a tile is the CRC-32 of its tokens in order, each [heads, dim]: of a tile that is not full yet it
goes on with the next token.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from edge_attention.core.tensors import Array, Float32

__all__ = ["read", "sums", "write"]


def write(tiles: Float32, source: Array, start: int) -> None:
    """Put source [tokens, heads, dim] into tiles [_, heads, tile, dim] from token `start` on."""
    tile = tiles.shape[2]
    done = 0
    while done < len(source):
        index, offset = divmod(start + done, tile)
        part = source[done : done + tile - offset]
        tiles[index, :, offset : offset + len(part)] = part.transpose(1, 0, 2)
        done += len(part)


def read(tiles: Float32, start: int, stop: int) -> Float32:
    """The tokens [start, stop), a copy: float32 [tokens, heads, dim]."""
    tile = tiles.shape[2]
    first = start // tile
    used = tiles[first : -(-stop // tile)].transpose(0, 2, 1, 3)
    tokens = used.reshape(-1, tiles.shape[1], tiles.shape[3])[start - first * tile : stop - first * tile]
    return np.ascontiguousarray(tokens)


def sums(known: Sequence[int], tile: int, start: int, source: Array) -> list[int]:
    """The sums of all tiles when source [tokens, heads, dim] follows `start` tokens with sums `known`."""
    found = list(known[: -(-start // tile)])
    done = 0
    while done < len(source):
        offset = (start + done) % tile
        part = np.ascontiguousarray(source[done : done + tile - offset])
        if not offset:
            found.append(0)
        found[-1] = zlib.crc32(part.data, found[-1])
        done += len(part)
    return found
