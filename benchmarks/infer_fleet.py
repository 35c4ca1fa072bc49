"""One fleet of real processes, planned for and then run: `python -m benchmarks.infer_fleet FILE`.

FILE is JSON (`FleetSetting`); the answer is JSON on stdout (`FleetRan`). The aggregator is this process.
Nodes and links are measured as before an automatic plan of a deployment, the planner picks, and the best plan
of each kind runs, all in turns, the whole model on each node as well. Answers keep up what is known of boxes
and links, as those of a deployment do; what is compared with what was measured is predicted from that.
Nodes get less of a processor by a control group, and all of them a
slower network by `tc tbf` on loopback, in a network namespace of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.engine.recipe import Engine, Recipe
from aggregator.inference.gained import box_of, links_of
from aggregator.inference.measured import WORK_FILE, work_text
from aggregator.inference.model_answer import ModelAnswer
from aggregator.inference.placement import GAIN
from aggregator.inference.plan_nodes import PlanNodes
from aggregator.inference.runner import ModelRunner
from aggregator.server import ServerSettings, running
from benchmarks.infer_compute import forms_of
from benchmarks.infer_models import feeds_of, whole_session
from edge_attention import loop
from edge_attention.allocator import keep_blocks
from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.choice import PlanWanted, PredictedPlan, family_of
from edge_attention.core.schedule.plan import CutPlan, Stage
from edge_attention.core.schedule.schedule import Schedule
from edge_attention.graphs.axes.cut import analyse, analyse_for, cut, sizes_of
from edge_attention.graphs.axes.folder import CutFolder, write_cut
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.narrow import narrow_places
from edge_attention.graphs.axes.planning import plan_model, repredicted, segments_work
from edge_attention.grpc_polling import poll_directly

__all__ = ["FleetFailed", "FleetRan", "FleetSetting", "node_fleet", "run_fleet"]

PERIOD = 4_000
"""Microseconds of a control group's period: a node that may run half of them is half as quick all along."""
WARM, MEASURED = 2, 5
LEAST_TURNS, TURNS_SECONDS = 5, 25.0
"""Turns there are at least, and no more after so many seconds."""
ENDING_SECONDS = 20.0
WANTED = PlanWanted(gain=GAIN)


@dataclass(frozen=True)
class FleetSetting:
    """Attributes:
    nodes: name -> its share of one core.
    mbit: of loopback, for all together; 0: as it is.
    kinds: how many plans run, one of each kind, the best predicted first, one box among them.
    turns: requests of each plan, one after another by turns; at most.
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
    boxes: node -> measured by stated seconds of what it computed.
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


class FleetFailed(Exception):
    """A setting came to no end; says how."""


def run_fleet(setting: FleetSetting, seconds: float = 600.0) -> FleetRan:
    """Run the setting in a process of its own, in a network namespace where its links are slower.

    Raises FleetFailed: it ended badly, or had not ended after `seconds`.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(asdict(setting), file)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.infer_fleet", file.name]
        if setting.mbit:
            command = ["unshare", "-n", *command]
        poll_directly()  # the aggregator, too, as `edge-aggregator` does before it loads gRPC
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "ERROR"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                said, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # it ends its nodes, which a kill would leave
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=ENDING_SECONDS)
                process.kill()
                raise FleetFailed(f"it had not ended after {seconds:.0f} s") from None
            except BaseException:
                process.send_signal(signal.SIGINT)
                raise
    if process.returncode:
        raise FleetFailed(f"it ended with {process.returncode}; its error is above")
    return FleetRan(**json.loads(said.splitlines()[-1]))


def _shape_network(mbit: float) -> None:
    """In a namespace of our own: loopback up, packets as on a wire, so many bits a second."""
    for command in (
        "ip link set lo mtu 1500 up",
        f"tc qdisc add dev lo root tbf rate {mbit}mbit burst 32kb latency 400ms",
    ):
        subprocess.run(command.split(), check=True)


@contextlib.contextmanager
def slowed(pid: int, share: float) -> Iterator[None]:
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


