"""Graphs that have ended the process they ran in, counted by digest: after MOST_DEATHS one is refused.

Kept in the node's --store folder, where it has one: a restart of the daemon forgives nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path

from edge_attention.core.errors import GraphDied, InvalidArgument

log = logging.getLogger(__name__)

MOST_DEATHS = 2
MOST_GRAPHS = 4096
"""Digests remembered at most; those that ended a process longest ago are forgotten first."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


class RefusedGraphs:
    """`folder`: where the count is kept, None for nowhere. `allowed`: digests that are never refused."""

    def __init__(self, folder: Path | None = None, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(_digest(text) for text in allowed)
        self._file = folder / "ended-by-graphs.json" if folder else None
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._deaths = {k: n for k, n in _read(self._file).items() if k not in self._allowed}
        if self._allowed:
            self.keep()

    def refusal(self, digest: str) -> GraphDied | None:
        """Why this graph is not run, or None."""
        deaths = self._deaths.get(digest, 0)
        if deaths < MOST_DEATHS:
            return None
        return GraphDied(
            f"graph {digest} is refused: it has ended the process it ran in {deaths} times; the operator of "
            f"the node can allow it with --allow-graph {digest}"
        )

    def blame(self, digest: str) -> None:
        """Count that the graph `digest` has ended a process. Quick: `keep` has the disk know."""
        if digest in self._allowed:
            return
        with self._lock:
            self._deaths[digest] = self._deaths.pop(digest, 0) + 1
            while len(self._deaths) > MOST_GRAPHS:
                del self._deaths[next(iter(self._deaths))]
            if self._deaths[digest] == MOST_DEATHS:
                log.warning("%s", self.refusal(digest))

    def keep(self) -> None:
        """Have the disk know what was counted. Blocks for as long as a disk may take."""
        with self._writing:
            with self._lock:
                deaths = dict(self._deaths)
            self._write(deaths)

    @property
    def refused(self) -> int:
        """How many graphs are refused now."""
        return sum(deaths >= MOST_DEATHS for deaths in self._deaths.values())

    def _write(self, deaths: dict[str, int]) -> None:
        if self._file is None:
            return
        temporary = self._file.with_suffix(".new")
        try:
            with open(temporary, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                json.dump(deaths, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._file)
        except OSError as error:
            log.warning("%s cannot be written, a restart forgives graphs: %s", self._file, error.strerror)


def _digest(text: str) -> str:
    found = text.removeprefix("sha256:").lower()
    if not _DIGEST.fullmatch(found):
        raise InvalidArgument(f"--allow-graph {text!r} is not the digest of a graph: 64 hex digits")
    return found


def _read(file: Path | None) -> dict[str, int]:
    if file is None:
        return {}
    with contextlib.suppress(FileNotFoundError):
        try:
            found = json.loads(file.read_text())
            if all(_DIGEST.fullmatch(key) and type(n) is int and n > 0 for key, n in found.items()):
                return dict(found)
            raise ValueError("entries that are none")
        except (ValueError, AttributeError, TypeError) as error:
            log.warning("%s is damaged, no graph is refused for what it did before: %s", file, error)
    return {}
