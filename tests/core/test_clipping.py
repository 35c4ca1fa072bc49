from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.clipping import clip_factor, global_norm, squared_norm

NORMS = st.floats(0, 1e12)


@given(NORMS, st.floats(1e-6, 1e6))
def test_what_is_clipped_is_no_longer_and_what_is_short_stays(norm, most):
    factor = clip_factor(norm, most)
    assert 0 < factor <= 1
    assert norm * factor <= most * (1 + 1e-12) or factor == 1.0
    assert (factor == 1.0) == (norm <= most) or np.isclose(norm, most)


def test_parts_have_the_norm_of_the_whole():
    parts = [np.array([3.0], np.float32), np.array([[0.0, 4.0]], np.float32)]
    assert global_norm(map(squared_norm, parts)) == 5.0
    large = np.full(4, 1e30, np.float32)  # whose squares are no float32
    assert np.isclose(global_norm([squared_norm(large)]), 2e30)
    assert clip_factor(7.0, 0.0) == 1.0
