"""A user that means no good, in a process of its own: first `begin`, then `attack` for each graph."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "e2e"), str(TESTS / "edge_node")]

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from onnx import helper  # noqa: E402

from edge_attention import Client  # noqa: E402
from edge_attention.core.errors import EdgeAttentionError  # noqa: E402
from edge_attention.core.messages.training import LocalSpec, LossSpec, OptimizerSpec  # noqa: E402
from edge_attention.jobs.federated_job import FederatedJob, FederatedModel  # noqa: E402
from edge_attention.priority import give_way  # noqa: E402
from tests.hostile.direct import DATASET  # noqa: E402

SECONDS = 5.0

PLANNED = 11
"""One graph in so many is also the model of a training job: the aggregator reads and differentiates it."""

NICENESS = 10
"""Callers have machines of their own: what theirs need does not count against those that serve them."""

_clients: list[Client] = []


def begin(address: str) -> None:
    os.setsid()
    give_way(NICENESS)
    _clients.append(Client(address, timeout=SECONDS))


def attack(number: int, graph: Any) -> list[str]:
    """What came of the graph: the call and its error, or that it was done."""
    came = [f"append {_append(_clients[0], number, graph)}"]
    if number % PLANNED == 0:
        came.append(f"plan {_plan(_clients[0], graph)}")
    return came


def _append(client: Client, number: int, graph: Any) -> str:
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


def _plan(client: Client, graph: Any) -> str:
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
