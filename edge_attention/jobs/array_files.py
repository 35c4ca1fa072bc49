"""Arrays of .npy and .npz files; what is wrong with a file is said in one line that names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Array

__all__ = ["load_npy", "load_npz"]


def load_npy(path: Path) -> Array:
    """The array of an .npy file.

    Raises:
        InvalidArgument: the file cannot be read, or is no .npy file.
    """
    found = _load(path, "npy", None)
    if not isinstance(found, np.ndarray):
        raise InvalidArgument(f"{path} is an .npz file; an .npy file of one array is needed")
    return found


def load_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, Array]:
    """The arrays `names` of an .npz file; None: all it has.

    Raises:
        InvalidArgument: the file cannot be read, is no .npz file, or lacks one of them.
    """
    found = _load(path, "npz", names)
    if isinstance(found, np.ndarray):
        wanted = ", ".join(names or ("named arrays",))
        raise InvalidArgument(f"{path} is an .npy file; an .npz file of {wanted} is needed")
    return found


def _load(path: Path, kind: str, names: Sequence[str] | None) -> Array | dict[str, Array]:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            for name in names or ():
                if name not in found.files:
                    have = ", ".join(found.files)[:200] or "none"
                    raise InvalidArgument(f"{path} has no array {name!r}; it has: {have}")
            return {name: found[name] for name in (found.files if names is None else names)}
    except InvalidArgument:
        raise
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception:
        # NumPy, zipfile and zlib each have errors of their own for a file that is empty, damaged or other.
        raise InvalidArgument(
            f"{path} cannot be read: it is not an .{kind} file of numbers, or is damaged"
        ) from None
