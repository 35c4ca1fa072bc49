"""The faults: each is started at the victim of a world, lasts a while, and is stopped. One class a fault.

What a service manager does is part of a fault: a process that ended is started again when the fault is over.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import ClassVar

from proxy import Flip, HalfOpen, Hold, Mode, Pass, Refuse, Slow

from tests.faults.world import World, set_clock, wait

HOUR = 3600.0


class Fault:
    """`start`, `seconds` later `stop`; `recovered`: from then on all must be well again."""

    seconds: ClassVar[float] = 8.0
    disk: ClassVar[bool] = False
    clock: ClassVar[bool] = False

    def __init__(self, world: World) -> None:
        self.world = world

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    @classmethod
    def lacking(cls) -> str:
        """Why it cannot be tried on this machine; empty if it can."""
        return ""


class Kill(Fault):
    """kill -9; started again two seconds later."""

    seconds = 2.0

    def start(self) -> None:
        self.world.fleet.kill(self.world.child)

    def stop(self) -> None:
        self.world.restart(self.world.child)


class Stop10(Fault):
    """SIGSTOP, and SIGCONT after 10 s: twice the lease."""

    seconds = 10.0

    def start(self) -> None:
        os.kill(self.world.fleet.child(self.world.child).pid, signal.SIGSTOP)

    def stop(self) -> None:
        os.kill(self.world.fleet.child(self.world.child).pid, signal.SIGCONT)


class Stop60(Stop10):
    """The same for 60 s: keepalives and certificates end meanwhile."""

    seconds = 60.0


class Link(Fault):
    """Something is done to the victim's network: the aggregator's is everybody's."""

    mode: ClassVar[Mode]

    def start(self) -> None:
        self._set(self.mode)

    def stop(self) -> None:
        self._set(Pass())

    def _set(self, mode: Mode) -> None:
        for link in self.world.links:
            link.set_mode(mode)


class Partition(Link):
    """Nothing gets through for 12 s and nobody is told: no reset, no refusal."""

    seconds = 12.0
    mode = Hold()


class SlowLink(Link):
    """16 KiB a second each way, for 10 s."""

    seconds = 10.0
    mode = Slow(16 * 1024)


class Corrupt(Link):
    """A bit is flipped in about every 16,000 bytes, wherever it falls, for 10 s."""

    seconds = 10.0
    mode = Flip(16_000)


class HalfOpenLink(Link):
    """The connections there are die without a word, for good; new ones work at once."""

    seconds = 1.0
    mode = HalfOpen()


class Flapping(Link):
    """Every second all connections are cut and refused, or may come back, for 10 s."""

    seconds = 10.0
    mode = Refuse()

    def start(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._flap)
        self._thread.start()

    def _flap(self) -> None:
        mode: Mode = self.mode
        while True:
            self._set(mode)
            if self._over.wait(1.0):
                break
            mode = Pass() if mode == self.mode else self.mode
        self._set(Pass())

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


class DiskFull(Fault):
    """The victim's file system has no byte left for 8 s."""

    disk = True

    def start(self) -> None:
        assert self.world.disk is not None
        self._file = self.world.disk / "fill"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._fill)
        self._thread.start()

    def _fill(self) -> None:
        with self._file.open("wb", buffering=0) as file:
            size = 1 << 20
            while not self._over.is_set():
                try:
                    file.write(bytes(size))
                except OSError:  # what is freed meanwhile is taken, too
                    size = max(size // 2, 64)
                    if size == 64:
                        time.sleep(0.001)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._file.unlink()
        if not self.world.fleet.child(self.world.child).running:
            self.world.restart(self.world.child)

    @classmethod
    def lacking(cls) -> str:
        if os.geteuid() != 0:
            return "needs root: a small file system is mounted for it"
        return "" if shutil.which("unshare") else "needs unshare, of util-linux"


class ClockJump(Fault):
    """The wall clock is an hour ahead for 4 s, then an hour back for 4 s, then right again."""

    clock = True

    def start(self) -> None:
        assert self.world._clock is not None
        set_clock(self.world._clock, HOUR)
        self._timer = threading.Timer(4.0, set_clock, (self.world._clock, -HOUR))
        self._timer.start()

    def stop(self) -> None:
        self._timer.join()
        assert self.world._clock is not None
        set_clock(self.world._clock, 0.0)
        if not self.world.fleet.child(self.world.child).running:
            self.world.restart(self.world.child)

    @classmethod
    def lacking(cls) -> str:
        return (
            "" if shutil.which("cc") else "needs a C compiler: the clock of a process is a library of its own"
        )


class OutOfMemory(Fault):
    """Its control group has 64 KiB more for 8 s: the kernel ends what needs that, and it is started again."""

    MORE = 64 * 1024
    GROUPS = Path("/sys/fs/cgroup")
    V1 = GROUPS / "memory"

    def start(self) -> None:
        pid = self.world.fleet.child(self.world.child).pid
        root, limit = (self.V1, "memory.limit_in_bytes") if self.V1.is_dir() else (self.GROUPS, "memory.max")
        self._root, self._group = root, root / f"edge-attention-faults-{pid}"
        self._group.mkdir()
        # What it has is charged to the group it was in; only what is new is charged to this one.
        (self._group / limit).write_text(str(self.MORE))
        (self._group / "cgroup.procs").write_text(str(pid))

    def stop(self) -> None:
        child = self.world.fleet.child(self.world.child)
        if child.running:
            with contextlib.suppress(OSError):
                (self._root / "cgroup.procs").write_text(str(child.pid))
        wait(lambda: not child.running, 1.0)  # it may be about to end
        self._group.rmdir()
        if not child.running:
            self.world.restart(self.world.child)

    @classmethod
    def lacking(cls) -> str:
        if os.geteuid() != 0:
            return "needs root: a control group is made for it"
        controllers = cls.GROUPS / "cgroup.subtree_control"
        if cls.V1.is_dir() or (controllers.exists() and "memory" in controllers.read_text().split()):
            return ""
        return "needs control groups for memory under /sys/fs/cgroup"


FAULTS: dict[str, type[Fault]] = {
    "kill": Kill,
    "stop-10": Stop10,
    "stop-60": Stop60,
    "partition": Partition,
    "slow": SlowLink,
    "corrupt": Corrupt,
    "disk-full": DiskFull,
    "clock": ClockJump,
    "memory": OutOfMemory,
    "flapping": Flapping,
    "half-open": HalfOpenLink,
}