@contextlib.asynccontextmanager
async def node_fleet(
    nodes: Mapping[str, float], folder: Path
) -> AsyncIterator[tuple[Engine, dict[str, subprocess.Popen[bytes]]]]:
    """An aggregator in this process, and a process a node with its share of a core; ends with them."""
    engines: list[Engine] = []

    def capture(engine: Engine) -> Recipe:
        engines.append(engine)
        return Recipe("benchmark")

    settings = ServerSettings("127.0.0.1", 0, folder / "state", "127.0.0.1", None, 10.0, 60.0)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    async with running(settings, (capture,)) as port:
        with contextlib.ExitStack() as stack:
            for name, share in nodes.items():
                command = [sys.executable, "-c", "from edge_node.main import main; main()"]
                command += ["--aggregator", f"127.0.0.1:{port}"]
                command += ["--store", str(folder / name), "--name", name, "--threads", "1"]
                command += ["--memory-limit", "2GiB"]
                # A node makes its cell as it starts: what starts in the group stays in it.
                waits = ["sh", "-c", 'read go; exec "$@"', "sh", *command]
                process = subprocess.Popen(  # noqa: ASYNC220
                    waits, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
                processes[name] = process
                stack.enter_context(slowed(process.pid, share))
                stack.callback(process.wait)
                stack.callback(process.kill)
                assert process.stdin is not None
                process.stdin.write(b"go\n")
                process.stdin.flush()
            if not await engines[0].trips.all_live(list(nodes), 60.0, lambda sentence: None):
                raise SystemExit("a node of the benchmark did not come")
            yield engines[0], processes


async def _run(setting: FleetSetting, folder: Path) -> FleetRan:
    async with node_fleet(setting.nodes, folder) as (engine, _):
        bench = _Bench(setting, engine, folder)
        await bench.measure()
        return await bench.compare(await asyncio.to_thread(bench.plan))


class _Bench:
    """One setting, in a fleet that is up."""

    def __init__(self, setting: FleetSetting, engine: Engine, folder: Path) -> None:
        self._setting, self._folder = setting, folder
        self._runner = ModelRunner(engine)
        self._model = Path(setting.model)
        self._feeds = feeds_of(self._model, setting.batch, setting.length)
        session = whole_session(self._model)
        names = [value.name for value in session.get_outputs()]
        self._expected = dict(zip(names, session.run(None, self._feeds), strict=True))
        self._opened = open_model(self._model)
        self._axes = analyse(self._opened, sizes_of(self._opened, forms_of(self._feeds)))
        self._layers = range(len(narrow_places(self._axes)) + 1)
        self._nodes = PlanNodes(engine, Counter)
        self._prepared: dict[str, str] = {}
        self.found = FleetRan()

    async def measure(self) -> None:
        """How quick boxes and links are, as a deployment finds it out."""
        await self._nodes.measure(self._nodes.nodes(()), lambda progress: None)
        whole = CutPlan((Stage(self._layers, (0,)),))
        for name in self._setting.nodes:
            await self._prepare(f"whole on {name}", whole, {0: (name,)})
            for _ in range(WARM + MEASURED):
                await self._request(f"whole on {name}")

    def plan(self) -> list[PredictedPlan]:
        """The best plan of each kind, the chosen one first."""
        boxes, links = self._told()
        choice = plan_model(
            self._opened, self._axes, list(boxes.values()), links, WANTED, 2 * self._setting.kinds
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
        began = time.monotonic()
        for turn in range(-WARM, self._setting.turns):
            if turn >= LEAST_TURNS and time.monotonic() - began > TURNS_SECONDS:
                break
            for name in self._setting.nodes:
                await self._request(f"whole on {name}")
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
        boxes, links = self._told()
        for name, box in boxes.items():
            link = links.to(name)
            found.boxes[name], found.links[name] = box.slowness, (2 * link.latency, link.down, link.up)
        for plan in plans:
            again = repredicted(self._opened, self._axes, plan, boxes, links, WANTED)
            found.predicted[plan.name] = again.seconds
        for name, answers in parts.items():
            keys = sorted({key for one in answers for key in one})
            found.parts[name] = {
                key: float(np.median([one.get(key, 0.0) for one in answers])) for key in keys
            }
        return found

    def _told(self) -> tuple[dict[str, ComputeBox], BoxLinks]:
        """Boxes and links as a deployment's plan would be made with now."""
        nodes = self._nodes.nodes(())
        return {node.name: box_of(node) for node in nodes}, links_of(nodes, self._nodes.hub())

    async def _prepare(self, name: str, plan: CutPlan, holders: Mapping[int, Sequence[str]]) -> None:
        number = f"m{len(self._prepared)}"
        where = self._folder / number
        forms = forms_of(self._feeds)

        def made() -> Schedule:
            emitted = cut(analyse_for(self._opened, sizes_of(self._opened, forms), plan), plan)
            write_cut(emitted, self._opened, where)
            (where / WORK_FILE).write_text(work_text(segments_work(emitted, self._opened)))
            return emitted.schedule

        schedule = await asyncio.to_thread(made)
        files = CutFolder(self._model, where)
        await self._runner.prepare(number, "s", schedule, files, holders, seconds=120.0)
        self._prepared[name] = number

    async def _request(self, name: str) -> tuple[ModelAnswer, float]:
        number = self._prepared[name]
        began = time.perf_counter()
        answer = await self._runner.infer(number, "s", self._feeds, 60.0)
        took = time.perf_counter() - began
        assert answer.exact, answer.lacking
        await self._nodes.measures.answered(
            self._folder / number,
            answer.segments,
            self._nodes.threads(),
            took=answer.seconds["all"] - answer.seconds["turn"],
        )
        return answer, took


def main() -> None:
    given: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    setting = FleetSetting(**given)
    if setting.mbit:
        _shape_network(setting.mbit)
    keep_blocks()
    with tempfile.TemporaryDirectory() as folder:
        found = loop.run(_run(setting, Path(folder)))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
