"""A cell as a process, seen from the daemon: started, listened to, ended. Decides nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.core.printable import shown
from edge_node.cell.calls import KnownGraph
from edge_node.cell.messages import DESCRIPTORS, WINDOW, Channel, Nonsense
from edge_node.cell.state import Usage
from edge_node.shared_memory import Region, allocate

log = logging.getLogger(__name__)

OVERHEAD = 512 << 20
"""Bytes a cell may have beside its arena: sessions, their threads, what kernels allocate by themselves."""
POOL_STACK = 512 * 1024
"""Bytes of the stack of a thread that ONNX Runtime starts: as much as macOS gives any."""
COMMAND = ("-m", "edge_node.cell.worker")
LINES = 40
"""Lines of its words that a cell gets into the log."""
_LETTERS = 2_000
"""Characters of a line that a cell says: ONNX Runtime names the node and its file before the reason."""
_READS = 16
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "ORT_DISABLE_TELEMETRY")
"""What of the daemon's environment a cell gets: nothing of keys and tokens."""
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class CellSettings:
    """What a cell is started with. `provider`: ONNX Runtime's name; `limit`: bytes of the arena."""

    provider: str
    threads: int
    limit: int
    lanes: int


class CellProcess:
    """The process of one cell, from its start on. Raises OSError where it cannot be started."""

    def __init__(self, settings: CellSettings, name: str) -> None:
        self.name = name
        self.loaded: dict[str, KnownGraph] = {}  # the one used last is last
        self.loading: set[str] = set()
        self.used: Counter[str] = Counter()  # jobs that use a graph now
        self._lines = 0
        self._rest = b""
        self.threads: tuple[int, ...] = ()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lanes: list[Channel] = []
        handed = [theirs]
        lanes: list[tuple[int, int, int]] = []
        windows: list[int] = []
        try:
            for _ in range(settings.lanes):
                ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                handed.append(other)
                inward, outward = allocate(WINDOW), allocate(WINDOW)
                windows += [inward, outward]
                lanes.append((other.fileno(), inward, outward))
                # What it writes is copied before it is looked at.
                writes = Region(os.dup(inward), WINDOW, writable=True, keep=False)
                reads = Region(os.dup(outward), WINDOW, writable=False, keep=False)
                self.lanes.append(Channel(ours, np.asarray(reads), np.asarray(writes), takes=False))
            said = {
                "provider": settings.provider,
                "threads": settings.threads,
                "limit": settings.limit,
                "overhead": OVERHEAD,
                "stack": POOL_STACK,
                "descriptors": 64 + settings.lanes * (DESCRIPTORS + 3),
                "devices": settings.provider != "CPUExecutionProvider",
                "control": theirs.fileno(),
                "lanes": lanes,
            }
            self._start(said, [end.fileno() for end in handed] + windows)
        finally:
            for end in handed:
                end.close()
            for descriptor in windows:
                os.close(descriptor)

    def _start(self, said: dict[str, Any], descriptors: list[int]) -> None:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        # As this process found its modules, and nothing from the folder it happens to be in.
        environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", *COMMAND, json.dumps(said)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=descriptors,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stderr is not None
        self.words = self._process.stderr.fileno()
        os.set_blocking(self.words, False)
        self.control.setblocking(False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def heard(self) -> str | None:
        """What the control socket says: the cell's report that it is ready, "" for nothing, None: it is gone.

        Raises:
            Nonsense: something else.
        """
        try:
            data = self.control.recv(8192)
        except BlockingIOError:
            return ""
        except OSError:
            return None
        if not data:
            return None
        try:
            said = json.loads(data)
            report, threads = said["ready"], said["threads"]
            if not isinstance(report, str) or len(threads) != len(self.lanes):
                raise ValueError
            if not all(type(thread) is int for thread in threads):
                raise ValueError
            self.threads = tuple(threads)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Nonsense("a report that is none") from None
        return shown(report[:_LETTERS])

    def stop(self, lane: int, job: int) -> None:
        """The job on this lane is to end. If the cell does not listen, its grace ends."""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps({"lane": lane, "stop": job}).encode())

    def end(self, kill: bool) -> None:
        if kill:
            self._process.kill()
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)

    def end_if_it_lives(self) -> None:
        """The cell has hung up: wait a moment for it to end, so that it is known how it did; then end it."""
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def ended(self) -> tuple[str, int | None]:
        """How it ended, in words, and the signal that ended it, if one did. Ends it if it has not."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self.listen()
        if self._process.stderr is not None:
            self._process.stderr.close()
        if code >= 0:
            return f"exit code {code}", None
        name = signal_name(-code)
        why = {
            "SIGKILL": ": short of memory, or ended by somebody",
            "SIGSYS": ": it asked the kernel for what it may not have",
        }
        return f"signal {-code} ({name}{why.get(name, '')})", -code

    def listen(self) -> None:
        """Log what it has written, cut. One that writes without end is heard no longer than others wait."""
        with contextlib.suppress(OSError):
            for _ in range(_READS):
                if not (data := os.read(self.words, 65_536)):
                    return
                *lines, rest = (self._rest + data).split(b"\n")
                self._rest = rest[:_LETTERS]
                for line in filter(None, lines):
                    self._lines += 1
                    if self._lines <= LINES:
                        text = shown(line[:_LETTERS].decode(errors="replace"))
                        log.warning("the %s cell says: %s", self.name, text)

    def usage(self) -> Usage:
        """Processor seconds so far, as the kernel counts them."""
        folder = Path("/proc") / str(self.pid)
        lanes = tuple(_seconds(folder / "task" / str(thread) / "stat") for thread in self.threads)
        return Usage(_seconds(folder / "stat"), lanes)


def signal_name(number: int) -> str:
    """The name of a signal, as SIGFPE."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _seconds(path: Path) -> float:
    try:
        fields = path.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
