"""The classification extension, against NumPy's sorting of each row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aggregator.inference.protocol.classification import (
    MAX_CLASSIFIED,
    MAX_SORTED,
    classified,
    classified_bytes,
)
from edge_attention.core.errors import InvalidArgument


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.int8, np.uint64]),
        st.tuples(st.integers(1, 3), st.integers(1, 6)),
        elements=st.integers(0, 5),
    ),
    st.integers(1, 8),
    st.booleans(),
)
def test_the_largest_of_each_row_equal_ones_in_their_order(array, classes, batched):
    found = classified(array, classes, "y", batched=batched)
    rows = array if batched else array.reshape(1, -1)
    expected = [
        [
            (f"{row[i]:f}:{i}" if array.dtype.kind == "f" else f"{row[i]}:{i}").encode()
            for i in sorted(range(len(row)), key=lambda i: (-float(row[i]), i))[:classes]
        ]
        for row in rows
    ]
    assert found.tolist() == (expected if batched else expected[0])


def test_whole_numbers_have_all_their_digits():
    """As Triton writes them: 16, not 16.000000."""
    most = np.array([(1 << 63) - 1, -1, (1 << 63) - 2], np.int64)
    found = classified(most, 2, "y", batched=False)
    assert found.tolist() == [b"9223372036854775807:0", b"9223372036854775806:2"]


def test_what_has_no_order_comes_last():
    assert classified(np.array([np.nan, 1, 2]), 3, "y", batched=False).tolist()[:2] == [
        b"2.000000:2",
        b"1.000000:1",
    ]


@pytest.mark.parametrize("classes", [0, -1, True, "2", 10_001])
def test_no_number_of_classes(classes):
    with pytest.raises(InvalidArgument, match="'classification' of output 'y' must be 1 to 10,000"):
        classified(np.zeros(3, np.float32), classes, "y", batched=False)


def test_strings_have_no_classes():
    with pytest.raises(InvalidArgument, match="cannot be classified"):
        classified(np.array([b"x"], object), 1, "y", batched=False)


def test_classes_of_all_rows_are_bounded_and_counted_before_they_are_made():
    array = np.zeros((1024, 10_000), np.int8)
    for asked in (classified, classified_bytes):
        with pytest.raises(InvalidArgument, match=r"bound classified: .* 10,240,000 classes of 1,024 rows"):
            asked(array, 10_000, "y", batched=True)
    few = MAX_CLASSIFIED // 1024
    assert classified_bytes(array, few, "y", batched=True) >= few * 1024
    few_columns = np.zeros((1024, 2), np.int8)
    made = classified(few_columns, 10_000, "y", batched=True)
    assert made.shape == (1024, 2)
    assert classified_bytes(few_columns, 10_000, "y", batched=True) >= sum(map(len, made.reshape(-1)))


def test_what_takes_long_to_be_put_in_order_is_refused():
    large = np.broadcast_to(np.float32(0), (2, MAX_SORTED))
    for batched in (True, False):
        with pytest.raises(InvalidArgument, match="bound classified: output 'y' has 67,108,864 elements"):
            classified(large, 1, "y", batched=batched)
        with pytest.raises(InvalidArgument, match="bound classified"):
            classified_bytes(large, 1, "y", batched=batched)
