"""What must not harm a federated run: nodes that lie, die or lag, and stops at the wrong moment."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest
import safetensors.numpy
import small_model
from house import House, until
from onnx import TensorProto, helper, numpy_helper
from test_federated import ended, started
from test_federated_options import consensus

from aggregator.engine.endings import to_the_end
from aggregator.store.tensor_file import TensorFileWriter
from aggregator.training.federated.export import ExportRequest, export
from aggregator.training.federated.plan import strategy_of
from aggregator.training.federated.samples import NodeSamples
from aggregator.training.federated.versions import Versions
from aggregator.training.remedies import remedy_of
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.program import Fault, Run, Stored
from edge_attention.core.messages.training import (
    ConsensusSpec,
    EncodingSpec,
    LocalSpec,
    OptimizerSpec,
    PushSpec,
    RunState,
    SelectionSpec,
    StopSpec,
    StrategySpec,
)
from edge_attention.core.rounds import sampling

SGD = OptimizerSpec("sgd", {"lr": 0.1})
FOUR_OF_FIVE = SelectionSpec(quorum=0.8)


def changing(change):
    """What `change` makes of the tensors of a contribution that has some."""

    def tamper(contribution):
        if not contribution.tensors:
            return contribution
        return replace(contribution, tensors=change(dict(contribution.tensors)))

    return tamper


def run_with(tamper=None, **changed):
    async def scenario(house):
        run, boxes = await started(house, tamper=tamper, **changed)
        return *await ended(house, run), boxes, house

    with House() as house:
        return asyncio.run(scenario(house))


def training(box):
    """The programs of local training that a node was sent."""
    return [p for p in box.programs if any(name.startswith("task/rows/first") for name in p.tensors)]


# Nodes that lie


def test_a_node_that_says_it_has_no_end_of_rows_is_refused_and_nothing_is_made_for_them(monkeypatch):
    """To draw of them takes memory for each: of 2^31, which nobody had, 48 GiB."""
    made = []
    monkeypatch.setattr(sampling, "permutation", lambda count, *key: made.append(count))

    async def scenario(house):
        job = small_model.job(house, holdout=0.25)
        for rows in (2**31, 2**62):
            samples = NodeSamples(job, strategy_of(job), "b", rows)
            with pytest.raises(InvalidArgument, match=r"node 'b' says .* leave the node out"):
                samples.check()
            assert samples.training == rows - round(0.25 * rows)

    with House() as house:
        asyncio.run(scenario(house))
    assert not made


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("attention", lambda t: {**t, "attention": t["attention"][:1]}),
        ("attention", lambda t: {n: a for n, a in t.items() if n != "attention"}),
        ("attention", lambda t: {**t, "attention": t["attention"] * np.float32(np.nan)}),
        ("extra", lambda t: {**t, "extra": np.zeros(9, np.float32)}),
        ("update/0", lambda t: {**t, "update/0": t["update/0"].astype(np.float64)}),
        ("update/0", lambda t: {**t, "update/0": t["update/0"].reshape(-1)}),
        ("loss", lambda t: {**t, "loss": np.zeros(1, np.float32)}),
        ("norm", lambda t: {**t, "norm": np.float32("inf").reshape(())}),
    ],
)  # fmt: skip
def test_a_node_that_returns_something_else_is_quarantined_and_the_run_goes_on(what, change):
    def tampered(tensors):
        return change(tensors) if "update/0" in tensors else tensors

    # Attention weights come before the update, in a contribution of their own.
    def attention(tensors):
        return change(tensors) if "attention" in tensors else tensors

    tamper = changing(attention if what == "attention" else tampered)
    rounds, info, *_ = run_with(
        {"b": tamper}, selection=FOUR_OF_FIVE, consensus=consensus(), rounds=2, patience_seconds=120.0
    )
    assert info.state is RunState.FINISHED, info.detail
    assert set(rounds[0].nodes) == set("acde")
    assert rounds[0].left_out["b"].startswith("quarantined: node 'b'")
    assert what in rounds[0].left_out["b"]


def refusing(contribution):
    return replace(
        contribution, tensors={}, bulk_tensors=(), final=True, error=Fault("InvalidProgram", "nonsense")
    )


@pytest.mark.parametrize("selection", [SelectionSpec(), FOUR_OF_FIVE])
def test_a_node_that_calls_wrong_what_the_others_do_is_left_out_then_asked_no_more(selection):
    rounds, info, boxes, _ = run_with({"b": refusing}, selection=selection, rounds=5, holdout=0.0)
    assert info.state is RunState.FINISHED, info.detail
    assert [set(round.nodes) for round in rounds] == [set("acde")] * 5
    said = [round.left_out["b"] for round in rounds]
    assert said[:2] == ["node 'b': nonsense"] * 2
    assert said[2:] == ["quarantined: it refuses what others do: node 'b': nonsense"] * 3
    assert [round.quarantined for round in rounds] == [()] * 2 + [("b",)] * 3
    assert len(boxes["b"].programs) <= 5, "a look at its labels, three rounds, and what frees it"


def test_what_every_node_calls_wrong_ends_the_run_with_what_they_say():
    rounds, info, boxes, _ = run_with(dict.fromkeys("abcde", refusing), rounds=2, holdout=0.0)
    assert (rounds, info.state) == ([], RunState.FAILED)
    assert all(f"node {name!r}: nonsense" in info.detail for name in boxes)


def test_sums_of_an_evaluation_that_are_not_numbers_do_not_count():
    def spoil(tensors):
        return {n: np.full_like(a, np.nan) if n.startswith("next/") else a for n, a in tensors.items()}

    rounds, info, *_ = run_with({"b": changing(spoil)})
    assert info.state is RunState.FINISHED, info.detail
    evaluation = rounds[-1].evaluation
    held = {n: round(0.25 * rows) for n, rows in small_model.ROWS.items()}
    assert evaluation.samples == sum(held.values()) - held["b"]
    assert np.isfinite(evaluation.loss)


@pytest.mark.parametrize("combine", [StrategySpec("krum", {"byzantine": 1}), StrategySpec("median")])
def test_a_round_waits_for_as_many_as_its_combine_needs(combine):
    async def scenario(house):
        run, boxes = await started(
            house, rounds=2, holdout=0.0, combine=combine,
            selection=SelectionSpec(quorum=0.6, deadline_seconds=0.2),
        )  # fmt: skip
        for name in "de":
            boxes[name].mute = True
        await until(lambda: len(training(boxes["e"])) >= 1)
        await asyncio.sleep(0.3)
        at = house.runs.describe(run).round
        for name in "de":
            box = boxes[name]
            box.mute = False
            box.disconnect()
            box.connect()
        return at, *await ended(house, run)

    with House() as house:
        at, rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    if combine.name == "krum":
        assert at == 0
        assert all(len(r.nodes) == 5 for r in rounds)


def test_a_combine_that_needs_a_node_that_is_away_waits_for_it(monkeypatch):
    begin, begun, go_on = Versions.begin, threading.Event(), threading.Event()

    def slow(self, record):
        begun.set()
        assert go_on.wait(180)
        begin(self, record)

    monkeypatch.setattr(Versions, "begin", slow)

    async def scenario(house):
        selection = SelectionSpec(deadline_seconds=5.0)
        run, boxes = await started(house, rounds=3, combine=StrategySpec("krum"), selection=selection)
        await until(begun.is_set)
        boxes["e"].lose()
        go_on.set()
        await until(lambda: "needs n = 5" in house.runs.describe(run).waiting)
        boxes["e"].connect()
        return await ended(house, run)

    with House() as house:
        rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    assert all(len(r.nodes) == 5 for r in rounds)


@pytest.mark.parametrize(
    "changed",
    [
        {"selection": SelectionSpec(fraction=0.4)},
        {"strategy": StrategySpec("fedbuff", {"buffer": 3})},
    ],
)
def test_a_combine_that_can_never_work_is_refused_at_the_start(changed):
    with House() as house, pytest.raises(InvalidArgument, match="krum"):
        asyncio.run(house.runs.plan(small_model.job(house, combine=StrategySpec("krum"), **changed)))


def test_a_combine_does_not_protect_controls_and_is_refused():
    job = {"strategy": StrategySpec("scaffold"), "combine": StrategySpec("median")}
    with House() as house, pytest.raises(InvalidArgument, match="combine median does not protect"):
        asyncio.run(house.runs.plan(small_model.job(house, **job)))


def test_a_combine_that_cannot_work_with_the_nodes_that_came_is_refused_before_they_work():
    async def scenario(house):
        run, boxes = await started(house, names="abc", nodes=(), combine=StrategySpec("krum"))
        return (await ended(house, run))[1], boxes

    with House() as house:
        info, boxes = asyncio.run(scenario(house))
    assert info.state is RunState.FAILED
    assert "needs n = 5" in info.detail
    assert not training(boxes["a"])


def test_a_run_whose_nodes_are_quarantined_ends_at_once_and_says_why():
    poison = changing(lambda t: {**t, "loss": np.float32("nan").reshape(())} if "loss" in t else t)
    began = time.monotonic()
    selection = SelectionSpec(minimum=5, quorum=1.0)
    _, info, _, house = run_with({"b": poison}, selection=selection, patience_seconds=600.0)
    assert info.state is RunState.FAILED
    assert "b: quarantined: node 'b' returned a loss that is not finite" in info.detail
    advised = remedy_of(info, house.runs.error_of(info.id))
    assert "resume" not in advised.replace("resuming it does not bring them back", ""), (
        "it would end so again"
    )
    assert "start it anew" in advised
    assert time.monotonic() - began < 500


# What nodes keep


def kept(box, what):
    return {name for name in box.node.store._held if what in name}


def residuals_used(program):
    """The round whose residuals a program goes on from, and the one it leaves."""
    for instruction in program.instructions:
        if isinstance(instruction, Run):
            read = {
                v.name for v in instruction.inputs.values() if isinstance(v, Stored) and "residual" in v.name
            }
            left = {name for name in instruction.outputs.values() if "residual" in name}
            if left:
                return ({int(n.split("/")[-2]) for n in read} or {None}).pop(), int(left.pop().split("/")[-2])
    return None


def test_buffered_turns_go_on_from_the_residuals_of_the_turn_before():
    _, info, boxes, _ = run_with(
        strategy=StrategySpec("fedbuff", {"buffer": 8}), update=EncodingSpec("int8"), rounds=4, holdout=0.0
    )
    assert info.state is RunState.FINISHED, info.detail
    for box in boxes.values():
        used = [residuals_used(p) for p in training(box)]
        assert len(used) > 3
        assert used[0] == (None, 1)
        # What one turn's encoding lost goes into the next, once.
        assert all(before == turn - 1 for before, turn in used[1:])


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("/residual/", {"update": EncodingSpec("int8")}),
        ("/p/", {"push": PushSpec(True)}),
    ],
)
def test_a_node_that_is_always_late_does_not_fill_up(what, changed):
    """It works on every round, and its answers are never taken."""

    async def scenario(house):
        run, boxes = await started(
            house, rounds=12, holdout=0.0,
            selection=SelectionSpec(quorum=0.6, deadline_seconds=0.05), **changed,
        )  # fmt: skip
        most = 0
        box = boxes["c"]

        def work_for_nothing(program):
            nonlocal most
            list(box.execute(program))
            most = max(most, len(kept(box, what)))

        box.run = work_for_nothing
        await until(lambda: house.runs.describe(run).round >= 12)
        return most, len(training(box))

    with House() as house:
        most, asked = asyncio.run(scenario(house))
    assert asked == 12
    assert most <= 2 * 2  # two parameters, of two versions or rounds


def test_buffered_rounds_with_differences_and_evaluations_keep_few_versions_on_nodes():
    _, info, boxes, _ = run_with(
        strategy=StrategySpec("fedbuff", {"buffer": 3}), push=PushSpec(True), rounds=8, evaluate_every=1
    )
    assert info.state is RunState.FINISHED, info.detail
    assert all(len(kept(box, "/p/")) <= 3 * 2 for box in boxes.values())


# Moments


def test_what_has_begun_ends_however_often_it_is_cancelled():
    async def scenario():
        release, ends = asyncio.Event(), []

        async def work():
            await release.wait()
            ends.append("whole")

        task = asyncio.create_task(to_the_end(work()))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ends

    assert asyncio.run(scenario()) == ["whole"]


def test_a_run_stopped_twice_while_it_commits_has_that_commit_once_and_goes_on(monkeypatch):
    commit, begun, go_on = Versions.commit, threading.Event(), threading.Event()

    def slow(self, current, *rest):
        if current.version == 1:
            begun.set()
            assert go_on.wait(180)
        return commit(self, current, *rest)

    monkeypatch.setattr(Versions, "commit", slow)

    async def scenario(house):
        run, _ = await started(house, rounds=6)
        await until(begun.is_set)
        stops = [asyncio.create_task(house.runs.stop(run)) for _ in range(2)]
        # One of those who want it stopped goes away.
        await asyncio.sleep(0)
        stops[0].cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait(stops)
        stopped = house.runs.describe(run)
        assert run not in house.runs._active, "nothing of a stopped run is held"
        await house.runs.resume_run(run)
        return stopped, *await ended(house, run)

    with House() as house:
        stopped, rounds, info = asyncio.run(scenario(house))
    assert (stopped.state, stopped.round, stopped.version) == (RunState.STOPPED, 2, 2)
    assert info.state is RunState.FINISHED, info.detail
    assert [r.number for r in rounds] == list(range(1, 7))


def test_a_stop_whose_caller_goes_away_still_stops_and_watchers_hear_of_it(monkeypatch):
    commit, begun, go_on = Versions.commit, threading.Event(), threading.Event()

    def slow(self, *given):
        begun.set()
        assert go_on.wait(180)
        return commit(self, *given)

    monkeypatch.setattr(Versions, "commit", slow)

    async def scenario(house):
        run, _ = await started(house)
        watching = asyncio.create_task(ended(house, run))
        await until(begun.is_set)
        stop = asyncio.create_task(house.runs.stop(run))
        await asyncio.sleep(0)
        stop.cancel()
        await asyncio.sleep(0)
        go_on.set()
        return (await watching)[1]

    with House() as house:
        assert asyncio.run(scenario(house)).state is RunState.STOPPED


def test_controls_are_written_beside_the_event_loop(monkeypatch):
    threads, control = set(), []
    monkeypatch.setattr(
        "aggregator.training.federated.work.TensorFileWriter",
        lambda *given: threads.add(threading.current_thread()) or TensorFileWriter(*given),
    )

    async def scenario(house):
        run, _ = await started(house, strategy=StrategySpec("scaffold"), rounds=2)
        _, info = await ended(house, run)
        control.extend(house.parameters.folder(run).glob("control-*"))
        return info

    with House() as house:
        info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    assert threads
    assert threading.main_thread() not in threads
    assert not control


def test_what_a_killed_aggregator_was_planning_is_gone_at_its_next_start(tmp_path):
    with House(tmp_path) as house:
        asyncio.run(house.runs.plan(small_model.job(house)))
        left = tmp_path / "plans" / "half"
        left.mkdir()
        (left / "model.onnx").write_bytes(b"half")
    with House(tmp_path) as house:
        assert not left.exists()
        asyncio.run(house.runs.plan(small_model.job(house)))
    assert not list((tmp_path / "plans").iterdir())


# Waits


@pytest.mark.parametrize(
    "changed",
    [
        {"strategy": StrategySpec("fedbuff", {"buffer": 3})},
        {"selection": SelectionSpec(quorum=0.6, adaptive=3.0, deadline_seconds=1.5)},
    ],
)
def test_an_evaluation_does_not_wait_for_a_node_that_rounds_do_not_wait_for(changed):
    async def scenario(house):
        run, boxes = await started(house, rounds=3, evaluate_every=1, patience_seconds=600.0, **changed)
        boxes["c"].mute = True
        await until(lambda: house.runs.describe(run).samples is not None)
        boxes["d"].lose()
        return await ended(house, run)

    with House() as house:
        rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    held = {n: round(0.25 * rows) for n, rows in small_model.ROWS.items()}
    assert rounds[-1].evaluation.samples == held["a"] + held["b"] + held["e"]


def test_an_evaluation_says_whom_it_waits_for(monkeypatch):
    monkeypatch.setattr("aggregator.training.federated.evaluate.PATIENT_SECONDS", 0.0)

    async def scenario(house):
        run, boxes = await started(house, rounds=1)
        box = boxes["c"]
        run_program = box.run
        box.run = lambda program: run_program(program) if training_program(program) else None
        await until(lambda: "waits for c, goes" in house.runs.describe(run).waiting)
        said = house.runs.describe(run).waiting
        box.run = run_program
        box.disconnect()
        box.connect()
        rounds, info = await ended(house, run)
        return said, rounds, info

    def training_program(program):
        return any(name.startswith("task/rows/first") for name in program.tensors)

    with House() as house:
        said, rounds, info = asyncio.run(scenario(house))
    assert said.startswith("the evaluation of version 1 waits for c, goes on in")
    assert info.waiting == ""
    assert rounds[0].evaluation.samples == sum(round(0.25 * rows) for rows in small_model.ROWS.values())


# Jobs


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"local": LocalSpec(SGD, 8, epochs=INF)}, "local.epochs"),
        ({"local": LocalSpec(SGD, 8, epochs=-1.0)}, "local.epochs"),
        ({"local": LocalSpec(SGD, 8, steps=1, clip=NAN)}, "local.clip"),
        ({"selection": SelectionSpec(minimum=0)}, "selection.minimum"),
        ({"selection": SelectionSpec(minimum=6)}, "selection.minimum"),
        ({"selection": SelectionSpec(deadline_seconds=0.0)}, "selection.deadline_seconds"),
        ({"selection": SelectionSpec(adaptive=NAN)}, "selection.adaptive"),
        ({"patience_seconds": -1.0}, "patience_seconds"),
        ({"consensus": ConsensusSpec(parameter_weight=-1.0)}, "consensus.parameter_weight"),
        ({"stop": StopSpec(seconds=NAN)}, "stop.seconds"),
        (
            {"stop": StopSpec(metrics={"accuracy": 0.5}), "evaluate_every": 1},
            "stop.metrics names 'accuracy'.*correct",
        ),
        ({"consensus": ConsensusSpec("logits", {"z": np.zeros((2, 4), np.float32)})}, "probe lacks 'x'"),
        ({"consensus": ConsensusSpec("logits", {"x": np.zeros((2, 5), np.float32)})}, r"\[2, 5\]"),
        ({"consensus": ConsensusSpec("logits", {"x": np.zeros((2, 4))})}, "float64"),
    ],
)
def test_numbers_and_names_that_cannot_be_meant_are_refused_before_the_run(changed, said):
    with House() as house, pytest.raises(InvalidArgument, match=said):
        asyncio.run(house.runs.plan(small_model.job(house, **changed)))


def test_more_local_rows_than_fit_are_refused_before_anybody_works():
    _, info, boxes, _ = run_with(local=LocalSpec(SGD, batch=8, epochs=1e9))
    assert info.state is RunState.FAILED
    assert "rows a round" in info.detail
    assert not training(boxes["a"])


def test_a_model_is_exported_however_long_its_names_are(tmp_path):
    names = [f"{k:03}" + "w" * 1000 for k in range(300)]  # more than an argument of a process may have
    graph = helper.make_graph(
        [helper.make_node("Sum", ["x", *names], ["y"])],
        "long",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.zeros(2, np.float32), name) for name in names],
    )
    model, parameters, out = (tmp_path / n for n in ("model.onnx", "p.safetensors", "out.onnx"))
    model.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
        ).SerializeToString()
    )
    values = {f"p/{k}": np.array([k, 2], np.float32) for k in range(len(names))}
    safetensors.numpy.save_file(values, parameters)
    asyncio.run(export(model, parameters, ExportRequest(tuple(names)), out))
    trained = onnx.load(out)
    for k, tensor in enumerate(trained.graph.initializer):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), [k, 2])
