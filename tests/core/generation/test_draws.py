"""The same numbers on every machine."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.generation.draws import exp, uniform


@given(st.lists(st.floats(-745.0, 0.0), min_size=1, max_size=20))
def test_the_exponential_is_right_to_two_units_in_the_last_place(values):
    for x, found in zip(values, exp(np.array(values)), strict=True):
        if x < -708:
            assert found == 0
        else:
            assert abs(found - math.exp(x)) <= 2 * math.ulp(math.exp(x))


def test_its_bits_are_these():
    found = exp(-np.arange(0, 708, 1 / 7))
    assert found[0] == 1
    assert hashlib.sha256(found.astype("<f8").tobytes()).hexdigest()[:16] == "adbbe511bf582b59"


def test_numbers_follow_from_seed_and_place_alone():
    assert [uniform(7, place) for place in (0, 1, 1000)] == [
        0.7431848032414957,
        0.2337583087613142,
        0.5616178068498858,
    ]
    assert uniform(-(2**63), 0) != uniform(2**63 - 1, 0)
    drawn = np.array([uniform(3, place) for place in range(20_000)])
    assert 0 <= drawn.min() < 0.001 < 0.999 < drawn.max() < 1
    counts, _ = np.histogram(drawn, 20, (0, 1))
    assert abs(counts - 1000).max() < 150  # five times what is usual
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.05
