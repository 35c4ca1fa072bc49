"""Labels that a loss cannot take end a run before its first round, with what to do, where nodes tell."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import numpy as np
import small_model
from house import House, dataset
from test_federated import ended

from aggregator.training.federated.labels import NodeLabels, wrong_labels
from aggregator.training.federated.plan import LabelPlan
from edge_attention.core.messages.training import LossSpec, RunState


def outcome(labels, *, told=True, loss=None, extra=None, **changed):
    """How a run ends whose nodes have these labels: its records and itself."""

    async def scenario(house):
        job = small_model.job(house, rounds=1, **changed)
        if loss is not None:
            job = replace(job, model=replace(job.model, loss=loss))
        plan = (await house.runs.plan(job)).graphs
        released = sorted({g.release for g in plan if g.release and (told or g.role != "labels")})
        for name in small_model.NODES:
            columns = {"x": small_model.X[name], "y": labels(name), **(extra(name) if extra else {})}
            house.node(name, datasets=[dataset("rows", **columns)], releases=released)
        run = (await house.runs.start(job)).id
        return await ended(house, run)

    with House(patience=20.0) as house:
        return asyncio.run(scenario(house))


def test_labels_from_one_are_said_with_the_classes_and_the_range():
    rounds, info = outcome(lambda name: small_model.Y[name] + (name in "bd"))
    assert rounds == []
    assert info.state is RunState.FAILED
    for name in "bd":
        assert f"column 'y', dataset 'rows' of node '{name}'" in info.detail
    assert "node 'a'" not in info.detail
    assert "labels hold 1 to 3, the model has classes 0 to 2; number the classes from 0" in info.detail


def test_labels_to_ignore_are_said_to_be_named():
    def labels(name):
        y = small_model.Y[name].copy()
        y[::5] = -100
        return y

    _, info = outcome(labels)
    assert "labels hold -100 or less to 2" in info.detail
    assert "ignore_index" in info.detail
    ignoring = LossSpec("cross_entropy", "logits", "labels", {"ignore_index": -100})
    rounds, info = outcome(labels, loss=ignoring)
    assert info.state is RunState.FINISHED, info.detail
    assert len(rounds) == 1


def test_targets_that_are_no_numbers_are_counted():
    """Readers of tables set such a column aside; an array of several targets may hold one."""
    wanted = LabelPlan("labels", "", 0, False, (-1, 2), 1e6, 3)
    job = small_model.FederatedJob(
        "j", small_model.FederatedModel("", LossSpec("mse"), inputs={"labels": "y"}), "rows",
        small_model.StrategySpec("fedavg"), small_model.LocalSpec(small_model.OptimizerSpec("sgd"), 8), 1,
    )  # fmt: skip
    said = wrong_labels(job, wanted, NodeLabels("c", 1, 0, 2, -1, np.zeros(1, np.float32)))
    assert said.startswith("1 labels in column 'y', dataset 'rows' of node 'c', cannot be used: they are NaN")


def test_weights_below_zero_are_counted():
    loss = LossSpec("cross_entropy", "logits", "labels", weights="importance")

    def weights(name):
        return {"importance": np.full(small_model.ROWS[name], -1 if name == "e" else 1, np.float32)}

    _, info = outcome(lambda name: small_model.Y[name], loss=loss, extra=weights)
    assert f"{small_model.ROWS['e']} weights of rows in column 'importance'" in info.detail
    assert "node 'e'" in info.detail


def test_a_class_that_nobody_has_is_said_and_trained_on():
    rounds, info = outcome(lambda name: np.where(small_model.Y[name] == 1, 2, small_model.Y[name]))
    assert info.state is RunState.FINISHED, info.detail
    assert len(rounds) == 1
    notes = [note for note in info.notes if not note.startswith("the data of")]
    assert notes == ["no node has a label of class 1, of 3 classes"]


def test_nodes_that_do_not_tell_are_trained_on(caplog):
    with caplog.at_level(logging.WARNING):
        rounds, info = outcome(lambda name: small_model.Y[name], told=False)
    assert info.state is RunState.FINISHED, info.detail
    assert len(rounds) == 1
    assert "labels of node a are not checked" in caplog.text
    assert "--allow-release" in caplog.text
