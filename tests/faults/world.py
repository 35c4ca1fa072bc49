"""The fleet of one cell: an aggregator, nodes and a client, each behind a network that can fail."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from fleets import Fleet
from proxy import Pass, Proxy
from trusted import TrustedFleet

from edge_attention import Client
from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.trust.enrol import enrol
from edge_attention.trust.identity import IdentityFolder
from edge_attention.trust.tokens import parse_token
from tests.faults import truth
from tests.faults.journal import Call, read

CALLER = "client"
VICTIM = "b"
"""The node that faults befall."""

LEASE = ("--lease", "5")
LIFE = 20.0
"""Seconds of a certificate: nodes enrol anew with their token after one that ended. A client cannot: there
must be something left of its certificate when it, or the aggregator, is back."""
DISK = 40 * 1024 * 1024


class World:
    """Everything is started by `start`; `victims` are the children a fault befalls.

    Args:
        folder: where all files go.
        operation, victim: of the cell.
        disk: the victim's folder is a file system of its own of 40 MiB, which can be filled.
        clock: the victim sees a clock that can be set: the file `clock`.
        away: seconds for which the victim may be.
    """

    def __init__(
        self,
        folder: Path,
        operation: str,
        victim: str,
        *,
        disk: bool = False,
        clock: bool = False,
        away: float = 0.0,
    ) -> None:
        self.folder, self.operation, self.victim = folder, operation, victim
        self.tls = operation == "enrolment"
        self.life = LIFE if victim == "node" else LIFE + 4 * away
        self.training = operation in truth.ROUNDS
        self.nodes = truth.NODES if self.training else ("a", "b")
        self.generation = 0
        self._clock = folder / "clock" if clock else None
        self._clients: list[Client] = []
        self._released: dict[str, list[str]] = {}
        self._data: dict[str, dict[str, Path]] = {}
        self.seen: dict[str, list[str]] = {}
        self.boxes = folder / "boxes"  # identities of clients
        (folder / "fleet").mkdir()
        self.disk = self._own_disk() if disk else None
        self.proxies: dict[str, Proxy] = {}
        with self._sees_clock(AGGREGATOR):
            self.fleet = (
                TrustedFleet(folder / "fleet", *self._lives)
                if self.tls
                else Fleet(folder / "fleet", *LEASE, state=True)
            )
        for name in (*self.nodes, CALLER):
            self.proxies[name] = Proxy(self.fleet.address)

    @property
    def _lives(self) -> tuple[str, str]:
        return ("--certificate-seconds", f"{self.life:g}")

    @property
    def child(self) -> str:
        """The victim's process."""
        return {"node": VICTIM, "aggregator": AGGREGATOR, "client": CALLER}[self.victim]

    @property
    def links(self) -> list[Proxy]:
        """The victim's networks: the aggregator's are all there are."""
        return list(self.proxies.values()) if self.victim == "aggregator" else [self.proxies[self.child]]

    def start(self) -> None:
        if self.training:
            job = truth.job(self.operation)
            self._data = truth.data(self.operation, self.folder)
            for graph in self.direct(timeout=60).plan(job):
                if graph.release and graph.release not in (held := self._released.setdefault(graph.node, [])):
                    held.append(graph.release)
        for name in self.nodes:
            self.start_node(name)
        for name in self.nodes:
            self.fleet.wait_ready(name)
        if self.tls:
            assert isinstance(self.fleet, TrustedFleet)
            made = self.fleet.make_token("--role", "operator", "--join", "--name", "eve")["token"]
            enrol(self.fleet.address, parse_token(made), IdentityFolder(self.boxes / "eve"))
        elif not self.training:
            context = self.direct().create_context(truth.CONTEXT, **_spec())
            if self.operation == "attend":
                keys, values, _ = truth.memory()
                half = truth.TOKENS // 2
                context.append(keys[:half], values[:half], node="a")
                context.append(keys[half:], values[half:], node="b")
        self.start_caller()

    def start_node(self, name: str) -> None:
        self._keep_lines(name)
        store = self.folder / "fleet" / name
        flags = ["--threads", "1", "--store", str(store)]
        if self.tls:
            assert isinstance(self.fleet, TrustedFleet)
            flags += ["--join-token", self.fleet.token("join")]
        with self._sees_clock(name), self._through(name):
            self.fleet.start_node(
                name,
                *flags,
                data=self._data.get(name),
                allow_release=self._released.get(name, []),
                wait=False,
            )

    def start_aggregator(self) -> None:
        self._keep_lines(AGGREGATOR)
        with self._sees_clock(AGGREGATOR):
            flags = (*self.fleet.flags, *self._lives) if isinstance(self.fleet, TrustedFleet) else LEASE
            self.fleet.start_aggregator(*flags)

    def start_caller(self) -> None:
        import json

        self._keep_lines(CALLER)
        config = {
            "operation": self.operation,
            "address": self.proxies[CALLER].address,
            "folder": str(self.folder),
            "boxes": str(self.boxes),
            "first_chunk": 1_000 * self.generation,
            "resume": self.generation > 0,
        }
        if isinstance(self.fleet, TrustedFleet):
            config["join"] = self.fleet.token("join")
        self.generation += 1
        with self._sees_clock(CALLER):
            self.fleet._start(CALLER, "tests.faults.caller", [json.dumps(config)])

    def restart(self, name: str) -> None:
        """As a service manager starts again what ended."""
        {AGGREGATOR: self.start_aggregator, CALLER: self.start_caller}.get(
            name, lambda: self.start_node(name)
        )()

    def stop_caller(self) -> None:
        (self.folder / "stop").touch()

    def direct(self, **options: Any) -> Client:
        """A client that no fault befalls."""
        if isinstance(self.fleet, TrustedFleet):
            options["token"] = self.fleet.token("operator")
        self._clients.append(Client(self.fleet.address, **{"timeout": 10.0, **options}))
        return self._clients[-1]

    def journal(self) -> list[Call]:
        return read(self.folder / "journal")

    def usage(self) -> dict[str, dict[str, int]]:
        """Of each process: resident bytes and descriptors."""
        found = {}
        for name, child in self.fleet.children.items():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(child.pid)
                found[name] = {
                    "memory": process.memory_info().rss,
                    "descriptors": process.num_fds(),
                    "pid": child.pid,
                }
        return found

    def said(self) -> dict[str, list[str]]:
        """The last lines of every process, of those that ended, too."""
        for name in list(self.fleet.children):
            self._keep_lines(name)
        return {name: lines[-40:] for name, lines in self.seen.items()}

    def _keep_lines(self, name: str) -> None:
        if child := self.fleet.children.get(name):
            kept = self.seen.setdefault(name, [])
            lines = [f"[{child.pid}] {line}" for line in child.lines]
            kept += [line for line in lines if line not in kept]

    def stop(self) -> None:
        self.stop_caller()
        for child in self.fleet.children.values():
            if child.running:
                child.process.send_signal(signal.SIGCONT)
        for client in self._clients:
            client.close()
        for proxy in self.proxies.values():
            proxy.set_mode(Pass())
        self.fleet.stop()
        for proxy in self.proxies.values():
            proxy.stop()

    @contextlib.contextmanager
    def _through(self, name: str) -> Iterator[None]:
        """The next child started dials its own proxy."""
        port = self.fleet._port
        self.fleet._port = self.proxies[name].port
        try:
            yield
        finally:
            self.fleet._port = port

    @contextlib.contextmanager
    def _sees_clock(self, name: str) -> Iterator[None]:
        """The next child started sees the clock that can be set, if it is the victim."""
        if self._clock is None or name != self.child:
            yield
            return
        set_clock(self._clock, 0.0)
        changed = {"LD_PRELOAD": str(clock_library(self.folder)), "FAULTS_CLOCK": str(self._clock)}
        before = {key: os.environ.get(key) for key in changed}
        os.environ.update(changed)
        try:
            yield
        finally:
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})

    def _own_disk(self) -> Path:
        """A file system in memory for the victim's files; it ends with the cell's mount namespace."""
        fleet = self.folder / "fleet"
        where = {"aggregator": fleet / "state", "node": fleet / VICTIM, "client": self.boxes}[self.victim]
        where.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(where)], check=True)
        return where


def clock_library(folder: Path) -> Path:
    """The library that moves a process's wall clock, compiled in `folder`."""
    made = folder / "clock.so"
    source = Path(__file__).parent / "clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(made), str(source), "-ldl"], check=True)
    made.chmod(0o755)
    return made


def set_clock(file: Path, offset: float) -> None:
    """The file is mapped by those who see it: its bytes change, in place."""
    with file.open("r+b" if file.exists() else "wb", buffering=0) as clock:
        clock.write(struct.pack("=q", int(offset)))


def _spec() -> dict[str, int]:
    from fleets import SPEC

    return SPEC


def wait(condition: Any, seconds: float, every: float = 0.1) -> Any:
    """The first true `condition()` within so many seconds, or what it was at the end."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(every)
    return found
