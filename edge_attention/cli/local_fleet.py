"""An aggregator and nodes as child processes on loopback, for development, demos and tests.

with LocalFleet() as fleet:
    fleet.start_aggregator()
    fleet.start_node("a", data={"patients": "a.npz"})
    with Client(fleet.address) as client: ...
    fleet.kill("a")
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from edge_attention.core.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, NotFound

__all__ = ["AGGREGATOR", "Child", "LocalFleet"]

AGGREGATOR = "aggregator"
OnLine = Callable[[str, str], None]
"""Called with a child's name and a line it printed, on a thread of that child."""
START_SECONDS = 120.0
"""What a child may take until it is ready, on a busy box, too; of one that has ended it is said at once."""
END_SECONDS = 30.0
"""What a child that was asked to end may take before it is killed."""


class Child:
    """A running program and the last lines it printed."""

    def __init__(self, name: str, module: str, flags: Sequence[str], on_line: OnLine | None) -> None:
        self.name = name
        self.lines: deque[str] = deque(maxlen=500)
        self._on_line = on_line
        self._news = threading.Condition()
        self._ended = False
        command = [sys.executable, "-u", "-m", "edge_attention.cli.child", module, *flags]
        # A session of its own: Ctrl-C in the terminal reaches the parent alone, which stops all in order.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"lines of {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def last_lines(self, count: int = 5) -> list[str]:
        """The end of what it printed; waits a moment for the lines of a child that ended."""
        if not self.running:
            self._reader.join(timeout=1)
        with self._news:
            return list(self.lines)[-count:]

    def wait_for(self, pattern: str, timeout: float = START_SECONDS) -> re.Match[str]:
        """The match of the first line, printed already or to come, in which `pattern` is found.

        Raises:
            FailedPrecondition: the child ended before.
            DeadlineExceeded: it did not print one in `timeout` seconds.
        """
        found: list[re.Match[str]] = []

        def printed() -> bool:
            found.extend(match for line in self.lines if (match := re.search(pattern, line)))
            return bool(found) or self._ended

        with self._news:
            self._news.wait_for(printed, timeout)
        if found:
            return found[0]
        if self._ended:
            raise FailedPrecondition(
                f"{self.name} ended with exit code {self.process.wait()} as it started:", self.last_lines()
            )
        raise DeadlineExceeded(
            f"{self.name} did not say {pattern!r} within {timeout:g} s; it said:", self.last_lines()
        )

    def terminate(self, timeout: float = END_SECONDS) -> int:
        """Ask it to end, insist after `timeout` seconds; its exit code."""
        if self.running:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()
        self._close()
        return code

    def kill(self) -> int:
        """End it as a power cut would."""
        self.process.kill()
        code = self.process.wait()
        self._close()
        return code

    def _close(self) -> None:
        self._reader.join(timeout=5)
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()
            if self._on_line:
                self._on_line(self.name, line.rstrip())
        with self._news:
            self._ended = True
            self._news.notify_all()


class LocalFleet:
    """Starts, kills and restarts the processes of a fleet. Leaving it stops them all.

    Args:
        state: the aggregator's --state folder; None: nothing outlives it.
        port: the aggregator's port on 127.0.0.1; 0: one the system picks, kept over restarts.
        on_line: called with (child, line) for everything the children print.
    """

    aggregator_module = "aggregator.main"
    node_module = "edge_node.main"

    def __init__(self, state: Path | None = None, port: int = 0, on_line: OnLine | None = None) -> None:
        self.state = state
        self.children: dict[str, Child] = {}
        self._port = port
        self._on_line = on_line

    def __enter__(self) -> LocalFleet:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """`HOST:PORT` of the aggregator, for Client."""
        if not self._port:
            raise FailedPrecondition("the fleet has no aggregator yet; call start_aggregator() first")
        return f"127.0.0.1:{self._port}"

    def start_aggregator(self, *flags: str, timeout: float = START_SECONDS) -> str:
        """Start the aggregator, or start it again on the same port and state; its address."""
        state = ("--state", str(self.state)) if self.state else ()
        child = self._start(
            AGGREGATOR, self.aggregator_module, ["--listen", f"127.0.0.1:{self._port}", *state, *flags]
        )
        self._port = int(child.wait_for(r"listening on \S*:(\d+)", timeout)[1])
        return self.address

    def start_node(
        self,
        name: str,
        *flags: str,
        data: Mapping[str, str | Path] | None = None,
        allow_release: Sequence[str] = (),
        wait: bool = True,
        timeout: float = START_SECONDS,
    ) -> Child:
        """Start a node, again after it ended; with `wait`, return when the aggregator has registered it."""
        given = [
            *(part for item in (data or {}).items() for part in ("--data", "=".join(map(str, item)))),
            *(part for release in allow_release for part in ("--allow-release", release)),
        ]
        command = ["--aggregator", self.address, "--name", name, *given, *flags]
        child = self._start(name, self.node_module, command)
        if wait:
            self.wait_ready(name, timeout)
        return child

    def start_child(self, name: str, module: str, flags: Sequence[str]) -> Child:
        """Start another program of ours, whose `main` is in `module`; it ends with the fleet."""
        return self._start(name, module, flags)

    def wait_ready(self, name: str, timeout: float = START_SECONDS) -> None:
        """Return when the node has said that the aggregator registered it."""
        self.child(name).wait_for(r"registered with \S+ as ", timeout)

    def child(self, name: str) -> Child:
        if name not in self.children:
            raise NotFound(f"no {name!r} was started; there are {', '.join(self.children) or 'none'}")
        return self.children[name]

    def kill(self, name: str) -> None:
        """kill -9."""
        self.child(name).kill()

    def terminate(self, name: str, timeout: float = END_SECONDS) -> int:
        """SIGTERM; the exit code."""
        return self.child(name).terminate(timeout)

    def stop(self, timeout: float = END_SECONDS) -> None:
        """Stop the nodes together, then the aggregator; whoever is not done in `timeout` is killed."""
        nodes = [child for child in self.children.values() if child.name != AGGREGATOR]
        for child in nodes:
            if child.running:
                child.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + timeout
        for child in nodes:
            child.terminate(max(0.1, end - time.monotonic()))
        if AGGREGATOR in self.children:
            self.children[AGGREGATOR].terminate(timeout)
        self.children.clear()

    def _start(self, name: str, module: str, flags: Sequence[str]) -> Child:
        before = self.children.get(name)
        if before is not None:
            if before.running:
                raise AlreadyExists(f"{name} is running, with process id {before.pid}")
            before.terminate()
        child = self.children[name] = Child(name, module, flags, self._on_line)
        return child
