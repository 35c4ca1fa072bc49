"""A file's bytes as memory that keeps no descriptor: Python's own mmap keeps one for each until 3.13.

    memory = mapped(descriptor, size)        # the descriptor may be closed at once
    array = np.frombuffer(memory, np.float32)

The mapping ends when the last array over it is gone.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any

_libc: Any = ctypes.CDLL(None, use_errno=True)
_map, _unmap = _libc.mmap, _libc.munmap
_map.restype = ctypes.c_void_p
_map.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *3 * (ctypes.c_int,), ctypes.c_long)
_unmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value

MappedMemory = Any
"""A buffer of bytes, writable. Touching it where the file has none, or the disk is full, ends the process."""


def mapped(descriptor: int, size: int) -> MappedMemory:
    """The first `size` bytes of an open file, shared with whoever else maps it; OSError if it cannot be."""
    address = _map(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    memory = (ctypes.c_char * size).from_address(address)
    weakref.finalize(memory, _unmap, address, size).atexit = False
    return memory
