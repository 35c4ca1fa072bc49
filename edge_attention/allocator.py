"""How the C library keeps what a daemon has freed: blocks as large as messages are used again."""

from __future__ import annotations

import contextlib
import ctypes
import os

__all__ = ["keep_blocks"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h

BLOCK = 8 << 20
"""Bytes up to which a block is kept: messages have 4 MiB at most. What is larger goes back to the system."""
FREE = 32 << 20
"""Free bytes at the end of a heap from which they go back."""


def keep_blocks() -> None:
    """Have what messages are made of be used again, by glibc; other C libraries have no such call.

    Left to itself it gives blocks of 128 KiB and more, or the end of a heap, back to the system, whose pages
    are cleared anew for each message. It also gives every thread a heap of its own, each of which keeps what
    was freed there: there are two. `MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_` and `MALLOC_ARENA_MAX`
    in the environment win.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for variable, option, value in (
            ("MALLOC_ARENA_MAX", _M_ARENA_MAX, 2),
            ("MALLOC_MMAP_THRESHOLD_", _M_MMAP_THRESHOLD, BLOCK),
            ("MALLOC_TRIM_THRESHOLD_", _M_TRIM_THRESHOLD, FREE),
        ):
            if variable not in os.environ:
                mallopt(option, value)
