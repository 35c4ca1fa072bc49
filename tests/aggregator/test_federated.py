"""Federated rounds over real programs on nodes in this process, against a float64 reference."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import small_model
from house import House, until

from edge_attention.core.messages.program import Return, Run
from edge_attention.core.messages.training import (
    EncodingSpec,
    LocalSpec,
    OptimizerSpec,
    RunState,
    SelectionSpec,
    StrategySpec,
    TrainingRound,
)
from edge_attention.core.rounds.sampling import training_rows


async def started(house, names=small_model.NODES, tamper=None, **changed):
    """A run of nodes that release what it needs."""
    job = small_model.job(house, **changed)
    released = sorted({graph.release for graph in (await house.runs.plan(job)).graphs if graph.release})
    boxes = {
        name: house.node(
            name, datasets=[small_model.rows(name)], releases=released, tamper=(tamper or {}).get(name)
        )
        for name in names
    }
    return (await house.runs.start(job)).id, boxes


async def ended(house, run):
    rounds = []
    async with asyncio.timeout(180):
        rounds += [event async for event in house.runs.watch(run, 0) if isinstance(event, TrainingRound)]
    return rounds, house.runs.describe(run)


def parameters(house, run):
    file, _ = house.parameters.open(run, house.parameters.latest(run))
    return file.read("p/0").reshape(small_model.W.shape), file.read("p/1")


def reference(rounds, steps=3, batch=8, lr=0.1, holdout=0.25, server=1.0):
    """FedAvg, written plainly."""
    weight, bias = small_model.W.astype(np.float64), small_model.B.astype(np.float64)
    kept = {n: rows - round(holdout * rows) for n, rows in small_model.ROWS.items()}
    for number in range(1, rounds + 1):
        total_w, total_b = np.zeros_like(weight), np.zeros_like(bias)
        for name in small_model.NODES:
            w, b = weight.copy(), bias.copy()
            chosen = training_rows(small_model.ROWS[name], holdout, batch, steps, 0, name, number)
            for rows in chosen:
                _, dw, db = small_model.gradient(w, b, small_model.X[name][rows], small_model.Y[name][rows])
                w, b = w - lr * dw, b - lr * db
            share = kept[name] / sum(kept.values())
            total_w, total_b = total_w + share * (weight - w), total_b + share * (bias - b)
        weight, bias = weight - server * total_w, bias - server * total_b
    return weight, bias


def test_federated_averaging_follows_its_reference():
    async def scenario(house):
        run, _ = await started(house)
        return run, *await ended(house, run)

    with House() as house:
        run, rounds, info = asyncio.run(scenario(house))
        assert (info.state, info.version) == (RunState.FINISHED, 4), info.detail
        weight, bias = parameters(house, run)
    expected = reference(4)
    np.testing.assert_allclose(weight, expected[0], atol=1e-5)
    np.testing.assert_allclose(bias, expected[1], atol=1e-5)
    assert [r.number for r in rounds] == [1, 2, 3, 4]
    assert rounds[-1].loss < rounds[0].loss
    assert set(rounds[0].nodes) == set(small_model.NODES)
    assert rounds[-1].evaluation.samples == sum(
        rows - (rows - round(0.25 * rows)) for rows in small_model.ROWS.values()
    )
    assert 0 < rounds[-1].evaluation.metrics["correct"] <= rounds[-1].evaluation.samples


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold"])
def test_a_round_of_one_local_step_is_one_graph_on_the_node(strategy):
    """From one step neither mu nor a control that was zero makes a difference in the first round."""

    async def scenario(house):
        local = LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=8, steps=1)
        rounds = 5 if strategy == "fedavg" else 1
        run, boxes = await started(
            house, local=local, strategy=StrategySpec(strategy), rounds=rounds, weighting="samples"
        )
        return run, boxes, rounds, *await ended(house, run)

    with House() as house:
        run, boxes, rounds, records, info = asyncio.run(scenario(house))
        assert info.state is RunState.FINISHED, info.detail
        weight, bias = parameters(house, run)
    trained = [
        p
        for p in boxes["a"].programs
        if any(isinstance(i, Return) and i.name == "norm" for i in p.instructions)
    ]
    graphs = [{i.graph for i in p.instructions if isinstance(i, Run)} for p in trained[:rounds]]
    assert all(len(used) == 1 for used in graphs)
    assert records[0].loss > 0
    if strategy != "scaffold":  # which weighs all nodes the same
        expected = reference(rounds, steps=1)
        np.testing.assert_allclose(weight, expected[0], atol=1e-5)
        np.testing.assert_allclose(bias, expected[1], atol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("fedavgm", {}), ("fedadam", {}), ("fedadagrad", {}), ("fedyogi", {}), ("fedprox", {"mu": 0.1}),
        ("scaffold", {}), ("gradient_averaging", {}), ("fedbuff", {"buffer": 3}),
    ],
)  # fmt: skip
def test_every_strategy_learns(strategy, options):
    async def scenario(house):
        run, _ = await started(house, strategy=StrategySpec(strategy, options), rounds=12, evaluate_every=6)
        return await ended(house, run)

    with House() as house:
        rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    assert [r.number for r in rounds] == list(range(1, 13))
    assert rounds[-1].loss < rounds[0].loss
    assert rounds[5].evaluation is not None


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "adamw"])
def test_every_local_optimizer_learns(optimizer):
    async def scenario(house):
        local = LocalSpec(OptimizerSpec(optimizer, {"lr": 0.05}), batch=8, epochs=1.0)
        run, _ = await started(house, local=local, rounds=5)
        return await ended(house, run)

    with House() as house:
        rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    assert rounds[-1].loss < rounds[0].loss


@pytest.mark.parametrize(
    ("encoding", "options", "near"),
    [
        ("float16", {}, 1e-3), ("bfloat16", {}, 1e-2), ("int8", {}, 1e-2), ("topk", {"fraction": 0.5}, 0.2),
    ],
)  # fmt: skip
def test_encodings_stay_near_the_whole_update(encoding, options, near):
    async def scenario(house):
        run, boxes = await started(house, update=EncodingSpec(encoding, options))
        ends = await ended(house, run)
        return run, boxes, *ends

    with House() as house:
        run, _, _, info = asyncio.run(scenario(house))
        assert info.state is RunState.FINISHED, info.detail
        weight, bias = parameters(house, run)
    expected = reference(4)
    assert 0 < np.abs(weight - expected[0]).max() < near
    assert np.abs(bias - expected[1]).max() < near


def hostile(contribution):
    """Sign-flipped, times ten."""
    from dataclasses import replace

    tensors = {
        name: -10 * array if name.startswith("update/") else array
        for name, array in contribution.tensors.items()
    }
    return replace(contribution, tensors=tensors)


def poisoned(contribution):
    from dataclasses import replace

    tensors = {
        name: np.full_like(array, np.nan) if name.startswith("update/") else array
        for name, array in contribution.tensors.items()
    }
    return replace(contribution, tensors=tensors)


@pytest.mark.parametrize("combine", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_one_hostile_node_does_not_carry_the_fold(combine):
    options = {"trimmed_mean": {"trim": 0.2}, "krum": {"byzantine": 1}, "multi_krum": {"byzantine": 1}}

    async def scenario(house, kind, given):
        run, _ = await started(
            house, tamper={"b": hostile}, combine=StrategySpec(kind, given), rounds=8, evaluate_every=8
        )
        return await ended(house, run)

    with House() as house:
        rounds, info = asyncio.run(scenario(house, combine, options.get(combine, {})))
        assert info.state is RunState.FINISHED, info.detail
    with House() as house:
        plain, _ = asyncio.run(scenario(house, "mean", {}))
    robust, mean = (r[-1].evaluation for r in (rounds, plain))
    assert robust.loss < rounds[0].loss
    assert mean.loss > 2 * robust.loss


def test_a_node_that_sends_nan_is_refused_named_and_left_out_of_all_further_rounds():
    async def scenario(house):
        run, boxes = await started(house, tamper={"b": poisoned}, selection=SelectionSpec(quorum=0.5))
        return *await ended(house, run), boxes

    with House() as house:
        rounds, info, boxes = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    assert "b" not in rounds[0].nodes
    assert rounds[0].left_out["b"].startswith("quarantined: node 'b'")
    assert rounds[-1].left_out["b"] == rounds[0].left_out["b"]
    assert all(r.quarantined == ("b",) for r in rounds)
    # The check of its labels returns no loss: what does is a round.
    asked = [p for p in boxes["b"].programs if any(getattr(i, "name", "") == "loss" for i in p.instructions)]
    assert len([p for p in asked if p.tensors]) == 1


def test_the_next_process_asks_no_node_that_was_in_quarantine_and_asks_one_that_only_says_so(tmp_path):
    """What counts is the record's own list, not how a reason begins, which may quote a node."""
    options = {"selection": SelectionSpec(quorum=0.5), "rounds": 30}

    async def first(house):
        run, _ = await started(house, tamper={"b": poisoned}, **options)
        await until(lambda: house.runs.describe(run).round >= 1)
        await house.runs.close()
        return run

    async def second(house, run):
        job = small_model.job(house, **options)
        released = sorted({graph.release for graph in (await house.runs.plan(job)).graphs if graph.release})
        house.runs.resume()
        boxes = [
            house.node(name, datasets=[small_model.rows(name)], releases=released)
            for name in small_model.NODES
        ]
        rounds, info = await ended(house, run)
        return rounds, info, boxes

    with House(tmp_path) as house:
        run = asyncio.run(first(house))
    with House(tmp_path) as house:
        before = next(iter(house.state.each_run())).round
        assert before < 30
        record = house.state.record(run, before)
        other = next(name for name in small_model.NODES if name != "b")
        record["left_out"][other] = "quarantined: so a node said of itself"
        house.state.replace_record(run, before, record)
        rounds, info, boxes = asyncio.run(second(house, run))
    assert info.state is RunState.FINISHED, info.detail
    assert all(r.quarantined == ("b",) for r in rounds)
    assert all(other in r.nodes for r in rounds[before:])
    assert not any(p.tensors for box in boxes if box.name == "b" for p in box.programs)


