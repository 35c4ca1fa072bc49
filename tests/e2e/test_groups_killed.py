"""Groups of nodes that hold a model each, over real nodes: the average of the runs of one machine each."""

from __future__ import annotations

import numpy as np
import one_machine
import pytest
from fleets import Fleet

from edge_attention import FederatedModel, OptimizerSpec, ScheduleSpec, SplitJob
from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.messages.training import RunState, TrainingRun

OPTIMIZER = ("adamw", {"lr": 2e-3})
SCHEDULE = ("linear", {"warmup": 3})
GROUPS = (("a", "b"), ("c", "d"))
ROUNDS, LOCAL, BATCH = 3, 2, 8


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    found = Fleet(tmp_path_factory.mktemp("groups"), "--lease", "3", state=True)
    try:
        found.nodes(*GROUPS[0], *GROUPS[1])
        yield found
    finally:
        found.stop()


def samples():
    """Of each group, of which the first has twice as many."""
    arrays = one_machine.samples("llama")
    return [{n: a[:64] for n, a in arrays.items()}, {n: a[64:] for n, a in arrays.items()}]


def job(name, **more):
    data, loss, parameters, head = one_machine.model_of("llama")
    return SplitJob(
        name=name,
        model=FederatedModel(data, loss, parameters=parameters or None, head=head),
        split="layers",
        data=samples(),
        optimizer=OptimizerSpec(*OPTIMIZER),
        schedule=ScheduleSpec(*SCHEDULE),
        rounds=ROUNDS,
        batch=BATCH,
        micro_batches=2,
        groups=GROUPS,
        local_steps=LOCAL,
        patience_seconds=120,
        **more,
    )


def average():
    """Losses by round, and parameters: of each round the average of what each group comes to by itself."""
    values, losses = None, []
    arrays = samples()
    counts = [len(own["labels"]) for own in arrays]
    for number in range(ROUNDS):
        found = [
            one_machine.trained(
                "llama", own, OPTIMIZER, SCHEDULE, LOCAL, BATCH,
                values=values, first=number * LOCAL + 1, total=ROUNDS * LOCAL,
            )
            for own in arrays
        ]  # fmt: skip
        losses.append(np.average([np.mean(loss) for loss, _ in found], weights=counts))
        values = {
            name: np.average([made[name] for _, made in found], axis=0, weights=counts).astype(np.float32)
            for name in found[0][1]
        }
    return losses, values


def test_a_round_is_the_average_of_the_runs_of_one_machine_each_and_kills_leave_its_bits(own):
    losses, wanted = average()
    with own.client() as client:
        run = client.train(job("whole"))
        rounds = list(run)
        np.testing.assert_allclose([one.loss for one in rounds], losses, atol=1e-4)
        whole = run.parameters()
        assert whole.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_allclose(whole[name], array, atol=1e-4, err_msg=name)
        assert all(set(one.nodes) == {*GROUPS[0], *GROUPS[1]} for one in rounds)
        assert all(one.steps == LOCAL for made in rounds for one in made.nodes.values())

        run = client.train(job("killed"))
        victims, seen = {1: (AGGREGATOR,), 2: ("b", "c")}, {}
        for event in run.events():
            if isinstance(event, TrainingRun):
                continue
            seen[event.number] = event.loss
            for victim in victims.pop(event.number, ()):
                if victim == AGGREGATOR:
                    own.restart_aggregator("--lease", "3")
                else:
                    own.kill(victim)
                    own.nodes(victim)
        assert not victims
        assert run.describe().state is RunState.FINISHED
        assert [seen[number] for number in sorted(seen)] == [one.loss for one in rounds]
        for name, array in run.parameters().items():
            assert array.tobytes() == whole[name].tobytes(), name


def test_momentum_of_the_servers_and_held_out_samples_of_all_groups(own):
    with own.client() as client:
        run = client.train(job("momentum", strategy="fedavgm", holdout=0.25, evaluate_every=1))
        rounds = list(run)
        assert run.describe().state is RunState.FINISHED
        assert run.describe().samples.holdout == 24
        assert all(one.evaluation is not None and one.evaluation.samples == 24 for one in rounds)
