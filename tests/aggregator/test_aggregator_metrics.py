"""What is counted where, and that no label grows without bound."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from house import House

from aggregator.attention import metrics as metrics_attend
from aggregator.attention.metrics import AttendMetrics
from aggregator.engine.link import FleetLink
from aggregator.engine.outcome import MissingKind, MissingShard, Outcome
from aggregator.fleet.membership import Member
from aggregator.observe.metrics import Metrics
from aggregator.observe.metrics_nodes import LOST_SECONDS, NODES, shown
from aggregator.training.metrics import KEPT_SECONDS, RUNS, RunMetrics
from edge_attention.core.errors import InvalidTensor, NotFinite, NotFound
from edge_attention.core.messages.attention import (
    AttendRequest,
    AttendResponse,
    Bound,
    ContextSpec,
    ShardMass,
)
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.messages.link import PROTOCOL, Heartbeat, Register
from edge_attention.core.messages.training import Evaluation, TrainingRound
from edge_attention.metrics.node import REPORT_LIMIT
from edge_attention.wire.link import from_node
from edge_attention.wire.services import ATTEND, LIST_NODES

PREFIX = "edge_attention_aggregator_"


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(PREFIX + name, labels)


def series(metrics, name):
    return [s for f in metrics.registry.collect() for s in f.samples if s.name == PREFIX + name]


def register(name, instance="i", session=""):
    return Register(PROTOCOL, "0", name, instance, session, "CPU", 1, 100)


def member(name, state=NodeState.READY, heard=0.0):
    return Member(register(name), "s", 1, heard, state)


# Nodes


def test_nodes_that_are_shown_are_bounded_and_the_long_lost_are_not():
    lost = [member(f"lost-{n}", NodeState.LOST, -LOST_SECONDS - 1) for n in range(3)]
    assert shown([*lost, member("b"), member("a", NodeState.LOST)], 0.0) == (
        member("a", NodeState.LOST),
        member("b"),
    )
    gone = [member(f"x{n:04}", NodeState.LOST, -n) for n in range(NODES)]
    kept = shown([*gone, member("live"), member("suspect", NodeState.SUSPECT, -0.5)], 0.0)
    assert len(kept) == NODES
    # The live first, then those heard of last.
    names = {m.name for m in kept}
    assert {"live", "suspect", "x0000"} <= names
    assert not {f"x{n:04}" for n in range(NODES - 2, NODES)} & names


def test_nodes_that_attends_are_counted_by_are_bounded(monkeypatch):
    monkeypatch.setattr(metrics_attend, "SHARES_SECONDS", 0.0)
    metrics = Metrics()
    attends = AttendMetrics(metrics)
    for n in range(NODES + 5):
        pair = [(f"n{n}", 0.5), ("z", 0.4)]
        attends.attended(answer(pair), outcome(pair))
    for name in ("attend_mass", "attend_slowest_total"):
        assert len(series(metrics, name)) == NODES
        assert value(metrics, name, node="n0") is not None
    metrics.tick([member("n7")], 0.0)
    attends.attended(answer(pair), outcome(pair))
    for name in ("attend_mass", "attend_slowest_total"):
        assert {s.labels["node"] for s in series(metrics, name)} - {"z"} == {"n7", pair[0][0]}


def test_the_fleet_as_it_is_when_somebody_asks():
    metrics = Metrics()
    heard = time.monotonic() - 60
    members = [member("a", heard=heard), member("b", NodeState.LOST, heard)]
    metrics.now.watch(lambda: members, lambda: {"a": (3, -5), "stranger": (1, 1)})
    assert value(metrics, "node_up", node="a") == 1
    assert value(metrics, "node_up", node="b") == 0
    assert 60 <= value(metrics, "node_silent_seconds", node="b") < 600
    assert value(metrics, "queued_programs", node="a") == 3
    assert value(metrics, "credit_bytes", node="a") == 0, "overdrawn is none"
    assert [s.labels for s in series(metrics, "queued_programs")] == [{"node": "a"}]


# Attends


def answer(mass, exact=True, bound=None, **seconds):
    zeros = {
        "plan": 0.0,
        "turn": 0.0,
        "wait": 0.0,
        "merge": 0.0,
        "node_run": 0.0,
        "queue": 0.0,
        "network": 0.0,
        "all": 0.0,
    }
    shards = tuple(
        ShardMass(f"s{n}", node, range(n, n + 1), np.full((2, 3), share, np.float32))
        for n, (node, share) in enumerate(mass)
    )
    none = np.zeros(0, np.float32)
    return AttendResponse(none, none, exact, (), shards, 1, None, bound, (), {**zeros, **seconds})


def outcome(seconds, unanswered=()):
    answered = {f"s{n}": node for n, (node, _) in enumerate(seconds)}
    missing = {f"m{n}": MissingShard(MissingKind.LATE, node, "late") for n, node in enumerate(unanswered)}
    took = {f"s{n}": s for n, (_, s) in enumerate(seconds)}
    return Outcome(answered, missing, seconds=took)


def test_an_answer_is_counted_by_stage_and_by_node(monkeypatch):
    monkeypatch.setattr(metrics_attend, "SHARES_SECONDS", 0.0)
    metrics = Metrics()
    attends = AttendMetrics(metrics)
    mass = [("a", 0.25), ("b", 0.5), ("a", 0.25)]
    seconds = {
        "plan": 0.1,
        "turn": 0.05,
        "queue": 0.2,
        "node_run": 0.3,
        "network": 0.4,
        "merge": 0.5,
        "all": 2.0,
        "wait": 1.0,
    }
    attends.attended(answer(mass, **seconds), outcome([("a", 0.2), ("b", 0.9), ("a", 0.6)]))
    for stage in seconds.keys() - {"wait"}:
        assert value(metrics, "attend_seconds_sum", stage=stage) == seconds[stage]
    assert value(metrics, "attends_total", outcome="exact") == 1
    assert value(metrics, "attend_wait_seconds_total") == 1.0
    assert value(metrics, "attend_straggler_seconds_total") == pytest.approx(1.0 - 0.6)
    assert value(metrics, "attend_slowest_total", node="b") == 1
    assert attends.shares == pytest.approx({"a": 0.5, "b": 0.5})
    for _ in range(200):
        attends.attended(answer([("a", 1.0), ("b", 0.0)], **seconds), outcome([("a", 1), ("b", 0.1)]))
    assert value(metrics, "attend_mass", node="a") == pytest.approx(1.0, abs=1e-3)
    assert value(metrics, "attend_slowest_total", node="a") == 200
    metrics.tick([member("a")], 0.0)
    assert [s.labels["node"] for s in series(metrics, "attend_mass")] == ["a"]
    assert [s.labels["node"] for s in series(metrics, "attend_slowest_total")] == ["a"]
    assert attends.shares.keys() == {"a"}


def test_a_partial_answer_counts_its_bound_and_whom_it_waited_for():
    metrics = Metrics()
    attends = AttendMetrics(metrics)
    bound = Bound(np.array([[0.25, 0.003]], np.float32), True)
    late = outcome([("a", 0.1), ("b", 0.2)], unanswered=("c", "c", ""))
    attends.attended(answer([("a", 1.0)], exact=False, bound=bound, wait=5.0), late)
    assert value(metrics, "attends_total", outcome="partial") == 1
    assert value(metrics, "attend_bound_sum") == 0.25
    # Of five parts the median had not been answered: nobody kept the others waiting alone.
    assert value(metrics, "attend_straggler_seconds_total") == 0
    assert {s.labels["node"]: s.value for s in series(metrics, "attend_slowest_total")} == {"c": 1}
    attends.attended(answer([("a", 1.0)], wait=1.0), outcome([("a", 0.5)]))
    assert value(metrics, "attend_slowest_total", node="a") is None, "of one part there is no slowest"


def test_only_attends_are_timed_at_the_edge_and_every_refusal_is_counted():
    metrics = Metrics()
    AttendMetrics(metrics)
    metrics.answered(ATTEND, 0.25)
    metrics.answered(LIST_NODES, 9.0)
    assert value(metrics, "attend_seconds_sum", stage="client") == 0.25
    metrics.refused(NotFound("x"))
    metrics.refused(NotFound("y"))
    assert {s.labels["reason"]: s.value for s in series(metrics, "refusals_total")} == {"NotFound": 2}


def attended(tamper=None):
    """An attend over two nodes, the second of which may tamper; the answer or error, and the metrics."""

    async def scenario(house):
        spec = ContextSpec("c", 2, 2, 4, 4)
        house.node("a")
        house.node("b", tamper=tamper)
        await house.contexts.create(spec)
        keys = np.random.default_rng(0).standard_normal((8, 2, 4)).astype(np.float32)
        await house.appender.append("c", "a", keys, keys)
        await house.appender.append("c", "b", keys, keys)
        found = await house.attender.attend(AttendRequest("c", keys[:1], deadline_seconds=5.0))
        return found, house.metrics

    with House() as house:
        return asyncio.run(scenario(house))


def test_a_real_attend():
    found, metrics = attended()
    assert found.exact
    assert found.seconds.keys() == {"plan", "turn", "wait", "merge", "node_run", "queue", "network", "all"}
    assert all(s >= 0 for s in found.seconds.values())
    assert found.seconds["wait"] >= found.seconds["node_run"] > 0
    assert value(metrics, "attends_total", outcome="exact") == 1
    assert sum(s.value for s in series(metrics, "attend_mass")) == pytest.approx(1.0, abs=1e-5)
    assert sum(s.value for s in series(metrics, "attend_slowest_total")) == 1


def test_nan_of_a_node_is_refused_and_counted():
    def lie(contribution):
        if "lse" not in contribution.tensors:
            return contribution
        lse = contribution.tensors["lse"] * np.float32(np.nan)
        return replace(contribution, tensors={**contribution.tensors, "lse": lse})

    found, metrics = attended(lie)
    assert not found.exact
    assert value(metrics, "nonfinite_total", what="contribution") == 1
    assert value(metrics, "nonfinite_total", what="update") == 0
    assert value(metrics, "attend_bound_count") == 1


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, 1e9])
def test_seconds_that_a_node_makes_up_do_no_harm(seconds):
    found, metrics = attended(
        lambda c: replace(c, run_seconds=seconds, task_seconds=seconds) if c.final else c
    )
    assert all(0 <= s <= found.seconds["all"] for s in found.seconds.values())
    for stage in ("queue", "node_run", "network"):
        assert 0 <= value(metrics, "attend_seconds_sum", stage=stage) <= found.seconds["all"]
    assert math.isfinite(value(metrics, "node_run_seconds_sum"))


def test_not_finite_is_an_invalid_tensor():
    assert issubclass(NotFinite, InvalidTensor)


# Runs


def record(number=1, loss=0.5, **consensus):
    return TrainingRound(number, number + 1, loss, (), {}, {}, {}, {}, consensus=consensus)


def test_a_run_from_its_first_round_to_some_time_after_its_end():
    metrics = Metrics()
    runs = RunMetrics(metrics)
    runs.begun("r", 1000.0)
    runs.at("r", 0, 0)
    assert value(metrics, "runs") == 1
    assert value(metrics, "run_last_commit_timestamp_seconds", run="r") == 1000.0
    runs.waits("r", True, 2)
    assert (value(metrics, "run_waiting", run="r"), value(metrics, "run_missing_nodes", run="r")) == (1, 2)
    runs.waits("r", False, 2)
    assert (value(metrics, "run_waiting", run="r"), value(metrics, "run_missing_nodes", run="r")) == (0, 0)
    runs.committed("r", record(3, 0.25, total=2.0), 1010.0)
    runs.evaluated("r", Evaluation(4, 0.5, {"correct": 6.0, "tokens": 8.0}))
    assert value(metrics, "run_round", run="r") == 3
    assert value(metrics, "run_version", run="r") == 4
    assert value(metrics, "run_loss", run="r") == 0.25
    assert value(metrics, "run_metric", run="r", metric="correct") == 0.75
    assert value(metrics, "run_metric", run="r", metric="tokens") is None
    assert value(metrics, "run_consensus_loss", run="r", kind="total") == 2.0
    assert value(metrics, "run_last_commit_timestamp_seconds", run="r") == 1010.0
    runs.without("r", 2)
    assert value(metrics, "run_other_data_nodes", run="r") == 2
    runs.waits("r", True, 1)
    runs.ended("r", 50.0)
    metrics.tick([], 50.0 + KEPT_SECONDS)
    assert value(metrics, "runs") == 0
    assert value(metrics, "run_loss", run="r") == 0.25
    assert value(metrics, "run_missing_nodes", run="r") == 0, "a run that has ended lacks nothing"
    assert value(metrics, "run_other_data_nodes", run="r") == 0
    metrics.tick([], 51.0 + KEPT_SECONDS)
    assert not [s for f in metrics.registry.collect() for s in f.samples if s.labels.get("run")]
    # Resumed, it is there again; a loss that is no number is not shown.
    runs.begun("r", 2000.0)
    runs.committed("r", record(4, math.nan), 2001.0)
    metrics.tick([], 1e9)
    assert value(metrics, "run_round", run="r") == 4
    assert value(metrics, "run_loss", run="r") is None


def test_runs_that_have_series_are_bounded():
    metrics = Metrics()
    runs = RunMetrics(metrics)
    for n in range(RUNS):
        runs.begun(f"r{n}", 0.0)
    runs.begun("more", 0.0)
    runs.committed("more", record(), 0.0)
    assert value(metrics, "run_round", run="more") is None, "all others go on"
    runs.ended("r5", 2.0)
    runs.ended("r3", 1.0)
    runs.begun("latest", 0.0)
    runs.committed("latest", record(), 0.0)
    assert value(metrics, "run_round", run="latest") == 1
    assert value(metrics, "run_waiting", run="r3") is None, "it ended first"
    assert value(metrics, "run_waiting", run="r5") == 0
    assert value(metrics, "rounds_total") == 2
    assert value(metrics, "runs") == RUNS


# A node's own


class Call:
    def peer(self):
        return "test"

    async def write(self, data):
        """Whatever it is, the node has it at once."""


def told(*messages):
    """Node `a` after a stream of these messages, and the metrics."""

    async def scenario(house):
        link = FleetLink(
            house.membership, house.dispatcher, house.bulk, house.metrics,
            welcome=house.contexts.unknown,
        )  # fmt: skip

        async def stream():
            for message in (register("a"), *messages):
                yield from_node.encode(message)

        await link.connect(stream(), Call())
        return house.membership.get("a"), house.metrics

    with House() as house:
        return asyncio.run(scenario(house))


GOOD = b"# HELP process_open_fds Open.\n# TYPE process_open_fds gauge\nprocess_open_fds 4\n"


def test_a_nodes_metrics_come_with_its_heartbeats_and_stay_while_there_are_no_new_ones():
    member, metrics = told(Heartbeat(1, 1, 0), Heartbeat(2, 1, 0, metrics=GOOD), Heartbeat(3, 1, 0))
    assert member.metrics == GOOD.replace(b" 4\n", b" 4.0\n")
    assert series(metrics, "refusals_total") == []


@pytest.mark.parametrize("report", [b"nonsense", b"x" * (REPORT_LIMIT + 1), GOOD.replace(b"process", b"up")])
def test_those_that_cannot_be_are_refused_counted_and_the_node_goes_on(report):
    member, metrics = told(Heartbeat(1, 7, 0, metrics=report))
    assert (member.metrics, member.memory) == (b"", 7)
    assert value(metrics, "refusals_total", reason="InvalidArgument") == 1


def test_a_flood_of_reports_is_not_read():
    _, metrics = told(*(Heartbeat(n, 1, 0, metrics=b"nonsense") for n in range(50)))
    assert 1 <= value(metrics, "refusals_total", reason="InvalidArgument") < 50
