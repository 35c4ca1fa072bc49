"""One deployment as the aggregator has it in memory: what it is, who holds it, what it is prepared for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aggregator.bounds.bounds import SHAPES
from aggregator.bounds.budget import Lease
from aggregator.inference.batching.batcher import Batcher
from aggregator.inference.feeds import shape_key, shape_text
from aggregator.inference.life import Life
from aggregator.inference.placement import Holders
from aggregator.inference.prepared_shapes import PreparedShapes
from aggregator.inference.replanning import Replanning
from aggregator.store.deployments import DeploymentFolder
from edge_attention.core.messages.inference import (
    ConsideredPlan,
    DeployedModel,
    DeployedPart,
    DeployRequest,
    ModelTensor,
)
from edge_attention.core.tensors import DataType

if TYPE_CHECKING:  # the process apart needs no engine
    from aggregator.inference.calls import KnownWeight
    from edge_attention.core.schedule.schedule import Weight

__all__ = ["DESCRIBED_BYTES", "WHOLE", "Deployed", "PlannedParts", "Shapes", "described_bytes"]

WHOLE = "whole"
"""Key of what a model that is not cut is made ready for: inputs of any sizes."""

DESCRIBED_BYTES = 128 * 1024
"""Of the names and dimensions of one model's inputs and outputs: what describes it fits in a message."""

ROWS_UNASKED = 16
"""Rows of requests that run together where nobody said how many: at 16 tokens a row of MiniLM took 5.3 ms by
itself, 3.6 of 16, 3.5 of 32; at 128 tokens all the same."""

ANEW = "planned anew "
"""What notes of that begin with."""

Shapes = Mapping[str, tuple[int, ...]]
"""Input of a model -> its shape in a request."""


def described_bytes(tensors: Iterable[ModelTensor]) -> int:
    """Bytes that these take in a description, about."""
    return sum(16 + len(one.name.encode()) + sum(4 + len(n.encode()) for n in one.shape) for one in tensors)


@dataclass(frozen=True)
class PlannedParts:
    """What a plan makes of a model: what is kept of it, as JSON, beside the deployment's own.

    Attributes:
        inputs, outputs: of the model.
        shapes: of the inputs it was planned for.
        plan: the plan, as `core/schedule/saved_plan.py` writes it.
        text: the same in words.
        parts: without who holds them.
        holders: who does.
        node_bytes: of weights that each node is to hold.
        considered: plans that were not taken.
        whole: it is not cut.
        rows: where requests may run together, why rows of a batch meet in the model; "": they do not, or
            nobody looked.
        apart: it was looked at, and they do not.
        decoder: what serving it as sessions takes, as `core/schedule/pieces.py` writes it; empty: it is not
            served so, and `sessions` says why.
        gain: of a plan made anew, how many times as quick as the one before it is predicted to be.
        nodes: that it was made with, those that hold nothing included.
        looked_up: by input of whole numbers how many rows there are that they look up.
        joined: by input the axis along which the model joins something to it: there it may be empty.
        given: by input of one element what it must be, as the model was cut for that alone.
    """

    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]
    shapes: Shapes
    plan: str
    text: str
    parts: tuple[DeployedPart, ...]
    holders: Holders
    node_bytes: Mapping[str, int]
    coverage: float = 1.0
    lacking: str = ""
    considered: tuple[ConsideredPlan, ...] = ()
    notes: tuple[str, ...] = ()
    whole: bool = False
    rows: str = ""
    apart: bool = False
    decoder: str = ""
    sessions: str = ""

    @property
    def key(self) -> str:
        """Of what it is made ready for first."""
        return WHOLE if self.whole else shape_key(self.shapes)

    @property
    def key_text(self) -> str:
        """The same for a person."""
        return "inputs of any sizes" if self.whole else shape_text(self.shapes)

    gain: float = 0.0
    nodes: tuple[str, ...] = ()
    looked_up: Mapping[str, int] = field(default_factory=dict)
    joined: Mapping[str, int] = field(default_factory=dict)
    given: Mapping[str, int] = field(default_factory=dict)

    def held_by(self, holders: Holders) -> PlannedParts:
        """The same with other holders. Bytes of a node that holds several parts are counted apart."""
        size = {one.part: one.bytes for one in self.parts}
        node_bytes: dict[str, int] = {}
        for part, nodes in holders.items():
            for node in nodes:
                node_bytes[node] = node_bytes.get(node, 0) + size.get(part, 0)
        return replace(self, holders=dict(holders), node_bytes=node_bytes)

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": [_tensor_json(one) for one in self.inputs],
            "outputs": [_tensor_json(one) for one in self.outputs],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "plan": self.plan,
            "text": self.text,
            "parts": [[p.part, p.layers.start, p.layers.stop, p.share, p.bytes] for p in self.parts],
            "holders": {str(part): list(nodes) for part, nodes in self.holders.items()},
            "node_bytes": dict(self.node_bytes),
            "coverage": self.coverage,
            "lacking": self.lacking,
            "considered": [[one.plan, one.seconds, one.reason] for one in self.considered],
            "notes": list(self.notes),
            "whole": self.whole,
            "rows": self.rows,
            "apart": self.apart,
            "decoder": self.decoder,
            "sessions": self.sessions,
            "gain": self.gain,
            "nodes": list(self.nodes),
            "looked_up": dict(self.looked_up),
            "joined": dict(self.joined),
            "given": dict(self.given),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlannedParts:
        """Raises KeyError, TypeError, ValueError where it is none."""
        return cls(
            tuple(map(_tensor_from, data["inputs"])),
            tuple(map(_tensor_from, data["outputs"])),
            {str(name): tuple(map(int, shape)) for name, shape in data["shapes"].items()},
            str(data["plan"]),
            str(data["text"]),
            tuple(
                DeployedPart(int(part), range(int(start), int(stop)), str(share), int(size))
                for part, start, stop, share, size in data["parts"]
            ),
            {int(part): tuple(map(str, nodes)) for part, nodes in data["holders"].items()},
            {str(node): int(size) for node, size in data["node_bytes"].items()},
            float(data["coverage"]),
            str(data["lacking"]),
            tuple(ConsideredPlan(str(p), float(s), str(why)) for p, s, why in data["considered"]),
            tuple(map(str, data["notes"])),
            bool(data.get("whole", False)),  # of a version that cut all of them there is no such word
            str(data.get("rows", "")),
            bool(data.get("apart", False)),
            str(data.get("decoder", "")),
            str(data.get("sessions", "")),
            float(data.get("gain", 0.0)),
            tuple(map(str, data.get("nodes", ()))),
            {str(name): int(rows) for name, rows in data.get("looked_up", {}).items()},
            {str(name): int(axis) for name, axis in data.get("joined", {}).items()},
            {str(name): int(value) for name, value in data.get("given", {}).items()},
        )


