"""What is remembered of rounds, and that it is bounded."""

from __future__ import annotations

import math

from aggregator.training.activity import NODES, ROUNDS, RUNS, RunActivity
from edge_attention.core.messages.training import Evaluation, TrainingRound


def record(number, loss=1.0, **changed):
    fields = {"samples": (), "seconds": {"all": 0.25}, "bytes_sent": {}, "bytes_received": {}, "mass": {}}
    return TrainingRound(number=number, version=number, loss=loss, **{**fields, **changed})


def test_memory_is_bounded():
    seen = RunActivity()
    for i in range(10 * ROUNDS):
        seen.round(f"run-{i}", record(1, mass={f"n{i}-{j}": 0.1 for j in range(3)}), 3.0 * i)
    seen.round("run", record(1, mass={f"more-{j}": 0.1 for j in range(2 * NODES)}), 1e6)
    assert len(seen.rounds) == ROUNDS
    assert len(seen.runs) == RUNS
    assert len(seen.runs["run"].mass.series()) == NODES


def test_rounds_make_curves_and_lines():
    seen = RunActivity()
    left = {"c": "too late"}
    seen.round("r", record(1, 2.0, mass={"a": 0.75, "b": 0.25}, left_out=left), 10.0)
    seen.round("r", record(2, math.nan, mass={"a": 0.5, "b": 0.5}), 11.0)
    seen.evaluated("r", 2, Evaluation(10, 0.5, {"correct": 8, "tokens": 20}))
    curves = seen.runs["r"]
    assert curves.loss.series() == {"loss": [2.0, None]}
    assert curves.mass.series() == {"a": [0.75, 0.5], "b": [0.25, 0.5]}
    assert curves.evaluation.series() == {"correct": [0.4], "loss": [0.5]}
    assert [(line.number, line.nodes, line.left_out) for line in seen.rounds] == [(1, 2, left), (2, 2, {})]


def test_what_an_earlier_life_recorded_is_drawn_and_not_told_as_news():
    seen = RunActivity()
    seen.recall("r", record(1, 3.0, evaluation=Evaluation(4, 0.9, {})))
    seen.recall("r", record(2, 2.0))
    seen.round("r", record(2, 2.0), 0.0)
    assert seen.runs["r"].loss.series() == {"loss": [3.0, 2.0]}
    assert seen.runs["r"].evaluation.x == [1]
    assert len(seen.rounds) == 1
    seen.earlier("r", record(1, 3.0))
    assert [line.time for line in seen.rounds] == [0.0, None]
    assert seen.runs["r"].loss.series() == {"loss": [3.0, 2.0]}


def test_the_run_that_has_been_quiet_longest_is_forgotten_first():
    seen = RunActivity()
    for i in range(RUNS):
        seen.recall(f"r{i}", record(1))
    seen.recall("r0", record(2))
    seen.recall("new", record(1))
    assert "r0" in seen.runs
    assert "r1" not in seen.runs
