"""What was measured of nodes and links, on the disk: `measures.json` of the state folder. Blocks on it.

It only saves measuring: one that is damaged, or of the future, is as none.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from aggregator.inference.measured import NodeMeasures
from aggregator.store.folder import write_durably
from edge_attention.core.errors import EdgeAttentionError

__all__ = ["SAVE_SECONDS", "MeasuresFile"]

log = logging.getLogger(__name__)

SAVE_SECONDS = 60.0
"""Between two times that it is written, at least."""
VERSION = 2
"""1, which did not say so, kept means where this one keeps lines: it is read, too."""
MOST_BYTES = 4 << 20
"""Of the file: MOST_NODES with their names have less."""


class MeasuresFile:
    """The file in `folder`. `clock`: seconds since 1970, by which what is kept ages."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = folder / "measures.json"
        self._clock = clock
        self._written = -1

    def read(self, measures: NodeMeasures) -> None:
        """Have `measures` know what an earlier life knew."""
        try:
            with open(self._path, "rb") as file:
                data = json.loads(file.read(MOST_BYTES))
            aged = self._clock() - float(data["written"])
            if data.get("version", 1) > VERSION:
                raise ValueError("a later version wrote it")
            if not 0 <= aged < math.inf:
                raise ValueError("it was written in the future")
            measures.restore(data, aged, time.monotonic())
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("%s is of no use (%s): nodes are measured anew", self._path.name, error)

    def text(self, measures: NodeMeasures) -> bytes | None:
        """What is to be written; None: what is there says the same."""
        if measures.changes == self._written:
            return None
        self._written = measures.changes
        known = measures.saved(time.monotonic())
        return json.dumps({"version": VERSION, "written": self._clock(), **known}).encode()

    def write(self, text: bytes) -> None:
        """Write it, in a thread. A disk that is full is no reason to end anything."""
        try:
            write_durably(self._path, text)
        except EdgeAttentionError as error:
            log.warning("what was measured of nodes is not written down: %s", error.message)
