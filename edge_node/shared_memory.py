"""Arrays whose memory has a descriptor (memfd), so that another process can map it instead of getting a copy.

    x = empty((1000, 1000), np.float32)     # written here, by nobody else
    where = find(x[10:])                    # its region, and at which byte of it the view begins

Whoever is handed the descriptor of a region can read it and never write: the kernel refuses (seals). Of small
arrays, and where descriptors or such memory run out, `empty` gives plain memory: `find` then says None, and a
copy has to do.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import mmap
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.core.tensors import Array

__all__ = [
    "LEAST",
    "Region",
    "allocate",
    "empty",
    "find",
    "gather",
    "map_file",
    "map_region",
    "seal",
    "shared",
]

LEAST = 64 * 1024
"""Bytes from which an array is worth a descriptor and a mapping."""

_FUTURE_WRITE = getattr(fcntl, "F_SEAL_FUTURE_WRITE", 0x0010)  # Linux 5.1
_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_PROBES = 16
"""How many views of views `find` looks through; five were seen: of a file that came in bulk, reshaped."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value


class Region:
    """`size` bytes mapped at `address`; unmapped, and the descriptor closed, when the last array of it goes.

    Python's own `mmap` is not used because it keeps a second descriptor for each.
    """

    __slots__ = ("__array_interface__", "__weakref__", "address", "descriptor", "shareable", "size")

    live = 0
    """Regions of this process now that have a descriptor."""

    def __init__(self, descriptor: int, size: int, *, writable: bool, keep: bool = True) -> None:
        """Maps the first `size` bytes of `descriptor`, which from now on is the region's to close.

        `keep`: the descriptor stays open, to be handed on; without, it is closed at once.

        Raises:
            OSError: it cannot be mapped; the descriptor is closed.
        """
        self.address = 0
        self.size = size
        self.shareable = False
        self.descriptor = descriptor
        Region.live += 1
        # A private mapping that is never written is the file itself, and allowed whatever its seals.
        access = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        kind = mmap.MAP_SHARED if writable else mmap.MAP_PRIVATE
        address = _libc.mmap(None, max(size, 1), access, kind, descriptor, 0)
        if address is None or address == _FAILED:
            number = ctypes.get_errno()
            self._close()
            raise OSError(number, os.strerror(number))
        self.address = address
        self.__array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, not writable),
            "version": 3,
        }
        if not keep:
            self._close()

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """What lies at byte `offset`: the region lives as long as this does."""
        count = math.prod(shape) * dtype.itemsize
        return np.asarray(self)[offset : offset + count].view(dtype).reshape(shape)

    def _close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            Region.live -= 1

    def let_go(self) -> None:
        """Have what is mapped to be read take no memory until it is read again."""
        if self.address:
            _libc.madvise(self.address, max(self.size, 1), mmap.MADV_DONTNEED)

    def unmap(self) -> None:
        """Unmap it at once. The caller sees to it that no array of it is used any more."""
        if self.address:
            _libc.munmap(self.address, max(self.size, 1))
            self.address = 0
        self._close()

    def __del__(self) -> None:
        self.unmap()


def allocate(size: int) -> int:
    """A descriptor of `size` bytes of zeros that can neither grow nor shrink.

    Raises:
        OSError: there is no more of them.
    """
    descriptor = os.memfd_create("edge-attention", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, max(size, 1))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SIZE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def seal(descriptor: int) -> None:
    """Have nobody write to `descriptor` again, ever.

    Raises:
        OSError: somebody has it mapped for writing still.
    """
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)


def map_region(descriptor: int, size: int, keep: bool = True) -> Region:
    """`descriptor`, to be read; see Region."""
    return Region(descriptor, size, writable=False, keep=keep)


def map_file(path: Path) -> Region:
    """A file, to be read and never written by anybody; it can be handed on while descriptors are to be had.

    Raises:
        OSError: it cannot be opened or mapped.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    size, keep = os.fstat(descriptor).st_size, Region.live < _most()
    region = Region(descriptor, size, writable=False, keep=keep)
    region.shareable = keep
    return region


def empty(shape: tuple[int, ...] | int, dtype: Any) -> Array:
    """As `numpy.empty`, in a region of its own where that is worth it and to be had."""
    dims, kind = (shape,) if isinstance(shape, int) else shape, np.dtype(dtype)
    size = math.prod(dims) * kind.itemsize
    if size < LEAST or Region.live >= _most():
        return np.empty(dims, kind)
    try:
        region = Region(allocate(size), size, writable=True)
    except (OSError, AttributeError):  # no memfd: not Linux, or none left
        return np.empty(dims, kind)
    try:
        # From now on only the mapping above writes; who is handed the descriptor cannot.
        fcntl.fcntl(region.descriptor, fcntl.F_ADD_SEALS, _FUTURE_WRITE)
        region.shareable = True
    except OSError:
        return np.empty(dims, kind)
    return region.array(0, dims, kind)


def shared(array: Array) -> Array:
    """`array`, copied to where others can map it if that is worth it and it is not there."""
    if array.nbytes < LEAST or (array.flags.c_contiguous and find(array) is not None):
        return array
    copy = empty(array.shape, array.dtype)
    if find(copy) is None:
        return array
    np.copyto(copy, array)
    return copy


def gather(source: Array, rows: Array) -> Array:
    """`source[rows]` for rows that are there, in a region where that is worth it."""
    found = empty((len(rows), *source.shape[1:]), source.dtype)
    np.take(source, rows, axis=0, out=found, mode="clip")  # not "raise": that would make a copy first
    return found


def find(array: Array) -> tuple[Region, int] | None:
    """The region that a contiguous `array` lies in, if it may be handed on, and its first byte there."""
    base: Any = array
    for _ in range(_PROBES):
        base = base.obj if isinstance(base, memoryview) else base.base
        if isinstance(base, Region):
            if not base.shareable or not array.flags.c_contiguous:
                return None
            return base, array.__array_interface__["data"][0] - base.address
        if not isinstance(base, np.ndarray | memoryview):
            return None
    return None


def _most() -> int:
    """Regions at a time: half of the files that this process may open, the rest are for its connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft // 2