def test_the_next_process_goes_on_bit_for_bit(tmp_path):
    async def whole(house):
        run, _ = await started(house, rounds=6, strategy=StrategySpec("fedadam"))
        await ended(house, run)
        return run

    async def first(house):
        run, _ = await started(house, rounds=6, strategy=StrategySpec("fedadam"))
        await until(lambda: house.runs.describe(run).round >= 2)
        await house.runs.close()
        return run

    async def second(house, run):
        job = small_model.job(house, rounds=6, strategy=StrategySpec("fedadam"))
        released = sorted({graph.release for graph in (await house.runs.plan(job)).graphs if graph.release})
        house.runs.resume()
        for name in reversed(small_model.NODES):
            house.node(name, datasets=[small_model.rows(name)], releases=released)
        return await ended(house, run)

    with House() as house:
        expected = parameters(house, asyncio.run(whole(house)))
    with House(tmp_path) as house:
        run = asyncio.run(first(house))
        assert house.parameters.latest(run) < 6
    with House(tmp_path) as house:
        rounds, info = asyncio.run(second(house, run))
        assert (info.state, info.version) == (RunState.FINISHED, 6), info.detail
        assert [r.number for r in rounds] == list(range(1, 7))
        for found, wanted in zip(parameters(house, run), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_one_node_that_is_asked_alone_and_returns_nan_does_not_end_the_run():
    async def scenario(house, **changed):
        run, _ = await started(house, selection=SelectionSpec(fraction=0.2), rounds=12, **changed)
        return await ended(house, run)

    with House() as house:
        rounds, info = asyncio.run(scenario(house, tamper={"b": poisoned}))
    assert info.state is RunState.FINISHED, info.detail
    assert rounds[-1].quarantined == ("b",)
    assert all(len(r.nodes) == 1 and "b" not in r.nodes for r in rounds)
    with House() as house:
        rounds, info = asyncio.run(scenario(house, tamper=dict.fromkeys(small_model.NODES, poisoned)))
    assert info.state is RunState.FAILED
    assert "the update of every node is not finite from round 1 on" in info.detail
    assert rounds == []
