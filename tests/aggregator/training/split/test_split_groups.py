"""Groups of a job through the split: what each one's job is, what is refused, and steps that are not
committed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from aggregator.inference.model_answer import MakesNaN
from aggregator.store.tensor_file import TensorFile
from aggregator.training.divergence import NotANumber
from aggregator.training.job_recipes import SplitRecipe
from aggregator.training.split.checks import check, require_alike
from aggregator.training.split.grouped import GroupRounds
from aggregator.training.split.groups import deployment_of, group_jobs, together
from aggregator.training.split.local_steps import LocalSteps
from aggregator.training.split.pass_results import PassOfSamples
from aggregator.training.split.trainer import SplitTrainer
from aggregator.training.split.versions import optimizer_at
from edge_attention.core.errors import InvalidArgument, InvalidTensor, Unavailable
from edge_attention.core.messages.training import (
    FederatedModel,
    LossSpec,
    OptimizerSpec,
    ScheduleSpec,
    SplitData,
    SplitGroup,
    SplitJob,
    StrategySpec,
)
from edge_attention.core.optimizers import from_config

FILE = "1" * 64
GROUPS = (SplitGroup(("a", "b"), FILE), SplitGroup(("c", "d"), "2" * 64))
JOB = SplitJob(
    "job",
    FederatedModel("0" * 64, LossSpec("cross_entropy", "logits")),
    "layers",
    OptimizerSpec("adam", {"lr": 0.1}),
    3,
    8,
    SplitData(),
    groups=GROUPS,
    local_steps=2,
    schedule=ScheduleSpec("linear", {}),
)


def test_each_group_has_a_job_of_its_own():
    check(JOB)
    first, second = group_jobs(JOB)
    check(first)
    assert (first.nodes, first.data, first.groups) == (("a", "b"), SplitData(FILE), ())
    assert second.nodes == ("c", "d")
    assert deployment_of("run", JOB, 1) == "run.g1"
    assert deployment_of("run", first, 0) == "run"
    own = replace(JOB, data=SplitData("", "texts", "marks"), groups=(SplitGroup(("a",)),))
    assert group_jobs(own)[0].data == own.data


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"groups": ()}, "local_steps and strategy are of groups"),
        ({"nodes": ("e",)}, "groups have nodes and data of their own"),
        ({"data": SplitData(FILE)}, "groups have nodes and data of their own"),
        ({"groups": (*GROUPS, SplitGroup(("b",), FILE))}, "names one twice"),
        ({"groups": (*GROUPS, SplitGroup((), FILE))}, "a group names no node"),
        ({"groups": (*GROUPS, SplitGroup(("e",), "what"))}, r"groups\[2\].file is 'what'"),
        ({"groups": (*GROUPS, SplitGroup(("e",)))}, "data names no samples"),
        ({"groups": tuple(SplitGroup((f"n{i}",), FILE) for i in range(65))}, "MAX_GROUPS"),
        ({"local_steps": 0}, "local_steps is 0"),
        ({"strategy": StrategySpec("scaffold")}, "strategy is scaffold; of groups it is one that folds"),
        ({"strategy": StrategySpec("fedbuff")}, "strategy is fedbuff"),
        ({"strategy": StrategySpec("gradient_averaging")}, "strategy is gradient_averaging"),
    ],
)
def test_what_cannot_be_groups_is_refused(changed, said):
    with pytest.raises(InvalidArgument, match=said):
        check(replace(JOB, **changed))


def test_groups_whose_parameters_differ_are_refused():
    plans = [SimpleNamespace(names=("w",), shapes=shapes) for shapes in (((2,),), ((3,),))]
    with pytest.raises(InvalidArgument, match="groups, number 1"):
        require_alike(plans)


@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_local_steps_are_those_of_the_optimizer_from_anew_with_the_runs_learning_rates(tmp_path, proximal):
    rng = np.random.default_rng(0)
    began = {
        f"p/{i}": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate([(3, 2), (4,)])
    }
    save_file(began, tmp_path / "began")
    plan = SimpleNamespace(names=("w", "b"), shapes=((3, 2), (4,)))
    local = LocalSteps(tmp_path / "own", JOB, plan, TensorFile(tmp_path / "began"), proximal)
    values, optimizer = dict(began), from_config("adam", lr=0.1)
    state = optimizer.init(values)
    for number in (3, 4):  # of 3 rounds of 2 steps, those of the second
        gradients = [rng.standard_normal(shape).astype(np.float32) for shape in plan.shapes]
        local.step(number, gradients)
        rate = from_config("adam", lr=0.1 * (1 - (number - 1) / 6))
        pulled = {
            name: g + np.float32(proximal) * (values[name] - began[name])
            for name, g in zip(values, gradients, strict=True)
        }
        values, state = rate.step(values, pulled, state)
    for name, array in values.items():
        np.testing.assert_allclose(
            local.parameters.read(name).reshape(array.shape), array, rtol=1e-6, atol=1e-7
        )


def test_the_first_failure_of_a_group_ends_the_others():
    ended = []

    async def fails():
        await asyncio.sleep(0)
        raise Unavailable("node b has gone")

    async def goes_on():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def main():
        with pytest.raises(Unavailable, match="node b"):
            await together([goes_on(), fails()])
        return await together([asyncio.sleep(0, 1), asyncio.sleep(0, 2)])

    assert asyncio.run(main()) == [1, 2]
    assert ended == [True]


def test_a_failure_names_its_group(tmp_path):
    rounds = GroupRounds(JOB, (), (), SimpleNamespace(), tmp_path)

    async def of_group(group, current, turns):
        if group:
            raise NotANumber("the gradient of w")
        await asyncio.sleep(60)

    rounds._of_group = of_group
    with pytest.raises(NotANumber, match=r"^group 1: the gradient of w is not finite$"):
        asyncio.run(rounds.trained(SimpleNamespace(number=0), [None, None]))


def test_a_divergence_names_the_rate_of_the_step_that_it_came_of():
    trainer = SimpleNamespace(
        _job=JOB,
        _versions=SimpleNamespace(optimizer_at=partial(optimizer_at, JOB)),
        _record=lambda number: None,
    )
    said = SplitTrainer._diverged(trainer, 2, NotANumber("group 1: the gradient of w")).message
    assert said.startswith("group 1: the gradient of w is not finite from round 3 on: ")
    # The fourth of the run's six steps, of a rate that falls from 0.1 to 0.
    assert "a learning rate of 0.05 is likely too high" in said


@pytest.mark.parametrize("group", ["", "group 1: "])
def test_a_divergence_says_where_in_the_model_it_was_met_first(group, tmp_path):
    """It was 'what the model computes', and the rest in a log."""
    trainer = SimpleNamespace(
        _job=JOB,
        _versions=SimpleNamespace(optimizer_at=partial(optimizer_at, JOB)),
        _record=lambda number: None,
    )
    error = MakesNaN("node 'a': step 2 of part 1: y0 holds nan at [0, 3]")
    if group:
        rounds = GroupRounds(JOB, (), (), SimpleNamespace(), tmp_path)

        async def of_group(group, current, turns):
            raise error

        rounds._of_group = of_group
        with pytest.raises(MakesNaN) as caught:
            asyncio.run(rounds._named(1, SimpleNamespace(number=0), None))
        error = caught.value
    where = f"({group}node 'a': step 2 of part 1: y0 holds nan at [0, 3])"
    said = SplitTrainer._diverged(trainer, 2, error).message
    assert said.startswith(f"what the model computes {where} is not finite from round 3 on: a learning rate")
    said = SplitTrainer._unevaluated(trainer, 2, error).message
    assert said.startswith(
        f"what the model gives of the held-out samples {where} is not finite after round 2"
    )


def test_of_groups_that_are_refused_no_plan_stays_on_the_disk(tmp_path):
    recipe = SplitRecipe(JOB, SimpleNamespace())

    async def planned(job):
        folder = tmp_path / job.nodes[0]
        folder.mkdir()
        recipe._folders.append(folder)
        recipe._plans.append(SimpleNamespace(names=(job.nodes[0],), shapes=((2,),)))

    recipe._plan_of = planned
    with pytest.raises(InvalidArgument, match="groups, number 1"):
        asyncio.run(recipe.plan())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [-4.0, 4.1, 1e30])
def test_labels_of_a_piece_count_what_they_can(count):
    """A group's share of the mean of all groups goes by it: one node's word would be all of the model."""
    plan = SimpleNamespace(names=(), weighted=True, metrics=())
    done = PassOfSamples(plan, False, 4.0)
    told = SimpleNamespace(results={"loss": np.float32(0.5), "loss/weight": np.float32(count)}, segments=())
    with pytest.raises(InvalidTensor, match="a piece's labels count"):
        done.add(told)
    assert done.count == 0
    told.results["loss/weight"] = np.float32(4.0)
    done.add(told)
    assert (done.count, done.loss) == (4.0, 2.0)
