"""Alignment: a pure function of hashes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.training.fusion.alignment import align
from edge_attention.core.errors import FailedPrecondition, InvalidTensor
from edge_attention.core.messages.training import MissingSamples

LEAVE_OUT, ATTEND = MissingSamples.LEAVE_OUT, MissingSamples.ATTEND


def hashes(*ids):
    digests = b"".join(hashlib.sha256(str(i).encode()).digest()[:16] for i in ids)
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


def test_samples_are_in_the_labels_order_and_rows_are_found():
    aligned = align({"a/x": hashes(1, 2, 3), "b/y": hashes(3, 1, 2)}, "b/y", ["a/x"], LEAVE_OUT)
    np.testing.assert_array_equal(aligned.rows["b/y"], [0, 1, 2])
    np.testing.assert_array_equal(aligned.rows["a/x"], [2, 0, 1])
    assert (len(aligned), aligned.complete, aligned.incomplete) == (3, 3, 0)


def test_a_sample_some_node_lacks_is_left_out_or_attended_and_counted():
    sources = {"a/x": hashes(1, 2), "b/y": hashes(1, 3), "l/y": hashes(1, 2, 3, 4)}
    left = align(sources, "l/y", ["a/x", "b/y"], LEAVE_OUT)
    assert (len(left), left.complete, left.incomplete) == (1, 1, 3)
    attended = align(sources, "l/y", ["a/x", "b/y"], ATTEND)
    # Sample 4 has a label and no tokens: there is nothing to attend to.
    np.testing.assert_array_equal(attended.rows["l/y"], [0, 1, 2])
    np.testing.assert_array_equal(attended.rows["a/x"], [0, 1, -1])
    np.testing.assert_array_equal(attended.rows["b/y"], [0, -1, 1])


@pytest.mark.parametrize("mode", MissingSamples)
def test_a_dataset_that_matches_nobody_is_named(mode):
    """Whatever is to be done with samples that some lack: it would be left out, or leave out all others."""
    sources = {"a/x": hashes(1, 2), "b/x": hashes("p1", "p2"), "l/y": hashes(1, 2, 3)}
    with pytest.raises(FailedPrecondition) as caught:
        align(sources, "l/y", ["a/x", "b/x"], mode)
    said = caught.value.message
    assert (
        "none of the ids of b/x is among those of l/y, which has the labels. Ids are compared as text" in said
    )
    assert said.endswith("a/x: 2 rows; b/x: 2 rows; l/y: 3 rows")


def test_no_sample_in_common_says_what_each_has():
    sources = {"a/x": hashes(1), "b/x": hashes(2), "l/y": hashes(1, 2)}
    with pytest.raises(FailedPrecondition, match=r"no sample is on all nodes.* a/x: 1 rows; b/x: 1 rows"):
        align(sources, "l/y", ["a/x", "b/x"], LEAVE_OUT)
    assert len(align(sources, "l/y", ["a/x", "b/x"], ATTEND)) == 2


def test_an_id_twice_and_hashes_of_the_wrong_shape_are_refused():
    with pytest.raises(InvalidTensor, match="a/x: two rows have the same id"):
        align({"a/x": hashes(1, 1), "b/y": hashes(1)}, "b/y", ["a/x"], LEAVE_OUT)
    with pytest.raises(InvalidTensor, match="ids of a/x"):
        align({"a/x": hashes(1)[:, :8], "b/y": hashes(1)}, "b/y", ["a/x"], LEAVE_OUT)


@given(st.data())
def test_alignment_is_what_sets_say(data):
    ids = st.lists(st.integers(0, 12), unique=True, min_size=1)
    tables = {"a/x": data.draw(ids), "b/x": data.draw(ids), "l/y": data.draw(ids)}
    mode = data.draw(st.sampled_from(MissingSamples))
    shared = set(tables["a/x"]) & set(tables["b/x"])
    either = set(tables["a/x"]) | set(tables["b/x"])
    expected = [i for i in tables["l/y"] if i in (shared if mode is LEAVE_OUT else either)]
    sources = {name: hashes(*table) for name, table in tables.items()}
    lost = [name for name in ("a/x", "b/x") if not set(tables[name]) & set(tables["l/y"])]
    if not expected or lost:
        with pytest.raises(FailedPrecondition):
            align(sources, "l/y", ["a/x", "b/x"], mode)
        return
    aligned = align(sources, "l/y", ["a/x", "b/x"], mode)
    for name, table in tables.items():
        rows = [table.index(i) if i in table else -1 for i in expected]
        np.testing.assert_array_equal(aligned.rows[name], rows)
    assert aligned.complete == len(shared & set(tables["l/y"]))


def test_the_fingerprint_tells_other_samples_and_another_order():
    def fingerprint(a, b):
        return align({"a/x": hashes(*a), "b/y": hashes(*b)}, "b/y", ["a/x"], LEAVE_OUT).fingerprint

    same = fingerprint([1, 2, 3], [1, 2, 3])
    assert same == fingerprint([1, 2, 3], [1, 2, 3])
    assert (
        len(
            {
                same,
                fingerprint([1, 3, 2], [1, 2, 3]),
                fingerprint([1, 2], [1, 2]),
                fingerprint([1, 2, 4], [1, 2, 4]),
            }
        )
        == 4
    )
