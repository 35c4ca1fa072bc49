"""Graphs as a user sends them, through a real aggregator to real nodes, beside somebody who means well."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fleets import Fleet, queries, tokens, truth
from onnx import helper

from edge_attention import Client
from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.jobs import LocalSpec, LossSpec, OptimizerSpec
from edge_attention.federated_job import FederatedJob, FederatedModel
from tests.fuzz.corpus import METHODS
from tests.fuzz.tap import Tap
from tests.hostile import witness
from tests.hostile.direct import DATASET

SPEC = {"query_heads": 4, "key_heads": 2, "key_dim": 16, "value_dim": 8}
SECONDS = 5.0
CALLERS = 2
SEEDS = {"a": 3, "b": 4}
"""Of the nodes' private numbers."""

PLANNED = 11
"""One graph in so many is also the model of a training job: the aggregator reads and differentiates it."""


class Public:
    """Nodes a and b, whose operator allows no release; every message to and from the aggregator is heard."""

    def __init__(self, folder: Path, canary: witness.Canary, flags: list[str]) -> None:
        self._folder, self.canary, self._flags = folder, canary, flags
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._private = [witness.Private(seed) for seed in SEEDS.values()]

    def _heard(self, number: int, path: str, request: bool, data: bytes) -> None:
        # What nodes send, and what clients are answered; what they say of themselves is theirs to say.
        if request != path.startswith("/edge_attention.v1.EdgeLinkService/"):
            return
        message = METHODS[path][0 if request else 1].FromString(data)
        for private in self._private:
            if found := private.leak(message):
                self.wrong.append(f"a private number went through {path}: {found}")
        if any(needle in data for needle in self.canary.needles):
            self.wrong.append(f"what is in a file of the box went through {path}")

    async def start(self) -> None:
        (self._folder / "fleet").mkdir()
        self.fleet = Fleet(self._folder / "fleet", "--lease", "30", state=True)
        self._tap = await Tap(self.fleet.address, self._heard).start()
        self._direct = self.fleet.address
        self.fleet._port = self._tap.port
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        files = {name: witness.write(self._folder / f"{name}.npz", seed) for name, seed in SEEDS.items()}
        with contextlib.chdir(self.canary.folder):
            for name in "ab":
                store = ("--store", str(self._folder / f"store-{name}"))
                self.fleet.start_node(
                    name, "--threads", "1", *store, *self._flags, data={DATASET: files[name]}, wait=False
                )
        for name in "ab":
            self.fleet.wait_ready(name, 60)
        self.good = GoodCaller(Client(self._direct, timeout=30))

    async def stop(self) -> None:
        await asyncio.to_thread(self.good.close)
        await asyncio.to_thread(self.fleet.stop)
        await self._tap.stop()

    def attack(self, graphs: Iterable[Any]) -> None:
        """All of them, by a few callers at a time."""
        with ThreadPoolExecutor(CALLERS) as pool:
            clients = [self.fleet.client(timeout=SECONDS) for _ in range(CALLERS)]
            try:
                for number, graph in enumerate(graphs):
                    # No more wait than are tried: graphs are made as they are needed.
                    while pool._work_queue.qsize() > CALLERS:
                        time.sleep(0.005)
                    pool.submit(self._try, clients[number % CALLERS], number, graph)
            finally:
                pool.shutdown()
                for client in clients:
                    client.close()

    def _try(self, client: Client, number: int, graph: Any) -> None:
        try:
            self.outcomes[f"append {self._append(client, number, graph)}"] += 1
            if number % PLANNED == 0:
                self.outcomes[f"plan {self._plan(client, graph)}"] += 1
            if self.canary.opened():
                self.wrong.append(f"{graph.name}: a file of the box was opened")
        except Exception as error:
            self.wrong.append(f"{graph.name}: {type(error).__name__}: {error}")

    def _append(self, client: Client, number: int, graph: Any) -> str:
        """Tokens that a node computes from its rows through the graph, and an answer over them."""
        name = f"hostile-{number}"
        inputs = {one: "flat" if array.ndim == 1 else "w4" for one, array in graph.feeds.items()}
        try:
            context = client.create_context(name, query_heads=1, key_heads=1, key_dim=1, value_dim=1)
        except EdgeAttentionError as error:
            return type(error).__name__
        try:
            data = as_tokens(graph) if number % 4 else graph.data
            context.append_dataset("ab"[number % 2], DATASET, data, inputs, range(4), timeout=SECONDS)
            context.attend(np.zeros((1, 1, 1), np.float32), deadline=SECONDS)
        except EdgeAttentionError as error:
            return type(error).__name__
        finally:
            with contextlib.suppress(EdgeAttentionError):
                context.drop()
        return "done"

    def _plan(self, client: Client, graph: Any) -> str:
        job = FederatedJob(
            name="hostile",
            model=FederatedModel(
                graph.data, LossSpec("cross_entropy", "y", "whole"), dict.fromkeys(graph.feeds, "w4")
            ),
            dataset=DATASET,
            strategy="fedavg",
            local=LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=4, steps=1),
            rounds=1,
            nodes=("a",),
        )
        try:
            client.plan(job)
        except EdgeAttentionError as error:
            return type(error).__name__
        return "done"

    def well(self) -> list[str]:
        wrong = []
        for name in (AGGREGATOR, "a", "b"):
            child = self.fleet.child(name)
            if not child.running:
                wrong.append(f"{name} ended with {child.process.poll()}:{child.last_lines(30)}")
            elif any("Traceback (most recent call last)" in line for line in child.lines):
                wrong.append(f"{name} logged a traceback:{child.last_lines(40)}")
                child.lines.clear()
        return wrong


