"""One fleet of real processes that runs plans of a model in turns: `python -m benchmarks.infer_fleet FILE`.

FILE is JSON (`FleetSetting`); the answer is JSON on stdout (`FleetRan`). The aggregator is this process. Nodes
get less of a processor by a control group, and all of them a slower network by `tc tbf` on loopback in a
network namespace of its own, which the caller makes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.checkup.recipe import checkup
from aggregator.engine.recipe import Engine, Recipe
from aggregator.inference.runner import ModelRunner
from aggregator.server import ServerSettings, running
from benchmarks.infer_compute import forms_of
from benchmarks.infer_models import feeds_of, whole_session
from edge_attention.client.aio import AsyncClient
from edge_attention.core.schedule.saved_plan import loads_plan
from edge_attention.graphs.axes.cut import cut_model
from edge_attention.graphs.axes.folder import CutFolder

__all__ = ["FleetRan", "FleetSetting", "PlanTried", "run_fleet"]

PERIOD = 4_000
"""Microseconds of a control group's period: a node that may run half of them is half as quick all along."""
WARM = 2
MIB = 1 << 20


@dataclass(frozen=True)
class PlanTried:
    """A plan as JSON (`saved_plan`), and who holds which part."""

    name: str
    plan: str
    holders: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class FleetSetting:
    """Attributes:
        nodes: name -> its share of one core.
        mbit: of loopback, for all together; 0: as it is.
        turns: requests of each plan, one after another by turns.
    """

    model: str
    batch: int
    length: int
    nodes: Mapping[str, float]
    mbit: float
    plans: Sequence[PlanTried]
    turns: int


@dataclass
class FleetRan:
    """Attributes:
        seconds: plan -> of each request.
        parts: plan -> by part, seconds in graphs, as its node says; the median.
        moved: plan -> bytes a request sends and receives.
        errors: plan -> largest error by the largest value.
        round_trips: node -> seconds of a small message there and back.
        bandwidth: node -> bytes a second down and up.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    round_trips: dict[str, float] = field(default_factory=dict)
    bandwidth: dict[str, tuple[float, float]] = field(default_factory=dict)


def run_fleet(setting: FleetSetting) -> FleetRan:
    """Run the setting in a process of its own, in a network namespace where its links are slower."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(asdict(setting), file)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.infer_fleet", file.name]
        if setting.mbit:
            command = ["unshare", "-n", *command]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "ERROR"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"a fleet of the benchmark ended with {done.returncode}; its error is above")
    return FleetRan(**json.loads(done.stdout.splitlines()[-1]))


def _shape_network(mbit: float) -> None:
    """In a namespace of our own: loopback up, packets as on a wire, so many bits a second."""
    for command in (
        "ip link set lo mtu 1500 up",
        f"tc qdisc add dev lo root tbf rate {mbit}mbit burst 32kb latency 400ms",
    ):
        subprocess.run(command.split(), check=True)


@contextlib.contextmanager
def _slowed(pid: int, share: float) -> Iterator[None]:
    """The process, with its children to come, may use so much of a core."""
    if share >= 1:
        yield
        return
    first = Path("/sys/fs/cgroup/cpu")
    unified = not first.exists()
    folder = (Path("/sys/fs/cgroup") if unified else first) / f"ea-bench-{pid}"
    folder.mkdir()
    try:
        if unified:
            (folder / "cpu.max").write_text(f"{int(share * PERIOD)} {PERIOD}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD))
            (folder / "cpu.cfs_quota_us").write_text(str(int(share * PERIOD)))
        (folder / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for _ in range(50):
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.1)  # until its processes are gone


async def _run(setting: FleetSetting, folder: Path) -> FleetRan:
    engines: list[Engine] = []

    def capture(engine: Engine) -> Recipe:
        engines.append(engine)
        return Recipe("benchmark")

    settings = ServerSettings("127.0.0.1", 0, folder / "state", "127.0.0.1", None, 10.0, 60.0)
    async with running(settings, (capture, checkup)) as port:
        runner = ModelRunner(engines[0])
        with contextlib.ExitStack() as stack:
            for name, share in setting.nodes.items():
                command = [sys.executable, "-c", "from edge_node.main import main; main()"]
                command += ["--aggregator", f"127.0.0.1:{port}"]
                command += ["--store", str(folder / name), "--name", name, "--threads", "1"]
                command += ["--memory-limit", "2GiB"]
                # A node makes its cell as it starts: what starts in the group stays in it.
                waits = ["sh", "-c", 'read go; exec "$@"', "sh", *command]
                process = subprocess.Popen(waits, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
                stack.enter_context(_slowed(process.pid, share))
                stack.callback(process.wait)
                stack.callback(process.kill)
                assert process.stdin is not None
                process.stdin.write(b"go\n")
                process.stdin.flush()
            if not await engines[0].trips.all_live(list(setting.nodes), 60.0, lambda sentence: None):
                raise SystemExit("a node of the benchmark did not come")
            found = await _turns(setting, runner, folder)
            async with AsyncClient(f"127.0.0.1:{port}") as client:
                for name in setting.nodes:
                    probed = await client.probe(name, round_trips=10)
                    found.round_trips[name] = min(probed.round_trip_seconds)
                    size = 4 * MIB if not setting.mbit or setting.mbit > 100 else MIB
                    probed = await client.probe(name, round_trips=1, size=size)
                    assert probed.down_seconds
                    assert probed.up_seconds
                    found.bandwidth[name] = size / probed.down_seconds, size / probed.up_seconds
    return found


async def _turns(setting: FleetSetting, runner: ModelRunner, folder: Path) -> FleetRan:
    model = Path(setting.model)
    feeds = feeds_of(model, setting.batch, setting.length)
    session = whole_session(model)
    names = [value.name for value in session.get_outputs()]
    expected = dict(zip(names, session.run(None, feeds), strict=True))
    del session
    found = FleetRan()
    parts: dict[str, list[Mapping[str, float]]] = {}
    for number, tried in enumerate(setting.plans):
        where = folder / f"cut-{number}"
        schedule = await asyncio.to_thread(
            cut_model, model, loads_plan(tried.plan), forms_of(feeds), where
        )
        holders = {int(part): list(nodes) for part, nodes in tried.holders.items()}
        await runner.prepare(f"m{number}", "s", schedule, CutFolder(model, where), holders, seconds=120.0)
        found.seconds[tried.name], parts[tried.name] = [], []
    for turn in range(-WARM, setting.turns):
        for number, tried in enumerate(setting.plans):
            began = time.perf_counter()
            answer = await runner.infer(f"m{number}", "s", feeds, 60.0)
            took = time.perf_counter() - began
            assert answer.exact, answer.lacking
            if turn < 0:
                found.errors[tried.name] = max(
                    float(np.abs(answer.results[n] - expected[n]).max() / np.abs(expected[n]).max())
                    for n in names
                )
                continue
            found.seconds[tried.name].append(took)
            parts[tried.name].append(answer.seconds)
            found.moved[tried.name] = sum(answer.sent.values()) + sum(answer.received.values())
    for name, answers in parts.items():
        keys = sorted({key for one in answers for key in one})
        found.parts[name] = {key: float(np.median([one.get(key, 0.0) for one in answers])) for key in keys}
    return found


def main() -> None:
    given: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    setting = FleetSetting(**{**given, "plans": [PlanTried(**plan) for plan in given["plans"]]})
    if setting.mbit:
        _shape_network(setting.mbit)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_run(setting, Path(folder)))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
