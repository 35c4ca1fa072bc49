"""When a run is over, and which version is best: of its records alone."""

from __future__ import annotations

import math

import pytest

from aggregator.training.divergence import diverged
from aggregator.training.stopping import Stopping
from edge_attention.core.messages.training import Evaluation, StopSpec, TrainingRound


def record(number, loss=1.0, held=None, right=0.0):
    evaluation = None if held is None else Evaluation(10, held, {"correct": right})
    return TrainingRound(number, number, loss, (), {}, {}, {}, {}, evaluation)


def run(stop, losses, held=True):
    """The round after which it ends, why, and the best version. A loss of None: not evaluated."""
    stopping = Stopping(stop, held)
    for number, loss in enumerate(losses, start=1):
        each = record(number, held=loss) if held else record(number, loss)
        stopping.hear(each)
        if why := stopping.why(each, float(number)):
            return number, why, stopping.version
    return None, "", stopping.version


def test_it_ends_when_nothing_gets_better_and_the_best_is_known():
    losses = [0.9, 0.5, 0.6, None, 0.55, 0.52, 0.1]
    end, why, best = run(StopSpec(patience=3), losses)
    assert (end, best) == (6, 2)
    assert why == "3 evaluations without a loss below 0.5 of round 2"
    assert run(StopSpec(), losses) == (None, "", 7)


def test_a_gain_that_is_too_small_is_none_and_still_the_best_version():
    losses = [0.9, 0.8999, 0.8998, 0.8997]
    end, why, best = run(StopSpec(patience=2, min_delta=0.01), losses)
    assert (end, best) == (3, 3)
    assert why == "2 evaluations without a loss below 0.9 of round 1 by more than 0.01"


def test_without_held_out_samples_rounds_count_and_no_version_is_called_the_best():
    assert run(StopSpec(patience=2), [0.5, 0.6, 0.7], held=False) == (
        3, "2 rounds without a loss below 0.5 of round 1", None
    )  # fmt: skip


def test_a_loss_that_is_no_number_is_no_gain():
    assert run(StopSpec(patience=2), [math.nan, math.nan])[1] == (
        "2 evaluations without a loss below any number"
    )


def test_a_run_that_goes_on_ends_where_it_would_have_ended():
    records = [record(n, held=loss) for n, loss in enumerate([0.9, 0.5, 0.6, 0.7], start=1)]
    whole, later = (Stopping(StopSpec(patience=2), True) for _ in range(2))
    for each in records:
        whole.hear(each)
    later.recall(records[:3])
    later.hear(records[2])  # which it knows
    later.hear(records[3])
    assert later.why(records[3], 0.0) == whole.why(records[3], 0.0) != ""
    assert (later.version, later.loss) == (whole.version, whole.loss) == (2, 0.5)


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (StopSpec(loss=0.6), "its loss is 0.5, at most 0.6 was wanted"),
        (StopSpec(metrics={"correct": 0.7}), "correct is 80.00%"),
        (StopSpec(seconds=5.0), "it has trained for 5 s"),
        (StopSpec(loss=0.4, metrics={"correct": 0.9}, seconds=50.0, patience=2), ""),
    ],
)
def test_what_else_ends_it(stop, said):
    stopping = Stopping(stop, True)
    last = record(1, held=0.5, right=8.0)
    stopping.hear(last)
    assert stopping.why(last, 6.0) == said


def test_divergence_names_the_rate_and_the_last_loss():
    said = diverged("the loss of every node", 4, 1e6, record(3, 2.5), "lower local.optimizer.lr").message
    assert said == (
        "the loss of every node is not finite from round 4 on: a learning rate of 1e+06 is likely too high; "
        "the last finite loss was 2.5, of round 3. To mend it: lower local.optimizer.lr"
    )
    assert "so look at the data, too" in diverged("the loss", 1, 0.1, None, "").message
    assert "no step was taken before" in diverged("the loss", 1, None, None, "").message
