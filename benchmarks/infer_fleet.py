"""One fleet of real processes, planned for and then run: `python -m benchmarks.infer_fleet FILE`.

FILE is JSON (`FleetSetting`); the answer is JSON on stdout (`FleetRan`). The aggregator is this process.
The whole model runs on each node first, which says how quick the boxes are; a probe says how their links
are. Then the planner picks, and the best plan of each kind runs, all in turns, the whole model on each node
as well: so boxes are measured all along, as by the answers of a deployment, and what is compared with what
was measured is predicted from that. Nodes get less of a processor by a control group, and all of them a
slower network by `tc tbf` on loopback, in a network namespace of their own.
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.checkup.recipe import checkup
from aggregator.engine.recipe import Engine, Recipe
from aggregator.inference.model_answer import ModelAnswer
from aggregator.inference.runner import ModelRunner
from aggregator.server import ServerSettings, running
from benchmarks.infer_compute import forms_of
from benchmarks.infer_models import feeds_of, whole_session
from edge_attention.client.aio import AsyncClient
from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.choice import PlanWanted, PredictedPlan, family_of
from edge_attention.core.placement.cuts.measures import FleetMeasures
from edge_attention.core.schedule.plan import CutPlan, Stage
from edge_attention.graphs.axes.costs import model_costs
from edge_attention.graphs.axes.cut import analyse, cut_model, sizes_of
from edge_attention.graphs.axes.folder import CutFolder
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.narrow import narrow_places
from edge_attention.graphs.axes.planning import plan_model, repredicted

__all__ = ["FleetRan", "FleetSetting", "run_fleet"]

PERIOD = 4_000
"""Microseconds of a control group's period: a node that may run half of them is half as quick all along."""
WARM, MEASURED = 2, 5
FLOPS = 100e9
"""A second of one thread here; what nodes are measured to do corrects it."""
MIB = 1 << 20


@dataclass(frozen=True)
class FleetSetting:
    """Attributes:
    nodes: name -> its share of one core.
    mbit: of loopback, for all together; 0: as it is.
    kinds: how many plans run, one of each kind, the best predicted first, one box among them.
    turns: requests of each plan, one after another by turns.
    """

    model: str
    batch: int
    length: int
    nodes: Mapping[str, float]
    mbit: float
    kinds: int
    turns: int


