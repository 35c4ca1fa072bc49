"""What both sides of the federated benchmark are measured with: resident memory, bytes, installed size.

Nothing here needs rights or knows which side it measures. Bytes between boxes are what passes a `Relay` that
nodes connect to instead of the server; bytes of all processes are what the loopback interface counts, in a
network namespace of the worker's own where the system grants one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

__all__ = [
    "Memory",
    "Relay",
    "Turn",
    "enter_private_network",
    "installed_bytes",
    "loopback_bytes",
    "network_is_private",
    "wait_until",
]

PRIVATE = "EDGE_ATTENTION_BENCH_NETWORK"
CHUNK = 1 << 20


def enter_private_network(module: str) -> None:
    """Start this worker again as `python -m module` in a network namespace with a loopback of its own.

    Returns where it runs in one already, or the system grants none (there `loopback_bytes` counts what
    others send, too).
    """
    granted = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c"]
    if network_is_private() or not shutil.which("unshare") or not shutil.which("ip"):
        return
    if subprocess.run([*granted, "ip link set lo up"], capture_output=True).returncode:
        return
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    os.environ[PRIVATE] = "1"
    os.execvp(granted[0], [*granted, 'ip link set lo up && exec "$0" "$@"', *command])


def network_is_private() -> bool:
    return PRIVATE in os.environ


def loopback_bytes() -> int:
    """Bytes sent over the loopback interface so far, TCP and IP headers included."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[8])
    raise SystemExit("/proc/net/dev has no loopback interface")


class Memory:
    """Peak resident memory of groups of processes, their descendants included, on a thread of its own.

    `roots` is asked at every look: group -> ids of the processes it begins with.
    """

    def __init__(self, roots: Callable[[], Mapping[str, Collection[int]]], every: float = 0.1) -> None:
        self._roots, self._every = roots, every
        self._together: dict[str, int] = {}
        self._apart: dict[str, dict[str, int]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def reset(self) -> None:
        """Forget the peaks."""
        self._together, self._apart = {}, {}

    def peak(self, group: str) -> int:
        """Bytes the group held at one moment."""
        return self._together.get(group, 0)

    def peaks(self, group: str) -> dict[str, int]:
        """Program -> bytes one process of it held at one moment."""
        return dict(self._apart.get(group, {}))

    def _watch(self) -> None:
        while not self._ended.wait(self._every):
            self.look()

    def look(self) -> None:
        """Look once, now."""
        children = _children()
        for group, roots in self._roots().items():
            together, alone = 0, 0
            apart = self._apart.setdefault(group, {})
            processes = _descendants(roots, children)
            for process in processes:
                # The kernel keeps a process's own peak; what a group holds at once is only seen by looking.
                with suppress(OSError, KeyError):
                    held, peak, program = _resident(process)
                    held = _shared_out(process, held) if len(processes) > 1 else held
                    apart[program] = max(apart.get(program, 0), peak)
                    together, alone = together + held, max(alone, peak)
            self._together[group] = max(self._together.get(group, 0), together, alone)


def _resident(process: int) -> tuple[int, int, str]:
    """Bytes resident now, their peak since the process began, and the program, as `flower-superlink`.

    Raises OSError or KeyError where it has just ended.
    """
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    held, peak = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    command = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    words = [Path(word).name for word in command if word and not word.startswith("-")]
    shown = (w for w in words if not w.startswith("python") and w != "edge_attention.cli.child")
    return held, peak, next(shown, "?")


def _shared_out(process: int, resident: int) -> int:
    """Bytes of `resident`, where each page counts for its share: one over those who map it.

    A node and the process in which it runs graphs share tensors. Where the system does not let this process
    look into the other, the whole counts.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return resident


def _children() -> dict[int, list[int]]:
    """Process -> its children, of all there are."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError, IndexError, ValueError):
                # After the name in brackets, which may hold anything: state, parent, ...
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    return children


def _descendants(roots: Collection[int], children: Mapping[int, list[int]]) -> list[int]:
    found = list(roots)
    for process in found:
        found += children.get(process, ())
    return found


class Relay:
    """Listens on 127.0.0.1, carries each connection to `target` and counts the bytes, both ways."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._target_port = int(port)
        self._bytes = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    @property
    def bytes(self) -> int:
        """What passed so far: the payload of TCP."""
        return self._bytes

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._carry, "127.0.0.1", 0, limit=CHUNK)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far = await asyncio.open_connection(self._host, self._target_port, limit=CHUNK)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, far[1]), self._pump(far[0], writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                self._bytes += len(data)
                writer.write(data)
                await writer.drain()
        with suppress(OSError):
            writer.close()


class Turn:
    """One run as it goes: the ends of its rounds, in seconds of the monotonic clock, and bytes at each."""

    def __init__(self, memory: Memory, relay: Relay | None) -> None:
        memory.reset()
        self._memory, self._relay = memory, relay
        self._ends: list[float] = []
        self._counted: list[tuple[int, int]] = []
        self._submitted = time.monotonic()

    @property
    def rounds(self) -> int:
        return len(self._ends)

    def ended(self, at: float) -> None:
        """A round ended; the bytes are those of now."""
        self._ends.append(at)
        self._counted.append((loopback_bytes(), self._relay.bytes if self._relay else 0))

    def found(self, nodes: Collection[str]) -> dict[str, Any]:
        """What is reported of it: lists have a number for each round after the first; bytes, seconds."""
        self._memory.look()
        counts = list(pairwise(self._counted))
        return {
            "seconds": [b - a for a, b in pairwise(self._ends)],
            "first": self._ends[0] - self._submitted,
            "job": self._ends[-1] - self._submitted,
            "loopback": [b[0] - a[0] for a, b in counts],
            "relayed": [b[1] - a[1] for a, b in counts] if self._relay else [],
            "server": self._memory.peak("server"),
            "server_apart": self._memory.peaks("server"),
            "node": max(self._memory.peak(node) for node in nodes),
            "node_apart": self._memory.peaks(next(iter(nodes))),
            "private_network": network_is_private(),
        }


def installed_bytes(paths: Collection[Path]) -> int:
    """Bytes of all files in and under `paths`."""
    files = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    return sum(file.stat().st_size for file in files if file.is_file())


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Raises SystemExit after `seconds`, naming `what`."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:g} s for {what}")
        time.sleep(0.01)
