"""An aggregator without a network: real recipes, and nodes that run real programs in the same event loop."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from aggregator.attention.activity import AttendActivity
from aggregator.attention.append import Appender
from aggregator.attention.attend import Attender
from aggregator.attention.contexts import Contexts
from aggregator.attention.metrics import AttendMetrics
from aggregator.engine.bulk import Bulk
from aggregator.engine.dispatch import Dispatcher
from aggregator.engine.trip import Trips
from aggregator.fleet.membership import Membership
from aggregator.inference.runner import ModelRunner
from aggregator.observe.metrics import Metrics
from aggregator.store.parameters import ParameterStore
from aggregator.store.state import State
from aggregator.training.activity import RunActivity
from aggregator.training.earlier_runs import job_of as stored_job
from aggregator.training.metrics import RunMetrics
from aggregator.training.planner import make_here
from aggregator.training.runs import Runs
from aggregator.training.services import Services
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.halves import from_wire, stored_dtype
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.messages.link import PROTOCOL, Register, Sequence
from edge_attention.core.messages.program import Call, Program
from edge_attention.wire.link import from_node, to_node
from edge_node.data.datasets import read
from edge_node.executor import Execution, LocalNode
from edge_node.programs import PreparedPrograms
from edge_node.release import Releases
from edge_node.runtime import Runtime
from edge_node.store.store import Store


class House:
    """The aggregator's parts, put together as its server does.

    `plan`: makes jobs' plans; the server's way, `planner.make`, takes a process each (test_planner.py).
    """

    def __init__(self, folder=None, patience=120.0, plan=make_here):
        self.state = State(folder)
        self.metrics = Metrics()
        self.attend_metrics = AttendMetrics(self.metrics)
        self.run_metrics = RunMetrics(self.metrics)
        self.attend_activity, self.run_activity = AttendActivity(), RunActivity()
        sessions = (f"s{n}" for n in itertools.count())
        self.membership = Membership(10.0, lambda: next(sessions))
        self.dispatcher = Dispatcher(self.membership, self.metrics.tasks)
        self.bulk = Bulk(self.state)
        self.trips = Trips(self.dispatcher, self.bulk)
        self.contexts = Contexts(self.state, self.membership, self.attend_metrics)
        self.appender = Appender(self.contexts, self.membership, self.trips, self.bulk)
        self.attender = Attender(self.contexts, self.trips, self.attend_metrics, self.attend_activity)
        self.parameters = ParameterStore(self.state)
        link = SimpleNamespace(bytes_sent=Counter(), bytes_received=Counter())
        parts = (self.state, self.parameters, self.membership, self.trips, self.bulk, link)
        engine = SimpleNamespace(trips=self.trips, bulk=self.bulk, membership=self.membership)
        self.runner = ModelRunner(engine)
        self.runs = Runs(Services(*parts, self.run_metrics, patience, self.runner, self.run_activity, plan))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.state.close()

    def node(self, name, **options):
        return Box(self, name, **options)

    def counted(self, outcome):
        return (
            self.metrics.registry.get_sample_value(
                "edge_attention_aggregator_contributions_total", {"outcome": outcome}
            )
            or 0
        )


class Box:
    """A node. `tamper(contribution)` changes what it returns (None: nothing); `mute`: it answers nothing."""

    def __init__(self, house, name, *, datasets=(), releases=(), limit=1 << 28, tamper=None, mute=False):
        self.house, self.name, self.tamper, self.mute = house, name, tamper, mute
        self.datasets = {dataset.name: dataset for dataset in datasets}
        self.node = LocalNode(Store(limit), self.datasets, Releases(releases))
        self.runtime = Runtime("cpu", 1)
        self.programs, self.cancelled = [], []
        self.calls, self.prepared = [], PreparedPrograms(self.node.store, self.runtime)
        """Of the programs those that were called."""
        self.lives = 0
        self.connect()

    def connect(self, *, fresh=False):
        """Register, as the process it was or (fresh) as a new one."""
        self.lives += fresh
        if fresh:
            self.node = replace(self.node, store=Store(self.node.store.limit))
        sequences = tuple(Sequence(name, tokens) for name, tokens in self.node.store.sequences().items())
        described = tuple(dataset.describe() for dataset in self.datasets.values())
        register = Register(
            PROTOCOL, "0", self.name, f"{self.name}-{self.lives}", "", "CPU", 1, self.node.store.limit,
            described, sequences, self.node.releases.announced,
        )  # fmt: skip
        now = asyncio.get_running_loop().time()
        self.member = self.house.membership.register(register, now).member
        for name in self.house.contexts.unknown(self.member):
            self.node.store.drop(name)
        self.house.dispatcher.connected(self.name, self)

    def disconnect(self):
        self.house.membership.disconnected(self.name, self.member.epoch, time.monotonic())
        self.house.dispatcher.disconnected(self.name, self)

    def lose(self):
        """Its lease runs out."""
        self.disconnect()
        self.member.state = NodeState.LOST
        self.house.dispatcher.changed(self.name)

    def send(self, message):
        message = to_node.decode(to_node.encode(message))
        if isinstance(message, Call):
            # Whether a node knows a program by then is the link's.
            self.calls.append(message)
            message = self.prepared.find(message).called(message)
        if isinstance(message, Program):
            self.programs.append(message)
            if not self.mute:
                asyncio.get_running_loop().call_soon(self.run, message)
        else:
            self.cancelled.append(message.task_id)

    def run(self, program):
        for contribution in self.execute(program):
            self.house.dispatcher.contribution(self.name, contribution)

    def execute(self, program):
        """The contributions of `program`, as they arrive."""
        graphs = {}
        execution = Execution(program, self.node, graphs)
        for digest in digests(program.instructions):
            graphs[digest] = self.runtime.find(digest) or self.runtime.load(
                digest, self.house.bulk.find(digest)
            )
        for bulk in program.bulk_tensors:
            dtype = stored_dtype(bulk.encoding, np.dtype(bulk.data_type.value), bulk.name)
            data = from_wire(np.frombuffer(self.house.bulk.find(bulk.digest), dtype), bulk.encoding)
            try:
                execution.place(bulk.name, data.reshape(bulk.shape))
            except EdgeAttentionError as error:
                yield execution.failure(error)
                return
        for contribution in execution.contributions():
            contribution = from_node.decode(from_node.encode(contribution))
            contribution = self.tamper(contribution) if self.tamper else contribution
            if contribution is not None:
                yield contribution


def dataset(name, ids=None, **columns):
    """A node's dataset of these columns, by way of a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        np.savez(file, **columns, **({} if ids is None else {"id": np.array(ids)}))
        return read(f"{name}={file}")


def job_of(house, run):
    """The job of a run, which may have ended."""
    return stored_job(house.state.get_run(run).job)


def digests(instructions):
    for instruction in instructions:
        if hasattr(instruction, "graph"):
            yield instruction.graph
        yield from digests(getattr(instruction, "body", ()))


async def until(condition):
    """Let the loop turn until `condition()` holds."""
    async with asyncio.timeout(180):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
