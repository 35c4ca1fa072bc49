"""Flower's side of the federated benchmark, in a process of its own: a SuperLink and SuperNodes on loopback.

python -m benchmarks.federated_flower WORK NODES [relay]

Flower lives in an environment of its own (`environment`): its pins of protobuf and others need not agree with
ours. The app is benchmarks/flower_app: Flower's FedAvg as it comes, and clients in NumPy. Nothing is
simulated; telemetry, the check for updates and `uv sync` are off, everything else is as Flower sets it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import venv
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.federated_meter import (
    Memory,
    Relay,
    Turn,
    enter_private_network,
    installed_bytes,
    wait_until,
)
from benchmarks.federated_work import DIGITS, digits_accuracy, digits_work, idle_work
from benchmarks.turns import serve
from edge_attention.demo.digits import Images

MODULE = "benchmarks.federated_flower"
WANTED = "flwr>=1.41,<1.43"
FOLDER = "EDGE_ATTENTION_BENCH_FLOWER"
APP = Path(__file__).parent / "flower_app"
PATIENCE = 900.0


def environment() -> Path:
    """The virtual environment with Flower: $EDGE_ATTENTION_BENCH_FLOWER or .venv/flower, made where missing.

    Raises subprocess.CalledProcessError where pip cannot install it.
    """
    folder = Path(os.environ.get(FOLDER) or Path(__file__).parents[1] / ".venv" / "flower")
    if not (folder / "installed.json").exists():
        venv.create(folder, with_pip=True)
        site = next(folder.glob("lib/python*/site-packages"))
        before = set(site.iterdir())
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", WANTED], check=True)
        brought = set(site.iterdir()) - before
        version = next(path.name.split("-")[1] for path in brought if path.name.startswith("flwr-"))
        found = {
            "version": version.removesuffix(".dist"),
            "packages": sum(path.suffix == ".dist-info" for path in brought),
            "bytes": installed_bytes(brought),
        }
        (folder / "installed.json").write_text(json.dumps(found) + "\n")
    return folder


def installed() -> dict[str, Any]:
    """Of that environment: `version` of Flower, how many `packages`, their `bytes`."""
    found: dict[str, Any] = json.loads((environment() / "installed.json").read_text())
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Flower:
    """A SuperLink and SuperNodes that a turn trains with: one `flwr run` of so many rounds."""

    def __init__(self, work: str, nodes: int, relayed: bool, stack: ExitStack) -> None:
        self._test: Images | None = None
        if work == DIGITS:
            self._work, self._test = digits_work()
        else:
            self._work = idle_work(work, nodes)
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._programs = environment() / "bin"
        self._environment = os.environ | {
            "FLWR_HOME": str(self._folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": f"{self._programs}:{os.environ['PATH']}",
        }
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._turns = 0
        stack.callback(self._stop)
        port = _free_port()
        server = f"127.0.0.1:{port}"
        # `uv sync` of the app's dependencies would fetch packages while a round is measured.
        self._start(
            "server", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port),
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        self._heard("server", "Uvicorn running")
        self._relay = Relay(server) if relayed else None
        to = self._relay.address if self._relay else server
        for number, (node, file) in enumerate(self._work.write(self._folder).items()):
            self._start(
                node, "flower-supernode", "--insecure", "--superlink", to, "--port", str(_free_port()),
                "--node-config", f'partition={number} data="{file}"',
            )  # fmt: skip
        for node in self._work.data:
            self._heard(node, "SuperNode ID")
        self._initial = self._work.write_initial(self._folder)
        home = self._folder / "home"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "{server}"\ninsecure = true\n'
        )
        self.memory = stack.enter_context(Memory(lambda: {n: [c.pid] for n, c in self._children.items()}))

    def _start(self, name: str, program: str, *flags: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._children[name] = self._popen(program, *flags, log=log)

    def _popen(self, program: str, *flags: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(self._programs / program), *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self._environment,
            cwd=self._folder,
            start_new_session=True,
        )

    def _log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def _heard(self, name: str, words: str, times: int = 1) -> None:
        def said() -> bool:
            if self._children[name].poll() is not None:
                raise SystemExit(f"Flower's {name} ended:\n{self._log(name)[-2000:]}")
            return self._log(name).count(words) >= times

        wait_until(said, PATIENCE, f"{words!r} of Flower's {name}")

    def _stop(self) -> None:
        for child in reversed(self._children.values()):
            with suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        for child in self._children.values():
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()

    def turn(self, rounds: int) -> dict[str, Any]:
        """What was measured, as Turn.found. A round ends when FedAvg has aggregated it."""
        self._turns += 1
        events, final = self._folder / f"{self._turns}.jsonl", self._folder / f"{self._turns}.npz"
        events.touch()
        settings = {
            "nodes": len(self._work.data),
            "rounds": rounds,
            "initial": json.dumps(str(self._initial)),
            "events": json.dumps(str(events)),
            "final": json.dumps(str(final)),
            "batch": self._work.local.batch,
        }
        config = " ".join(f"{name}={value}" for name, value in settings.items())
        # The ServerApp reads the same clock: CLOCK_MONOTONIC is one for all processes.
        turn = Turn(self.memory, self._relay)
        with (self._folder / f"{self._turns}.log").open("wb") as log:
            run = self._popen("flwr", "run", str(APP), "bench", "-c", config, log=log)
            while turn.rounds < rounds:
                self._wait(events, turn.rounds)
                for at in _ends(events)[turn.rounds :]:
                    turn.ended(at)
            if run.wait(PATIENCE):
                raise SystemExit(f"flwr run failed: {self._log(str(self._turns))[-2000:]}")
        self._heard("server", "Finished task", self._turns)
        found = turn.found(self._work.data.keys())
        if self._test is not None:
            with np.load(final) as file:
                found["accuracy"] = digits_accuracy(dict(file), self._test)
        return found

    def _wait(self, events: Path, ended: int) -> None:
        """Until another round has ended."""

        def news() -> bool:
            if self._log("server").count("Finished task") >= self._turns and len(_ends(events)) == ended:
                raise SystemExit(f"Flower's run ended after {ended} rounds:\n{self._log('server')[-2000:]}")
            return len(_ends(events)) > ended

        wait_until(news, PATIENCE, f"round {ended + 1} of Flower:\n{self._log('server')[-2000:]}")


def _ends(events: Path) -> list[float]:
    """When each round ended; a line still being written is left for later."""
    lines = [json.loads(line) for line in events.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line["at"] for line in lines if line["event"] == "end"]


def main() -> None:
    enter_private_network(MODULE)
    with ExitStack() as stack:
        flower = Flower(sys.argv[1], int(sys.argv[2]), "relay" in sys.argv[3:], stack)
        serve(flower.turn, "ready")


if __name__ == "__main__":
    main()
