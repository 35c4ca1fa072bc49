"""How often work on private data failed for each caller today, and when it is too often.

Whether a task on private data failed is known to who sent it: a bit, which a graph can choose. So there are
so many a day. The count survives a restart: what may have been under way when a process was ended has failed.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from edge_attention.core.errors import OutOfMemory, PrivateLimit

__all__ = ["ALL_CALLERS", "DEFAULT", "Failures"]

log = logging.getLogger(__name__)

DEFAULT = 100
"""Failures a day that each caller may have."""
ALL_CALLERS = 10
"""Times as many for all callers together: an aggregator that misbehaves can invent callers."""
_DAY = 86_400.0
NOTED = 16
"""Callers that the file says have tasks under way though they have none any more, at most."""
LETTERS = 256
"""Characters of a caller's name that count: an aggregator that misbehaves can make up long ones."""


class Failures:
    """Counts the failures of tasks on private data, by caller and by day of UTC. Any thread may call it.

    `limit`: how many each caller may have a day; 0: nothing unreleased runs on private data at all.
    `path`: a file in which the count survives the process.
    """

    def __init__(
        self, limit: int = DEFAULT, path: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.limit = limit
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._day = int(clock() // _DAY)
        self._failed: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        # As many of each as the file says are under way, at least. Who runs one after the other writes once.
        self._noted: Counter[str] = Counter()
        self._closed = False
        if path is not None:
            self._load(path)

    def begin(self, caller: str) -> None:
        """A task of `caller` is about to run an unreleased graph on private data; call `end` after it.

        Raises:
            PrivateLimit: too many failed today, those under way counted; it must not run.
            OutOfMemory: it cannot be noted down; it must not run.
        """
        caller = caller[:LETTERS]
        with self._lock:
            self._turn()
            # Those under way may all fail.
            own = self._failed[caller] + self._running[caller]
            everybody = self._failed.total() + self._running.total()
            if own >= self.limit or everybody >= ALL_CALLERS * self.limit or self._closed:
                raise PrivateLimit(self._refusal(caller, own))
            self._running[caller] += 1
            try:
                if self._running[caller] > self._noted[caller]:
                    # After a crash what is noted has failed: not all who ever called today.
                    noted = self._noted | self._running
                    self._save(noted if len(noted) <= len(self._running) + NOTED else self._running)
            except OSError as error:
                self._over(caller)
                what = "a task on private data cannot be noted down"
                raise OutOfMemory(f"{what} in this node's --store: {error.strerror}") from None

    def end(self, caller: str, failed: bool) -> None:
        """A task of `caller` has ended; if it `failed`, that is on the disk when this returns."""
        caller = caller[:LETTERS]
        with self._lock:
            self._turn()
            self._over(caller)
            if failed:
                self._failed[caller] += 1
            try:
                if failed:
                    self._save(self._running, sync=True)
            except OSError as error:
                # Counted here as long as the process lives; and the file still says that it is under way.
                log.error("a failure on private data cannot be noted down: %s", error.strerror)

    def close(self) -> None:
        """The process ends in order: only what is under way now counts as failed at the next start."""
        with self._lock:
            try:
                self._save(self._running)
            except OSError as error:
                log.warning("%s cannot be written: %s", self._path, error.strerror)

    def count(self, caller: str) -> int:
        """The failures of `caller` today."""
        with self._lock:
            self._turn()
            return self._failed[caller[:LETTERS]]

    def _refusal(self, caller: str, own: int) -> str:
        what = "this node runs no unreleased graph on private data"
        if not self.limit:
            return f"{what}: --private-failures is 0; released graphs run"
        whom = f"caller {caller!r}" if caller else "callers without a name"
        if own >= self.limit:
            why = f"for {whom} until 00:00 UTC: {own} of its tasks failed today or are under way, of"
        else:
            why = "until 00:00 UTC: of all callers' tasks failed too many today, which is ten times"
        return f"{what} {why} --private-failures {self.limit}; released graphs run"

    def _over(self, caller: str) -> None:
        self._running[caller] -= 1
        self._running += Counter()  # without those that are 0

    def _turn(self) -> None:
        """Forget the failures of earlier days. A clock that goes back gives nothing back."""
        if (today := int(self._clock() // _DAY)) > self._day:
            self._day = today
            self._closed = False
            self._failed.clear()
            self._noted.clear()  # of a day that counts no more

    def _load(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text())
            day, failed = int(found["day"]), Counter[str]()
            for part in ("failed", "running"):
                failed.update({str(caller): int(n) for caller, n in found[part].items() if int(n) > 0})
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # It may have said that there were too many.
            log.warning(
                "%s cannot be read (%s): no unreleased graph runs on private data until 00:00 UTC, "
                "or until the file is removed and the node started again",
                path, error,
            )  # fmt: skip
            self._closed = True
            return
        if day >= self._day:
            self._day = day
            self._failed = failed
            if total := failed.total():
                log.info("%d tasks on private data failed today", total)

    def _save(self, running: Counter[str], sync: bool = False) -> None:
        if self._path is None or self._closed:
            return
        said = {"day": self._day, "failed": self._failed, "running": running}
        temporary = self._path.with_suffix(".new")
        with open(temporary, "w", opener=_private) as file:
            file.write(json.dumps(said))
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(self._path)
        self._noted = Counter(running)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
