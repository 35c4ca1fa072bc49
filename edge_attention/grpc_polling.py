"""How gRPC waits for its sockets, which is said before it is loaded."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

__all__ = ["poll_directly"]

_LACKING = "-event_engine_client,-event_engine_listener"
_NEWEST = (1, 85)
"""The newest gRPC this was tried with. A later one may have no such choice, and would say so in each log."""


def poll_directly() -> None:
    """Have the thread that takes gRPC's events read and write its sockets, too; to be called before it loads.

    Its event engine has threads of its own for that, which wake that thread, which wakes the event loop: of
    messages of 1 KB to two processes and back each such hop is a sixth of the time.
    GRPC_EXPERIMENTS in the environment wins.
    """
    if () < _version() <= _NEWEST:
        os.environ.setdefault("GRPC_EXPERIMENTS", _LACKING)


def _version() -> tuple[int, ...]:
    """Of the gRPC there is, as its file says: to ask for a package's version takes 1 MB. (): nobody knows."""
    spec = find_spec("grpc")
    if spec is None or spec.origin is None:
        return ()
    try:
        said = (Path(spec.origin).parent / "_grpcio_metadata.py").read_text()
    except OSError:  # in an archive, or built in another way
        return ()
    found = re.search(r"(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else ()