@dataclass
class FleetRan:
    """Attributes:
    chosen: what the planner picked.
    says: its sentence.
    predicted: plan -> seconds.
    seconds: plan -> of each request.
    parts: plan -> by part, seconds in graphs, as its node says; the median.
    moved: plan -> bytes a request sends and receives.
    errors: plan -> largest error by the largest value.
    boxes: node -> measured by predicted seconds of the whole model.
    links: node -> seconds of a small message there and back, bytes a second down and up.
    """

    chosen: str = ""
    says: str = ""
    predicted: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    boxes: dict[str, float] = field(default_factory=dict)
    links: dict[str, tuple[float, float, float]] = field(default_factory=dict)


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
                process = subprocess.Popen(  # noqa: ASYNC220
                    waits, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
                stack.enter_context(_slowed(process.pid, share))
                stack.callback(process.wait)
                stack.callback(process.kill)
                assert process.stdin is not None
                process.stdin.write(b"go\n")
                process.stdin.flush()
            if not await engines[0].trips.all_live(list(setting.nodes), 60.0, lambda sentence: None):
                raise SystemExit("a node of the benchmark did not come")
            async with AsyncClient(f"127.0.0.1:{port}") as client:
                bench = _Bench(setting, runner, client, folder)
                await bench.measure()
                return await bench.compare(await asyncio.to_thread(bench.plan))


class _Bench:
    """One setting, in a fleet that is up."""

    def __init__(self, setting: FleetSetting, runner: ModelRunner, client: AsyncClient, folder: Path) -> None:
        self._setting, self._runner, self._client, self._folder = setting, runner, client, folder
        self._model = Path(setting.model)
        self._feeds = feeds_of(self._model, setting.batch, setting.length)
        session = whole_session(self._model)
        names = [value.name for value in session.get_outputs()]
        self._expected = dict(zip(names, session.run(None, self._feeds), strict=True))
        self._opened = open_model(self._model)
        self._axes = analyse(self._opened, sizes_of(self._opened, forms_of(self._feeds)))
        self._layers = range(len(narrow_places(self._axes)) + 1)
        self._boxes = {name: ComputeBox(name, FLOPS) for name in setting.nodes}
        self._links = BoxLinks()
        self._prepared: dict[str, str] = {}
        self._measures = FleetMeasures()
        self._predicted: dict[str, float] = {}
        """By node, seconds of the whole model on a box that is as quick as is stated."""
        self.found = FleetRan()

    async def measure(self) -> None:
        """How quick boxes and links are: what a deployment measures of itself."""
        measures = self._measures
        whole = CutPlan((Stage(self._layers, (0,)),))
        costs = model_costs(self._axes)
        overheads = []
        for name, box in self._boxes.items():
            await self._prepare(f"whole on {name}", whole, {0: (name,)})
            took = []
            for _ in range(WARM + MEASURED):
                answer, seconds = await self._request(f"whole on {name}")
                took.append((answer.seconds["part 0"], seconds))
            at, seconds = min(took[WARM:])
            self._predicted[name] = sum(box.seconds(layer.work, costs.rows) for layer in costs.layers)
            measures.computed(name, at, self._predicted[name], 0.0)
            self.found.boxes[name] = at / self._predicted[name]
            trips = await self._client.probe(name, round_trips=10)
            size = 4 * MIB if not self._setting.mbit or self._setting.mbit > 100 else MIB
            moved = await self._client.probe(name, round_trips=1, size=size)
            assert moved.down_seconds
            assert moved.up_seconds
            there = min(trips.round_trip_seconds)
            measures.moved(name, size, moved.down_seconds, 0.0, down=True)
            measures.moved(name, size, moved.up_seconds, 0.0, down=False)
            self.found.links[name] = there, size / moved.down_seconds, size / moved.up_seconds
            # What a request takes beside computing and sending: a trip's own time.
            sent = costs.feeds * moved.down_seconds / size + costs.layers[-1].out * moved.up_seconds / size
            overheads.append(max(seconds - at - sent, there))
        rate = self._setting.mbit * 1e6 / 8
        hub = BoxLink(0.0, rate, rate, rate) if rate else BoxLink()
        trip = max(min(overheads) - BoxLinks().call_seconds, 1e-4)
        self._stated = self._boxes
        self._links = measures.links(replace(BoxLinks(), hub=hub, trip_seconds=trip))
        self._boxes = {name: measures.box(box) for name, box in self._boxes.items()}

    def plan(self) -> list[PredictedPlan]:
        """The best plan of each kind, the chosen one first."""
        choice = plan_model(
            self._opened,
            self._axes,
            list(self._boxes.values()),
            self._links,
            PlanWanted(),
            2 * self._setting.kinds,
        )
        assert choice.chosen is not None
        self.found.chosen, self.found.says = choice.chosen.name, choice.says
        kinds: dict[str, PredictedPlan] = {}
        for plan in (choice.chosen, *choice.rejected):
            stage = plan.plan.stages[0]
            single = len(plan.plan.stages) == 1
            kind = f"{stage.cut} {stage.crossing}" if single else family_of(plan.plan)
            if not plan.problem:
                kinds.setdefault(kind, plan)
        return list(kinds.values())[: self._setting.kinds]

    async def compare(self, plans: Sequence[PredictedPlan]) -> FleetRan:
        """Run the plans in turns."""
        found = self.found
        parts: dict[str, list[Mapping[str, float]]] = {}
        for plan in plans:
            found.seconds[plan.name], parts[plan.name] = [], []
            await self._prepare(plan.name, plan.plan, plan.boxes)
        alone: dict[str, list[float]] = {name: [] for name in self._boxes}
        for turn in range(-WARM, self._setting.turns):
            for name in self._boxes:
                answer, _ = await self._request(f"whole on {name}")
                alone[name].append(answer.seconds["part 0"])
            for plan in plans:
                answer, took = await self._request(plan.name)
                if turn < 0:
                    found.errors[plan.name] = max(
                        float(np.abs(answer.results[name] - value).max() / np.abs(value).max())
                        for name, value in self._expected.items()
                    )
                    continue
                found.seconds[plan.name].append(took)
                parts[plan.name].append(answer.seconds)
                found.moved[plan.name] = sum(answer.sent.values()) + sum(answer.received.values())
        boxes = {}
        for name, seconds in alone.items():
            slowness = sorted(seconds)[len(seconds) // 4] / self._predicted[name]
            boxes[name], found.boxes[name] = replace(self._stated[name], slowness=slowness), slowness
        for plan in plans:
            again = repredicted(self._opened, self._axes, plan, boxes, self._links, PlanWanted())
            found.predicted[plan.name] = again.seconds
        for name, answers in parts.items():
            keys = sorted({key for one in answers for key in one})
            found.parts[name] = {
                key: float(np.median([one.get(key, 0.0) for one in answers])) for key in keys
            }
        return found

    async def _prepare(self, name: str, plan: CutPlan, holders: Mapping[int, Sequence[str]]) -> None:
        number = f"m{len(self._prepared)}"
        where = self._folder / number
        schedule = await asyncio.to_thread(cut_model, self._model, plan, forms_of(self._feeds), where)
        files = CutFolder(self._model, where)
        await self._runner.prepare(number, "s", schedule, files, holders, seconds=120.0)
        self._prepared[name] = number

    async def _request(self, name: str) -> tuple[ModelAnswer, float]:
        began = time.perf_counter()
        answer = await self._runner.infer(self._prepared[name], "s", self._feeds, 60.0)
        took = time.perf_counter() - began
        assert answer.exact, answer.lacking
        return answer, took


def main() -> None:
    given: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    setting = FleetSetting(**given)
    if setting.mbit:
        _shape_network(setting.mbit)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_run(setting, Path(folder)))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
