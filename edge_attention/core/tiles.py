"""The layout of a stored sequence: tiles [tiles, heads, tile, dim]; token t is in tile t // tile."""

from __future__ import annotations

from edge_attention.core.tensors import Array, Float32

__all__ = ["write"]


def write(tiles: Float32, source: Array, start: int) -> None:
    """Put source [tokens, heads, dim] into tiles [_, heads, tile, dim] from token `start` on."""
    tile = tiles.shape[2]
    done = 0
    while done < len(source):
        index, offset = divmod(start + done, tile)
        part = source[done : done + tile - offset]
        tiles[index, :, offset : offset + len(part)] = part.transpose(1, 0, 2)
        done += len(part)