def _tensor_json(one: ModelTensor) -> list[Any]:
    return [one.name, one.data_type.value, list(one.shape)]


def _tensor_from(data: Any) -> ModelTensor:
    name, data_type, shape = data
    return ModelTensor(str(name), DataType(data_type), tuple(map(str, shape)))


@dataclass(eq=False)
class Deployed:
    """A deployment.

    Attributes:
        id: names it on nodes and on the disk; of one version.
        request: as it was asked for; `plan_file` is not kept.
        size: bytes of its files.
        leases: what it holds of bounds.
        texts: by key of a shape, that for a person.
        coming: by key of a shape, the task that prepares for it.
        known: digests of its weights that were hashed, in this life of the aggregator or before.
        digested: whether those of before were read.
        whole_file: whether the model's files were found to be as they came, in this life of the aggregator.
        whole_decoder: the same of what was cut for its sessions.
        by_file: its plan came as a file: it is not planned anew.
        anew: how often this version was planned anew before.
        replanning: says when it is; None: it was not looked at yet.
        successor: the same version by another plan, which serves in its place.
        changed: set, and replaced, whenever it changes.
        batcher: its queue, once it has one.
    """

    id: str
    version: int
    request: DeployRequest
    owner: str
    created: float
    folder: DeploymentFolder
    size: int
    life: Life
    leases: tuple[Lease, ...]
    planned: PlannedParts | None = None
    shapes: PreparedShapes = field(default_factory=lambda: PreparedShapes(SHAPES))
    texts: dict[str, str] = field(default_factory=dict)
    coming: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    batcher: Batcher | None = None
    known: dict[Weight, KnownWeight] = field(default_factory=dict)
    digested: bool = False
    whole_file: bool = False
    whole_decoder: bool = False
    by_file: bool = False
    anew: int = 0
    replanning: Replanning | None = None
    successor: Deployed | None = None

    @property
    def name(self) -> str:
        return self.request.name

    @property
    def text(self) -> str:
        """Its plan, for a person."""
        return self.planned.text if self.planned is not None else ""

    @property
    def stays(self) -> str:
        """Why its plan stays what it is whoever comes or goes; empty: it does not."""
        if self.planned is not None and self.planned.decoder:
            return "sessions would end"
        return "its plan is a file's" if self.by_file else ""

    def succeed(self, before: Deployed) -> None:
        """It serves in place of `before`, the same version by another plan, from now on."""
        self.leases, before.leases = before.leases, ()
        self.replanning = before.replanning
        self.life.requests, self.life.failed = before.life.requests, before.life.failed
        before.successor = self

    def notes_with(self, note: str, most: int) -> tuple[str, ...]:
        """What is noted of its plan, and `note`: of what was planned anew the last `most`."""
        notes = self.planned.notes if self.planned is not None else ()
        anew = [one for one in notes if one.startswith(ANEW)]
        return (*(one for one in notes if not one.startswith(ANEW)), *[*anew, note][-most:])

    def note(self, note: str, most: int) -> None:
        """Have it noted."""
        if self.planned is not None:
            self.planned = replace(self.planned, notes=self.notes_with(note, most))
            self.change()

    @property
    def digests(self) -> set[str]:
        """Of its files."""
        return {self.request.model, *self.request.files.values()}

    @property
    def most_rows(self) -> int:
        """Of a batch that requests share; 1: each runs by itself."""
        asked, planned = self.request.max_batch, self.planned
        if planned is None or planned.rows:
            return 1
        if not asked:  # nobody said: of a model as it is any rows go together, of one that is cut few sizes
            return ROWS_UNASKED if planned.whole and planned.apart else 1
        return asked

    @property
    def joins(self) -> bool:
        """Whether requests run together."""
        return self.most_rows > 1

    @property
    def batching(self) -> str:
        """The same for a person; "" where nobody asked."""
        request = self.request
        if self.planned is None or (not self.joins and request.max_batch <= 1):
            return ""
        if self.planned.rows:
            return f"each request runs by itself: {self.planned.rows}"
        if not request.max_batch:
            return f"up to {self.most_rows} rows of requests run together while others are under way"
        return (
            f"up to {request.max_batch} rows of requests run together, for which one waits at most "
            f"{1000 * request.max_queue_delay:g} ms"
        )

    def change(self) -> None:
        """Whoever watches is told."""
        self.changed.set()
        self.changed = asyncio.Event()

    def kept(self) -> dict[str, Any]:
        """What its folder keeps of it."""
        assert self.planned is not None
        request = self.request
        return {
            "name": request.name,
            "version": self.version,
            "model": request.model,
            "files": dict(request.files),
            "plan": request.plan,
            "nodes": list(request.nodes),
            "replicas": request.replicas,
            "dimensions": dict(request.dimensions),
            "halves": request.halves,
            "max_batch": request.max_batch,
            "max_queue_delay": request.max_queue_delay,
            "owner": self.owner,
            "created": self.created,
            "size": self.size,
            "by_file": self.by_file,
            "anew": self.anew,
            "planned": self.planned.to_json(),
        }

    @classmethod
    def recalled(cls, folder: DeploymentFolder, data: Mapping[str, Any]) -> Deployed:
        """That of an earlier life of this aggregator. Raises KeyError, TypeError, ValueError."""
        request = DeployRequest(
            str(data["name"]),
            str(data["model"]),
            {str(path): str(digest) for path, digest in data["files"].items()},
            str(data["plan"]),
            b"",
            tuple(map(str, data["nodes"])),
            int(data["replicas"]),
            {str(name): int(size) for name, size in data["dimensions"].items()},
            bool(data["halves"]),
            int(data.get("max_batch", 0)),
            float(data.get("max_queue_delay", 0.0)),
        )
        return cls(
            folder.id,
            int(data["version"]),
            request,
            str(data["owner"]),
            float(data["created"]),
            folder,
            int(data["size"]),
            Life(request.name),
            (),
            PlannedParts.from_json(data["planned"]),
            by_file=bool(data.get("by_file", False)),
            anew=int(data.get("anew", 0)),
        )

    def described(self, holds: Holders, live: frozenset[str]) -> DeployedModel:
        """As clients see it. `holds`: who is ready to do which part."""
        planned, request = self.planned, self.request
        found = DeployedModel(
            request.name,
            self.version,
            self.life.state,
            self.life.detail,
            self.created,
            self.owner,
            request.model,
            self.size,
            plan="file" if self.by_file else request.plan or "auto",
            halves=request.halves,
            shapes=tuple(self.texts[key] for key in self.shapes.last_first),
            requests=self.life.requests,
            failed=self.life.failed,
            in_flight=self.life.in_flight,
            max_batch=request.max_batch,
            max_queue_delay=request.max_queue_delay,
            queued=self.batcher.queue.queued if self.batcher is not None else 0,
        )
        if planned is None:
            return found
        return replace(
            found,
            inputs=planned.inputs,
            outputs=planned.outputs,
            plan_text=planned.text,
            coverage=planned.coverage,
            lacking=planned.lacking,
            parts=tuple(self._part(part, holds, live) for part in planned.parts),
            considered=planned.considered,
            notes=planned.notes,
            whole=planned.whole,
            batching=self.batching,
            sessions=bool(planned.decoder),
        )

    def _part(self, part: DeployedPart, holds: Holders, live: frozenset[str]) -> DeployedPart:
        assert self.planned is not None
        ready = holds.get(part.part, ())
        holders = dict.fromkeys((*ready, *self.planned.holders.get(part.part, ())))
        return replace(
            part,
            holders=tuple(holders),
            live=tuple(name for name in holders if name in ready and name in live),
        )
