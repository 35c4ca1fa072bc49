"""The audit log: who was let in, who was not, and what was done that matters. JSON lines, appended.

    {"time": "2026-11-25T16:00:00.123Z", "event": "refused", "outcome": "refused", "subject": "node/a", ...}

A line is one write to a file opened for appending, so the command line may write beside the daemon. A file
that has grown large is set aside once; refusals beyond a rate are counted instead of written, so that
nobody without a certificate can fill the disk.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

LARGE = 64 * 1024 * 1024
BURST, A_SECOND = 200.0, 5.0
"""Refusals written at once, and on average."""

_FIELD_LIMIT = 1000


class Audit:
    """Appends to `path`; None: to nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._file = -1
        self._allowed, self._at, self._suppressed = BURST, time.monotonic(), 0

    def write(
        self,
        event: str,
        *,
        outcome: str = "ok",
        subject: str = "",
        peer: str = "",
        reason: str = "",
        **more: object,
    ) -> None:
        """One line. It is in the file when this returns; a disk that is full is told to the log."""
        if self._path is None:
            return
        with self._mutex:
            if outcome == "refused" and not self._afford():
                return
            if self._suppressed and outcome == "refused":
                more["suppressed_before"] = self._suppressed
                self._suppressed = 0
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "event": event,
                "outcome": outcome,
                "subject": subject[:_FIELD_LIMIT],
                "peer": peer[:_FIELD_LIMIT],
                "reason": reason[:_FIELD_LIMIT],
                **more,
            }
            try:
                self._append(json.dumps(line).encode() + b"\n")
            except OSError as error:
                log.error("the audit log %s cannot be written: %s", self._path, error.strerror)

    def _afford(self) -> bool:
        now = time.monotonic()
        self._allowed = min(BURST, self._allowed + (now - self._at) * A_SECOND)
        self._at = now
        if self._allowed < 1:
            self._suppressed += 1
            return False
        self._allowed -= 1
        return True

    def _append(self, data: bytes) -> None:
        assert self._path is not None
        if self._file < 0:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            if os.geteuid() == 0:  # an operator's command: what it makes must stay writable for the daemon
                owner = self._path.parent.stat()
                os.fchown(self._file, owner.st_uid, owner.st_gid)
        os.write(self._file, data)
        if os.fstat(self._file).st_size > LARGE:
            os.replace(self._path, self._path.with_suffix(".jsonl.1"))
            self.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
