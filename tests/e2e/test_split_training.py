"""Training through the split over real nodes: as on one machine, over kills, within memory."""

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
NODES = ("a", "b", "c")


def job(kind, split, steps=8, batch=8, pieces=2, name=None, **more):
    data, loss, parameters, head = one_machine.model_of(kind)
    return SplitJob(
        name=name or f"{kind}-{split.replace(':', '-')}",
        model=FederatedModel(data, loss, parameters=parameters or None, head=head),
        split=split,
        data=one_machine.samples(kind),
        optimizer=OptimizerSpec(*OPTIMIZER),
        schedule=ScheduleSpec(*SCHEDULE),
        rounds=steps,
        batch=batch,
        micro_batches=pieces,
        nodes=NODES,
        patience_seconds=120,
        **more,
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Three nodes; the aggregator keeps its state."""
    found = Fleet(tmp_path_factory.mktemp("split"), "--lease", "3", state=True)
    try:
        found.nodes(*NODES)
        yield found
    finally:
        found.stop()


@pytest.mark.parametrize(("kind", "split"), [("bert", "heads"), ("llama", "layers"), ("llama", "tokens")])
def test_it_follows_the_same_run_on_one_machine(own, kind, split):
    losses, wanted = one_machine.trained(
        kind, one_machine.samples(kind), OPTIMIZER, SCHEDULE, steps=8, batch=8
    )
    with own.client() as client:
        run = client.train(job(kind, split))
        rounds = list(run)
        np.testing.assert_allclose([one.loss for one in rounds], losses, atol=1e-4)
        found = run.parameters()
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, atol=1e-4, err_msg=name)
        assert all(set(one.nodes) == set(NODES) for one in rounds), "each node had its part"
        assert run.describe().state is RunState.FINISHED


ALIKE = 4
"""Steps of which the one with the fewest bytes counts: a node's report of its metrics, of some 20,000 bytes
about every 10 s, comes over the same stream and is none of a step's."""


@pytest.mark.parametrize("split", ["layers", "heads"])
def test_nodes_add_the_gradients_of_pieces_and_send_the_sum_once(own, split):
    """As many bytes come up of eight pieces as of one: but for what they count, and messages' headers."""
    came, losses = {}, {}
    with own.client() as client:
        for pieces in (1, 8):
            run = client.train(
                job("bert", split, steps=ALIKE, batch=16, pieces=pieces, name=f"{split}-{pieces}")
            )
            rounds = list(run)
            came[pieces] = min(sum(one.bytes_received.values()) for one in rounds)
            losses[pieces] = [one.loss for one in rounds]
            trained = 4 * sum(array.size for array in run.parameters().values())
    np.testing.assert_allclose(losses[8], losses[1], atol=1e-5)
    assert came[1] > trained
    assert came[8] < came[1] + trained, "sent piece by piece it was seven times the gradients more"


def test_kills_of_the_aggregator_and_of_a_node_leave_the_bits_of_a_run_without(own):
    with own.client() as client:
        whole = client.train(job("llama", "layers", name="whole"))
        losses = [one.loss for one in whole]
        wanted = whole.parameters()
        run = client.train(job("llama", "layers", name="killed"))
        victims, seen = {3: (AGGREGATOR,), 5: ("b",)}, {}
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
        assert [seen[number] for number in sorted(seen)] == losses
        found = run.parameters()
        for name, array in wanted.items():
            assert found[name].tobytes() == array.tobytes(), name
