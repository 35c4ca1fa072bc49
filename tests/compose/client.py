"""What a user does, run inside a client container: the demos' jobs against a fleet of containers.

    python3 client.py releases                 what nodes must release for the jobs
    python3 client.py train NODE NODE NODE     the demo's fusion job, then federated averaging
    python3 client.py spread NAME              a long context NAME over the nodes, which are there now
    python3 client.py attend NAME [SECONDS]    attends to it, once or for SECONDS; held against float64

The last line printed is a JSON object of figures. Ends with 1, saying why, if one of them is wrong.
EDGE_ATTENTION_AGGREGATOR and EDGE_ATTENTION_TOKEN_FILE say where and as whom.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention import Client
from edge_attention.core.messages.training import RunState
from edge_attention.demo import federated_jobs, memory, patients
from edge_attention.demo import federated_yardsticks as yardsticks
from edge_attention.demo.digits import Images
from edge_attention.demo.patients import LABS
from edge_attention.jobs.federated_job import FederatedJob
from edge_attention.jobs.job import FusionJob

TEST = "/work/test.npz"
"""Digits nobody trains on, as data.py wrote them."""

ROUNDS = 30
"""Of federated averaging: enough to see that it learns, in seconds."""


def connect() -> Client:
    token = Path(os.environ["EDGE_ATTENTION_TOKEN_FILE"]).read_text().strip()
    return Client(os.environ["EDGE_ATTENTION_AGGREGATOR"], token=token)


def fusion(nodes: list[str]) -> FusionJob:
    """The demo's job with each lab on one of `nodes`."""
    job = patients.job()
    lab = dict(zip(LABS, nodes, strict=True))
    encoders = tuple(dataclasses.replace(e, node=lab[e.node]) for e in job.encoders)
    return dataclasses.replace(
        job, encoders=encoders, head=dataclasses.replace(job.head, node=lab[job.head.node])
    )


def federated(nodes: list[str]) -> FederatedJob:
    job = federated_jobs.compared()["FedAvg"]
    return dataclasses.replace(job, nodes=tuple(nodes), rounds=ROUNDS)


def releases() -> dict[str, Any]:
    """What the nodes' operators must let leave for `train`, by digest."""
    nodes = ["a", "b", "c"]
    with connect() as client:
        planned = [*client.plan(fusion(nodes)), *client.plan(federated(nodes))]
    return {"releases": sorted({graph.release for graph in planned if graph.release})}


def train(nodes: list[str]) -> dict[str, Any]:
    with connect() as client:
        figures = {"fusion": finished(client, fusion(nodes)), "federated": finished(client, federated(nodes))}
    check("the fusion's accuracy is the demo's", figures["fusion"] >= 0.94, figures)
    check("federated averaging learns", figures["federated"] >= 0.6, figures)
    return figures


def finished(client: Client, job: Any) -> float:
    """The trained share of right answers, of samples nobody trained on."""
    run = client.train(job)
    rounds = list(run)
    info = run.describe()
    if info.state is not RunState.FINISHED:
        raise SystemExit(f"run {job.name} is {info.state.value} after round {info.round}: {info.detail}")
    print(f"{job.name}: {len(rounds)} rounds, loss {rounds[0].loss:.4f} to {rounds[-1].loss:.4f}", flush=True)
    if isinstance(job, FusionJob):
        evaluation = rounds[-1].evaluation
        assert evaluation is not None
        return float(evaluation.metrics["correct"]) / evaluation.samples
    with np.load(TEST) as test:
        return yardsticks.accuracy(run.onnx(), Images(test["image"], test["label"], test["id"]))


def spread(name: str) -> dict[str, Any]:
    known = memory.Memory.random()
    with connect() as client:
        context = client.create_context(
            name,
            query_heads=memory.QUERY_HEADS,
            key_heads=memory.KEY_HEADS,
            key_dim=memory.DIM,
            value_dim=memory.DIM,
        )
        context.append(known.keys, known.values)
        return {"tokens": context.describe().tokens}


def attend(name: str, seconds: float = 0) -> dict[str, Any]:
    known = memory.Memory.random()
    asked = memory.queries(16)
    end, count = time.monotonic() + seconds, 0
    with connect() as client:
        context = client.context(name)
        while not count or time.monotonic() < end:
            answer = context.attend(asked, deadline=memory.DEADLINE)
            count += 1
            time.sleep(0.2 if seconds else 0)
    reference = known.attention(asked)
    difference = np.abs(answer.out - reference)
    figures: dict[str, Any] = {
        "attends": count,
        "exact": answer.exact,
        "covered": sum(map(len, answer.coverage)) / answer.tokens,
        "error": float(difference.max()),
        "mass": {node: round(float(mass.mean()), 4) for node, mass in answer.mass.items()},
    }
    if answer.exact:
        check("the error of an exact answer is at most 1e-5", figures["error"] <= 1e-5, figures)
    else:
        assert answer.bound is not None
        holds = bool((difference <= answer.bound.error + 1e-5).all())
        check("the certified bound holds", holds, figures)
    return figures


def check(what: str, holds: bool, figures: dict[str, Any]) -> None:
    if not holds:
        raise SystemExit(f"must hold and does not: {what}; {figures}")


def main(command: str, *rest: str) -> dict[str, Any]:
    match command:
        case "releases":
            return releases()
        case "train":
            return train(list(rest))
        case "spread":
            return spread(rest[0])
        case "attend":
            return attend(rest[0], *map(float, rest[1:]))
    raise SystemExit(f"there is no {command!r}")


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
