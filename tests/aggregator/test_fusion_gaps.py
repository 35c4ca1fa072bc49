"""Rows that lack values in a job of fusion: left out, attended without, or read as the mean of their node."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import small_job
from house import House, dataset
from small_job import IDS, SAMPLES, X, Y
from test_fusion import ended, releases

from edge_attention.core.messages.training import MissingSamples, RunState
from edge_attention.jobs.columns import JobColumn
from edge_attention.jobs.job import Encoder, Head

NAMES = tuple(f"c{i}" for i in range(small_job.FEATURES))
GAPS = {"a": {"c0": [0, 4, 9], "c1": [9, 10]}, "b": {"c2": [2, 4, 20]}}
"""By lab and column the samples that lack a value."""


def columns(lab, fill=None, keep=range(SAMPLES)):
    """A lab's rows in its order, with gaps where `fill` does not say what is there."""
    x = X[lab].copy()
    for name, samples in GAPS[lab].items():
        x[samples, NAMES.index(name)] = np.nan if fill is None else fill[lab, name]
    rows = [i for i in small_job.order(lab) if i in keep]
    return dataset("x", [IDS[i] for i in rows], **{n: x[rows, at].copy() for at, n in enumerate(NAMES)})


def trained(rule, data, untold=(), **changed):
    async def scenario(house):
        each = {
            lab: Encoder(
                lab, "x", small_job.MODELS[lab], {"x": list(NAMES)}, missing_values=rule
            )
            for lab in "ab"
        }  # fmt: skip
        head = Head("a", "labels", small_job.HEAD, {"y": "y"}, metrics=("correct",))
        job, files = small_job.job(encoders=tuple(each.values()), head=head, **{"rounds": 3, **changed})
        for file in files.values():
            house.state.put_blob(file)
        first = (await house.runs.plan(job)).graphs
        # Of rows that an aggregator chooses a sum would be a value.
        assert all(", every row" in g.release_text for g in first if g.role in ("presence", "means"))
        for lab in "ab":
            own = [data(lab), *([dataset("labels", IDS, y=Y)] if lab == "a" else [])]
            allowed = [g for g in first if g.role not in untold]
            house.node(lab, datasets=own, releases=releases(allowed, lab))
        run = (await house.runs.start(job)).id
        rounds, info = await ended(house, run)
        made = house.parameters.load(run, info.version).parameters if rounds else {}
        begun, roles = house.state.record(run, 0), {g.role for g in first}
        return SimpleNamespace(rounds=rounds, info=info, made=made, begun=begun, roles=roles)

    with House(patience=changed.pop("patience", 60.0)) as house:
        return asyncio.run(scenario(house))


def same(one, other):
    assert one.info.state is other.info.state is RunState.FINISHED, one.info.detail
    assert [r.samples for r in one.rounds] == [r.samples for r in other.rounds]
    for name, array in other.made.items():
        np.testing.assert_array_equal(one.made[name], array, err_msg=name)


@pytest.mark.parametrize("mode", list(MissingSamples))
def test_rows_that_lack_a_value_are_as_rows_that_are_not_there(mode):
    def without(lab):
        lost = {sample for samples in GAPS[lab].values() for sample in samples}
        return columns(lab, keep=set(range(SAMPLES)) - lost)

    found = trained("drop", columns, missing=mode, holdout=0.2)
    same(found, trained(None, without, missing=mode, holdout=0.2))
    # The labels' node has all samples.
    assert (found.info.samples.complete, found.info.samples.incomplete) == (SAMPLES - 6, 6)
    assert {"presence"} == found.roles & {"presence", "means", "complete"}


def test_the_mean_of_its_node_stands_for_what_a_column_lacks():
    means = {
        (lab, name): np.delete(X[lab][:, NAMES.index(name)].astype(np.float64), samples).mean()
        for lab, gaps in GAPS.items()
        for name, samples in gaps.items()
    }
    found = trained("mean", columns)
    same(found, trained(None, lambda lab: columns(lab, fill=means)))
    for (lab, name), mean in means.items():
        read = found.begun["views"][lab]["tensors"]["x"]["columns"][NAMES.index(name)]
        assert read["constant"] == pytest.approx(mean, rel=1e-14)


def test_two_parts_of_one_dataset_number_its_rows_each_for_itself():
    """The head's column lacks other values than those that the encoder of its node is dropped by."""
    classes = {lab: (X[lab][:, 0] > 0).astype(np.float32) for lab in "ab"}

    def data(lab):
        rows = small_job.order(lab)
        kinds, tokens = classes[lab].copy(), X[lab].copy()
        kinds[[1, 5]] = np.nan
        tokens[[3, 7], 1] = np.nan
        each = {"c0": kinds, "c1": tokens[:, 1], "c2": tokens[:, 2]}
        return dataset("x", [IDS[i] for i in rows], **{n: v[rows].copy() for n, v in each.items()})

    labels = {"c0": JobColumn(categories=(0, 1), missing="drop")}
    rule = {"c1": JobColumn(missing="drop"), "c0": JobColumn(missing=0)}

    def run(read, **each):
        inputs = {"x": list(NAMES)}
        job = {lab: Encoder(lab, "x", small_job.MODELS[lab], inputs, columns=each["x"]) for lab in "ab"}
        head = Head("a", "x", small_job.HEAD, {"y": "c0"}, metrics=("correct",), columns=each["y"])

        async def scenario(house):
            made, files = small_job.job(encoders=tuple(job.values()), head=head, rounds=3, holdout=0.0)
            for file in files.values():
                house.state.put_blob(file)
            plan = (await house.runs.plan(made)).graphs
            for lab in "ab":
                house.node(lab, datasets=[read(lab)], releases=releases(plan, lab))
            started = (await house.runs.start(made)).id
            rounds, info = await ended(house, started)
            return SimpleNamespace(
                rounds=rounds, info=info, made=house.parameters.load(started, info.version).parameters
            )

        with House(patience=60.0) as house:
            return asyncio.run(scenario(house))

    def whole(lab):
        full, keep = data(lab), set(range(SAMPLES)) - {1, 5, 3, 7}
        rows = [at for at, i in enumerate(small_job.order(lab)) if i in keep]
        ids = [IDS[small_job.order(lab)[at]] for at in rows]
        return dataset("x", ids, **{n: full.held(n).values[rows].copy() for n in NAMES})

    found = run(data, x=rule, y=labels)
    assert found.info.samples.train == SAMPLES - 4
    same(found, run(whole, x={}, y={"c0": JobColumn(categories=(0, 1))}))


def test_a_node_without_a_whole_row_is_named_before_the_first_round():
    def lacking(lab):
        rows = np.full(SAMPLES, np.nan, np.float32)
        rows[::2] = 1
        other = np.where(np.isnan(rows), np.float32(1), np.float32(np.nan)).astype(np.float32)
        return dataset("x", IDS, c0=rows, c1=other, c2=X[lab][:, 2].copy()) if lab == "b" else columns(lab)

    found = trained("drop", lacking)
    assert found.info.state is RunState.FAILED
    assert not found.rounds
    assert "dataset 'x' of node 'b' has no row left" in found.info.detail


@pytest.mark.parametrize(("rule", "role"), [("drop", "presence"), ("mean", "means")])
def test_a_node_that_does_not_tell_is_named_with_what_would_let_it(rule, role):
    found = trained(rule, columns, untold=(role,), patience=1.0)
    assert found.info.state is RunState.FAILED
    assert not found.rounds
    assert "--allow-release job:" in found.info.detail
