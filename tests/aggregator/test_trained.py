"""What was trained is used: one ONNX file, and samples on the nodes by their ids, equal to one machine."""

from __future__ import annotations

import asyncio
import hmac
import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import small_job
import small_model
import test_federated
import test_fusion
from house import House
from onnx import numpy_helper

from aggregator.bounds.bounds import PREDICTED_SAMPLES
from aggregator.fleet.columns import TableView
from aggregator.training import trained as trained_files
from aggregator.training.fusion import recipe
from aggregator.training.fusion.predict import _matched
from aggregator.training.service import TrainingApi
from edge_attention.client.predictions import predicted
from edge_attention.core.errors import (
    FailedPrecondition,
    InvalidArgument,
    InvalidGraph,
    InvalidTensor,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from edge_attention.core.messages.table import (
    ColumnRead,
    ColumnSpec,
    InputColumns,
    MissingRule,
    MissingValues,
    TableSpec,
    TensorRead,
)
from edge_attention.core.messages.training import GetModelRequest, MissingSamples, PredictRequest, RowsRead
from edge_attention.core.tensors import DataType
from edge_attention.jobs.job import Head
from edge_attention.jobs.row_reads import columns_of, differences, reads_of


def trained(ask, few=None, **changed):
    """What `ask(house, run)` gives of a fusion run that has ended. `few`: the samples that b has."""

    async def scenario(house):
        job, files = small_job.job(**{"holdout": 0.2, "rounds": 3, **changed})
        for data in files.values():
            house.state.put_blob(data)
        flag = (await house.runs.plan(job)).job_release
        for lab in "ab":
            rows = few if lab == "b" else None
            house.node(lab, datasets=small_job.datasets(lab, rows), releases=[flag])
        run = (await house.runs.start(job)).id
        _, info = await test_fusion.ended(house, run)
        assert info.state.value == "finished", info.detail
        return await ask(house, run)

    with House() as house:
        return asyncio.run(scenario(house))


async def model_of(house, run, **chosen):
    async with house.runs.model(run, chosen.pop("version", None), **chosen) as model:
        return model.version, model.path.read_bytes()


def test_the_model_says_how_rows_become_its_inputs():
    """In the first message, as the job that the run keeps does."""

    async def ask(house, run):
        call = SimpleNamespace(peer=lambda: "here")
        chunks = [each async for each in TrainingApi(house.runs).model(GetModelRequest(run), call)]
        assert [bool(each.reads) for each in chunks] == [True] + [False] * (len(chunks) - 1)
        assert not chunks[0].data
        assert len(chunks) > 1
        return chunks[0].reads

    reads = reads_of(small_job.said())
    assert trained(ask) == reads
    assert [each.node for each in reads] == ["a", "b", ""]


@pytest.mark.parametrize("how", ["view", "views by node", "views by input", "groups"])
def test_all_columns_are_named_as_the_run_found_them(how):
    """Whoever hands in rows of a file has no node that says which they are."""
    found = (ColumnRead("größe", of_all=True), ColumnRead("b", "other"))
    view = TableView("rows", {"x": TensorRead("", DataType.FLOAT32, found, True)})
    told = json.loads(json.dumps(view.to_json()))
    node = "north" if how == "views by node" else ""
    zeroth = {
        "view": {"view": told},
        "views by node": {"views": {"north": told}},
        "views by input": {"views": {"x": told}},
        "groups": {"groups": [{"views": {"x": told}}, {}]},
    }[how]
    single = RowsRead(node, {"x": "*", "labels": "y"})
    listed = RowsRead(node, {"x": "*, other:b"}, TableSpec({"x": InputColumns(("*", "other:b"))}))
    for reads in (single, listed):
        named = trained_files._named(reads, zeroth)
        assert columns_of(named, "x") == ("größe", "other:b")
        assert columns_of(named, "labels") == columns_of(reads, "labels")
        # The file that the run was trained by does not name them.
        assert differences([reads], [named]) == []
        assert trained_files._named(reads, {}) == reads, "a run of an earlier release has not said"
    other = RowsRead(node, {}, TableSpec({"x": InputColumns(("*", "c"))}))
    assert differences([other], [trained_files._named(single, zeroth)])


@pytest.mark.parametrize("how", ["view", "views by node"])
def test_a_mean_that_stood_for_what_is_missing_is_told_as_the_number_that_the_run_found(how):
    """Whoever hands in rows lacks the nodes' data, of which it is the mean."""
    age, bmi, day = (
        ColumnRead(name, constant=number) for name, number in (("age", 40.5), ("bmi", 2.0), ("day", 0.0))
    )
    asked = tuple(ColumnRead(one.name) for one in (age, bmi))
    tensors = {
        "x": TensorRead("", DataType.FLOAT32, (age, bmi, day), True),
        "whole": TensorRead("", DataType.INT64, (ColumnRead("bmi"),)),
    }
    told = json.loads(json.dumps(TableView("rows", tensors, means=asked).to_json()))
    node = "" if how == "view" else "north"
    zeroth = {"view": told} if how == "view" else {"views": {"north": told}}
    mean, constant = MissingValues(MissingRule.MEAN), MissingValues(MissingRule.CONSTANT, 0.0)
    table = TableSpec(columns={"day": ColumnSpec(missing=constant)}, missing=mean)
    reads = RowsRead(node, {"x": "*"}, table)
    named = trained_files._named(reads, zeroth)
    assert named.table.missing == mean
    # `bmi` is read as whole numbers, too, where no mean stands for what is missing.
    assert {name: spec.missing.number for name, spec in named.table.columns.items()} == {
        "age": 40.5,
        "day": 0.0,
    }
    assert differences([reads], [named]) == [], "the file that the run was trained by asks for the mean"
    assert trained_files._named(reads, {}).table == table, "a run of an earlier release has not said"


def one_machine(parameters, feeds, count):
    whole = small_job.one_machine()
    return whole.evaluate(parameters, {**feeds, "y": np.zeros(count, np.int64)})["probabilities"]


def test_a_fusion_model_in_one_file_and_by_ids_is_the_model_of_one_machine():
    ids = [small_job.IDS[i] for i in (7, 0, 29, 12)]

    async def ask(house, run):
        version, model = await model_of(house, run)
        said = await house.runs.predict(run, None, False, tuple(ids))
        nobody = house.runs.predict(run, None, False, ("P1", "stranger"))
        with pytest.raises(NotFound, match="id 'stranger': no node has a row of it"):
            await nobody
        return version, model, said, house.parameters.load(run, version).parameters

    version, model, said, parameters = trained(ask)
    positions = np.array([7, 0, 29, 12])
    feeds = {f"{lab}/x": small_job.X[lab][positions] for lab in "ab"}
    truth = one_machine(parameters, feeds, 4)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert sorted(value.name for value in session.get_inputs()) == ["a/x", "b/x"]
    names = [value.name for value in session.get_outputs()]
    assert names == ["probabilities"]
    np.testing.assert_allclose(session.run(None, feeds)[0], truth, atol=1e-5)
    np.testing.assert_allclose(said.outputs["probabilities"], truth, atol=1e-5)
    assert said.version == version == 3
    assert abs(sum(said.mass.values()) - 1) < 1e-5
    assert said.absent == {}
    nested = {lab: {"x": small_job.X[lab][positions]} for lab in "ab"}
    np.testing.assert_allclose(predicted(model, nested)["probabilities"], truth, atol=1e-5)


def test_samples_that_a_node_lacks():
    few = np.array([3, 1, 2])

    async def ask(house, run):
        _, model = await model_of(house, run)
        said = await house.runs.predict(run, None, False, ("P0", "P1"))
        house.membership.get("b").state = house.membership.get("b").state.__class__.LOST
        with pytest.raises(Unavailable, match="node b, which has rows of the samples, is not here"):
            await house.runs.predict(run, None, False, ("P1",))
        return model, said

    few = np.concatenate([few, np.arange(8, 30)])
    model, said = trained(ask, few=few, missing=MissingSamples.ATTEND)
    assert said.absent == {"b": 1}
    only = predicted(model, {"a/x": small_job.X["a"][:1]})["probabilities"]
    np.testing.assert_allclose(said.outputs["probabilities"][:1], only, atol=1e-5)
    both = predicted(model, {lab: {"x": small_job.X[lab][1:2]} for lab in "ab"})["probabilities"]
    np.testing.assert_allclose(said.outputs["probabilities"][1:], both, atol=1e-5)


def test_a_sample_that_the_run_would_leave_out_is_refused():
    async def ask(house, run):
        await house.runs.predict(run, None, False, ("P0", "P1"))

    with pytest.raises(NotFound, match="id 'P0': b/x has no row"):
        trained(ask, few=np.arange(1, 30))


def test_a_head_that_says_nothing_without_labels():
    head = onnx.load_model_from_string(small_job.HEAD)
    del head.graph.output[:]
    whole = onnx.load_model_from_string(small_job.HEAD)
    head.graph.output.extend(value for value in whole.graph.output if value.name == "loss")

    async def ask(house, run):
        with pytest.raises(InvalidGraph, match="give it one, as the logits, beside its loss"):
            await model_of(house, run)

    trained(ask, head=Head("a", "labels", head.SerializeToString(), {"y": "y"}))


def test_the_best_version_is_what_is_exported():
    async def ask(house, run):
        best = house.runs.describe(run).best_version
        assert best is not None
        chosen, model = await model_of(house, run, best=True)
        stream = house.runs.parameters(run, None, best=True)
        assert chosen == best == stream.version
        return model, house.parameters.load(run, best).parameters

    model, parameters = trained(ask, rounds=6, evaluate_every=1)
    feeds = {f"{lab}/x": small_job.X[lab] for lab in "ab"}
    truth = one_machine(parameters, feeds, small_job.SAMPLES)
    np.testing.assert_allclose(predicted(model, feeds)["probabilities"], truth, atol=1e-5)


def test_a_federated_model_is_asked_with_rows_alone():
    async def scenario(house):
        run, _ = await test_federated.started(house, rounds=2, holdout=0.0)
        await test_federated.ended(house, run)
        with pytest.raises(FailedPrecondition, match="is no fusion run"):
            await house.runs.predict(run, None, False, ("P1",))
        with pytest.raises(FailedPrecondition, match="no version was evaluated"):
            await model_of(house, run, best=True)
        _, model = await model_of(house, run)
        weight, bias = test_federated.parameters(house, run)
        x = small_model.X["a"]
        np.testing.assert_allclose(predicted(model, {"x": x})["logits"], x @ weight + bias, atol=1e-5)

    with House() as house:
        asyncio.run(scenario(house))


def test_a_call_asks_about_so_many_samples_and_no_more():
    async def scenario(house):
        api = TrainingApi(house.runs)
        for ids in ((), ("P1",) * (PREDICTED_SAMPLES + 1)):
            with pytest.raises(InvalidArgument, match=r"bound predicted-samples: .* 1 to 4,096"):
                await api.predict(PredictRequest("r", ids=ids), None)

    with House() as house:
        asyncio.run(scenario(house))


def test_a_head_that_says_more_than_an_answer_has():
    head = onnx.load_model_from_string(small_job.HEAD)
    head.graph.initializer.append(numpy_helper.from_array(np.array([1, 100_000], np.int64), "times"))
    head.graph.node.append(onnx.helper.make_node("Tile", ["probabilities", "times"], ["wide"]))
    head.graph.output.append(
        onnx.helper.make_tensor_value_info("wide", onnx.TensorProto.FLOAT, ["batch", 200_000])
    )

    async def ask(house, run):
        said = await house.runs.predict(run, None, False, ("P0",))
        with pytest.raises(ResourceExhausted, match=r"bound predicted-bytes: .* ask about 3 at a time"):
            await house.runs.predict(run, None, False, tuple(small_job.IDS[:20]))
        return said

    said = trained(ask, head=Head("a", "labels", head.SerializeToString(), {"y": "y"}))
    assert said.outputs["wide"].shape == (1, 200_000)


def test_more_than_fits_here_is_refused(monkeypatch):
    monkeypatch.setattr(recipe, "PREDICTED_FUSED", 500)

    async def ask(house, run):
        await house.runs.predict(run, None, False, ("P0",))
        with pytest.raises(ResourceExhausted, match=r"bound predicted-fused: 20 samples .* ask about 7 at"):
            await house.runs.predict(run, None, False, tuple(small_job.IDS[:20]))

    trained(ask)


def test_what_nodes_say_of_ids_is_not_believed():
    part = SimpleNamespace(source="a/x", prefix="a", node="a", dataset="x")
    plan = SimpleNamespace(encoders=(part,), job=SimpleNamespace(missing=MissingSamples.LEAVE_OUT))
    ids = [f"P{i}" for i in range(3)]
    hashes = np.array([list(hmac.digest(b"k", id.encode(), "sha256")[:16]) for id in ids], np.uint8)

    def matched(hashes, told=None):
        return _matched(plan, {"a/x": hashes}, told or {}, b"k", ["P2", "P0"])

    assert matched(hashes).alignment.rows["a/x"].tolist() == [2, 0]
    some = {"a": {"complete": np.array([1, 0, 1], np.uint8)}}
    assert matched(hashes, some).rows(part)[0].tolist() == [1, 0]
    with pytest.raises(InvalidTensor, match="two rows have the same id"):
        matched(hashes[[0, 1, 2, 0]])
    with pytest.raises(InvalidTensor, match="tells of 0 rows and has 3 ids"):
        matched(hashes, {"a": {"complete": np.zeros(0, np.uint8)}})
    with pytest.raises(NotFound, match="no node has a row of them"):
        matched(hashes[:0])