def as_tokens(graph: Any) -> bytes:
    """The graph with its first output as keys and values of tokens, where its file can be read at all."""
    try:
        model = onnx.load_from_string(graph.data)
        made = model.graph
        made.initializer.append(helper.make_tensor("_tokens", onnx.TensorProto.INT64, [3], [-1, 1, 1]))
        made.node.append(
            helper.make_node("Cast", [graph.outputs[0]], ["_numbers"], to=onnx.TensorProto.FLOAT)
        )
        made.node.append(helper.make_node("Reshape", ["_numbers", "_tokens"], ["keys"]))
        made.node.append(helper.make_node("Identity", ["keys"], ["values"]))
        del made.output[:]
        made.output.extend(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("keys", "values")
        )
        return bytes(model.SerializeToString())
    except Exception:  # whatever onnx makes of it
        return bytes(graph.data)


class GoodCaller:
    """Attends over a context of its own, again and again; every answer must be exact."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._keys, self._values = tokens(2_000, SPEC)
        self._asked = queries(2, SPEC)
        self._context = client.create_context("means-well", **SPEC)
        for node, part in (("a", slice(0, 1000)), ("b", slice(1000, 2000))):
            self._context.append(self._keys[part], self._values[part], node=node)
        self._out, _ = truth(self._asked, self._keys, self._values)
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def ask(self) -> None:
        began = time.monotonic()
        try:
            answer = self._context.attend(self._asked, deadline=20.0)
        except EdgeAttentionError as error:
            self.wrong.append(f"a good attend ended with {type(error).__name__}: {error}")
            return
        self.seconds.append(time.monotonic() - began)
        if not answer.exact:
            self.wrong.append(f"a good attend is not exact: {[gap.reason for gap in answer.missing]}")
        elif np.abs(answer.out - self._out).max() > 1e-5:
            self.wrong.append("a good attend says exact and is wrong")

    def quiet(self, seconds: float) -> list[float]:
        """The seconds attends take when nobody else asks."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.ask()
            time.sleep(0.01)
        found, self.seconds = self.seconds, []
        return found

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.02):
            self.ask()

    def stop(self) -> list[float]:
        self._over.set()
        self._thread.join(30)
        return self.seconds

    def close(self) -> None:
        self._client.close()
