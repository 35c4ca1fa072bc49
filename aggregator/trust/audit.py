"""The audit log: who was let in, who was not, and what was done that matters. JSON lines, appended.

    {"time": "2026-11-25T16:00:00.123Z", "event": "refused", "outcome": "refused", "subject": "node/a", ...}

A line is one write to a file opened for appending, under a lock, so the command line may write beside the
daemon; on a full disk it is written whole or not at all. A file that has grown large is set aside, and the
last few of those are kept. What is written of anybody is bounded, in length and in rate, so that nobody fills
the disk or drives out what was written of others; only what the authority itself has done (certificates and
tokens issued and revoked) is always written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

from aggregator.trust.rate import Rate
from edge_attention.core.printable import json_line

log = logging.getLogger(__name__)

LARGE = 64 * 1024 * 1024
BURST, A_SECOND = 200.0, 5.0
"""Lines written at once, and on average, of each subject; strangers are one."""
ALWAYS = frozenset({"enrolled", "renewed", "revoked", "token_created", "token_revoked"})
KEPT = 4
"""Large files that are kept: audit.jsonl.1, the newest, to .4."""

_FIELD_LIMIT = 1000
_ITEMS, _ITEM_LIMIT = 50, 100


class Audit:
    """Appends to `path`; None: to nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._file = -1
        self._failing = False
        self._rate = Rate(BURST, A_SECOND)

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
        suppressed = 0 if event in ALWAYS else self._rate.afford((subject, outcome == "refused"))
        if suppressed is None:
            return
        if suppressed:
            more["suppressed_before"] = suppressed
        with self._mutex:
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "event": event,
                "outcome": outcome,
                "subject": subject[:_FIELD_LIMIT],
                "peer": peer[:_FIELD_LIMIT],
                "reason": reason[:_FIELD_LIMIT],
                **_bounded(more),
            }
            try:
                self._append(json_line(json.dumps(line)).encode() + b"\n")
                self._failing = False
            except OSError as error:
                if not self._failing:  # once: who calls decides how often this happens
                    log.error("the audit log %s cannot be written: %s", self._path, error.strerror)
                self._failing = True

    def _append(self, data: bytes) -> None:
        assert self._path is not None
        if self._file >= 0 and not self._current():  # somebody else has set it aside
            self.close()
        if self._file < 0:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            if os.fstat(self._file).st_size == 0:
                with contextlib.suppress(OSError):  # whatever the umask, a group may be let read it
                    os.fchmod(self._file, 0o640)
            if os.geteuid() == 0:  # an operator's command: what it makes must stay writable for the daemon
                owner = self._path.parent.stat()
                os.fchown(self._file, owner.st_uid, owner.st_gid)
        self._write_whole(data)
        if os.fstat(self._file).st_size > LARGE:
            self._set_aside()

    def _write_whole(self, data: bytes) -> None:
        """All of it or nothing: what is left of a line on a full disk would spoil the next one, too."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            before = os.fstat(self._file).st_size
            if os.write(self._file, data) < len(data):
                os.ftruncate(self._file, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _current(self) -> bool:
        """Whether the file that is open is still the one of that name."""
        assert self._path is not None
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _set_aside(self) -> None:
        assert self._path is not None
        # Held by whoever sets this very file aside; it goes with the file.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if self._current():
            names = [self._path, *(self._path.with_suffix(f".jsonl.{n}") for n in range(1, KEPT + 1))]
            for older, newer in reversed(list(zip(names[1:], names, strict=False))):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(newer, older)
        self.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _bounded(more: dict[str, object]) -> dict[str, object]:
    """`more`, which a peer may have sent, with an end: long lists get their count beside them."""
    made: dict[str, object] = {}
    for name, value in more.items():
        if isinstance(value, str):
            made[name] = value[:_FIELD_LIMIT]
        elif isinstance(value, list | tuple):
            made[name] = [item[:_ITEM_LIMIT] if isinstance(item, str) else item for item in value[:_ITEMS]]
            if len(value) > _ITEMS:
                made[f"{name}_count"] = len(value)
        else:
            made[name] = value
    return made
