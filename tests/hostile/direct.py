"""Graphs as programs, by an aggregator that lies: two nodes that differ in nothing but their private numbers.

Whatever a graph does on private data, both nodes' answers are the same in all that an aggregator can read,
but for `done` or `failed` and the class of the error.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from fake_aggregator import FakeAggregator

from edge_attention.cli.local_fleet import Child
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.program import Batch, Contribution, Program, Return, Run, Stored
from edge_attention.wire.link import from_node
from protos.edge_attention.v1 import link_pb2
from tests.hostile import witness

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}")
SECONDS = 3.0
"""The deadline of a task."""

DATASET = "secrets"


@dataclass
class Told:
    """What came of one kind of program."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Side:
    """One node and the aggregator that lies to it."""

    def __init__(self, name: str, seed: int, canary: witness.Canary) -> None:
        self.name, self.seed, self.canary = name, seed, canary
        self.server = FakeAggregator()
        self.private = witness.Private(seed)

    async def start(self, folder: Path, flags: list[str]) -> None:
        await self.server.start()
        data = witness.write(folder / f"{self.name}.npz", self.seed)
        # Both call themselves the same: a name in a sentence is no difference.
        words = ["--aggregator", f"127.0.0.1:{self.server.port}", "--name", "clinic", "--threads", "1"]
        words += ["--data", f"{DATASET}={data}", "--store", str(folder / f"store-{self.name}"), *flags]
        with contextlib.chdir(self.canary.folder):
            self.child = Child(self.name, "edge_node.main", words, None)
        await asyncio.to_thread(self.child.wait_for, r"registered with \S+ as ", 60)

    async def run(self, program: Program) -> list[Contribution]:
        """What the node says of it, at most two seconds after its deadline."""
        self.server.send(program)
        try:
            async with asyncio.timeout(SECONDS + 10):
                return await self.server.result(program.task_id)
        finally:
            # Nothing is kept of tasks that are over: there are thousands.
            self.server.contributions = [c for c in self.server.contributions if c.task_id != program.task_id]

    async def stop(self) -> None:
        await asyncio.to_thread(self.child.terminate)
        await self.server.stop()


class Direct:
    """The two sides. `attack` tries one graph on both."""

    def __init__(self, folder: Path, canary: witness.Canary, flags: list[str]) -> None:
        self.sides = (Side("left", 1, canary), Side("right", 2, canary))
        self._folder, self._flags = folder, flags
        self.open, self.private = Told(), Told()
        self._number = 0

    async def start(self) -> None:
        for side in self.sides:
            await side.start(self._folder, self._flags)

    async def stop(self) -> None:
        for side in self.sides:
            await side.stop()

    async def attack(self, hostile: Any) -> None:
        digest = sha256(hostile.data).hexdigest()
        self._number += 1
        task = f"t{self._number}"
        for side in self.sides:
            side.server.files[digest] = hostile.data
        outputs = {name: f"task/out/{number}" for number, name in enumerate(hostile.outputs)}
        returns = tuple(Return(stored, name) for name, stored in outputs.items())
        plain = (Run(digest, hostile.feeds, outputs), *returns)
        await self._both(
            hostile.name, Program(f"{task}-open", "s", range(1), plain, deadline_seconds=SECONDS), False
        )
        taken = private(hostile.feeds)
        if taken is not None:
            batches, inputs = taken
            hidden = (*batches, Run(digest, inputs, outputs), *returns)
            program = Program(f"{task}-hidden", "s", range(1), hidden, deadline_seconds=SECONDS)
            await self._both(hostile.name, program, True)
        for side in self.sides:
            side.server.files.pop(digest, None)

    async def _both(self, name: str, program: Program, hidden: bool) -> None:
        told = self.private if hidden else self.open
        began = time.monotonic()
        answers = await asyncio.gather(*(side.run(program) for side in self.sides), return_exceptions=True)
        seconds = time.monotonic() - began
        errors = []
        for side, answer in zip(self.sides, answers, strict=True):
            if isinstance(answer, EdgeAttentionError):
                told.outcomes["no way to send its feeds"] += 1
                return
            if isinstance(answer, BaseException):
                state = "lives" if side.child.running else f"ended with {side.child.process.poll()}"
                told.wrong.append(f"{name}: {answer!r} after {seconds:.0f} s: the node {state}")
                return
            error = answer[-1].error
            errors.append(error)
            told.outcomes[error.name if error else "done"] += 1
            data = [from_node.encode(one) for one in answer]
            if hidden and any(one.tensors or one.bulk_tensors for one in answer):
                told.wrong.append(f"{name}: a tensor left that was computed from private ones")
            for message in map(link_pb2.ConnectRequest.FromString, data):
                if hidden and (found := side.private.leak(message)):
                    told.wrong.append(f"{name}: a private number left: {found}")
            if any(needle in one for needle in side.canary.needles for one in data):
                told.wrong.append(f"{name}: what is in a file of the box left")
            if side.canary.opened():
                told.wrong.append(f"{name}: a file of the box was opened")
        left, right = errors
        said = [error and _TIME.sub("", error.message) for error in errors]
        same = left is None or right is None or left.name != right.name or said[0] == said[1]
        if hidden and not same:
            told.wrong.append(
                f"{name}: a failure's words depend on private data: {left.message!r}, {right.message!r}"
            )

    async def well(self) -> list[str]:
        """What is wrong with the two nodes."""
        wrong = [
            f"node {side.name} ended with {side.child.process.poll()}:{side.child.last_lines(30)}"
            for side in self.sides
            if not side.child.running
        ]
        for side in self.sides:
            if any("Traceback (most recent call last)" in line for line in side.child.lines):
                wrong.append(f"node {side.name} logged a traceback:{side.child.last_lines(40)}")
                side.child.lines.clear()
        return wrong


def private(feeds: Mapping[str, Any]) -> tuple[list[Batch], dict[str, Any]] | None:
    """Batches, and inputs bound to private tensors wherever a column has their shape; None if nowhere."""
    batches, inputs = list[Batch](), dict[str, Any](feeds)
    for number, (name, array) in enumerate(feeds.items()):
        column = None
        if array.dtype == np.float32 and array.ndim == 1:
            column = "flat"
        elif array.dtype == np.float32 and array.ndim == 2 and array.shape[1] in witness.WIDTHS:
            column = f"w{array.shape[1]}"
        elif array.dtype == np.int64 and array.ndim == 1:
            column = "whole"
        if column is None or not 0 < len(array) <= witness.ROWS:
            continue
        stored = f"task/private/{number}"
        batches.append(Batch(DATASET, {column: stored}, np.arange(len(array))))
        inputs[name] = Stored(stored)
    return (batches, inputs) if batches else None
