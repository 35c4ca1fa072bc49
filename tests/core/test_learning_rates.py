"""Courses of the learning rate: as PyTorch's LambdaLR would be given them, by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.learning_rates import LEAST_RATE, factor_at, from_config, optimizer_at
from edge_attention.core.optimizers import AdamW
from edge_attention.core.specs import ScheduleSpec

KINDS = ("constant", "linear", "cosine", "stairs", "step")


@pytest.mark.parametrize(
    ("name", "options", "steps", "factors"),
    [
        ("constant", {}, 3, [1, 1, 1]),
        ("constant", {"warmup": 3}, 5, [0.25, 0.5, 0.75, 1, 1]),
        ("linear", {}, 4, [1, 0.75, 0.5, 0.25]),
        ("linear", {"warmup": 1, "floor": 0.5}, 3, [0.5, 1, 0.75]),
        ("cosine", {}, 2, [1, 0.5]),
        (
            "cosine",
            {"floor": 0.2},
            4,
            [1, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - math.sqrt(0.5))],
        ),
        ("stairs", {"every": 2, "gamma": 0.1}, 5, [1, 1, 0.1, 0.1, 0.01]),
        ("step", {"every": 2, "gamma": 0.5, "warmup": 1}, 5, [0.5, 1, 1, 0.5, 0.5]),
    ],
)
def test_courses(name, options, steps, factors):
    schedule = from_config(name, **options)
    found = [schedule.factor(step, steps) for step in range(1, steps + 1)]
    assert found == pytest.approx(factors)


@given(st.sampled_from(KINDS), st.integers(0, 50), st.integers(1, 200), st.data())
def test_no_factor_is_past_1_or_below_0(name, warmup, steps, data):
    schedule = from_config(name, warmup=warmup)
    assert 0 <= schedule.factor(data.draw(st.integers(1, steps)), steps) <= 1


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [("cosin", {}, "cosine"), ("linear", {"floor": 1.0}, "floor"), ("constant", {"gamma": 1.0}, "gamma")],
)
def test_what_there_is_not_is_refused_by_its_name(name, options, said):
    with pytest.raises(InvalidArgument, match=said):
        from_config(name, **options)


def test_an_optimizer_keeps_all_but_its_rate():
    optimizer = AdamW(lr=0.25, weight_decay=0.125)
    assert optimizer_at(optimizer, 1.0) is optimizer
    assert optimizer_at(optimizer, 0.5) == AdamW(lr=0.125, weight_decay=0.125)
    # A course may end at 0, which no optimizer takes.
    assert optimizer_at(optimizer, 0.0) == AdamW(lr=LEAST_RATE, weight_decay=0.125)
    assert factor_at(ScheduleSpec("linear", {"warmup": 1.0}), 1, 10) == 0.5
