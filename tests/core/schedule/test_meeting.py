"""Meetings: any order of arrival gives the same bits, and they are those of the whole."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import DuplicateContribution, InvalidTensor, NotFinite, NotFound
from edge_attention.core.partial import Partial, identity, merge
from edge_attention.core.schedule.extents import WHOLE, AxisSpan, extent_shape, place, take
from edge_attention.core.schedule.fold_plan import FoldPlan, overlap
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.schedule.schedule import (
    Boundary,
    Collective,
    Contributed,
    Delivery,
    ModelSegment,
    Schedule,
    Step,
    TensorForm,
)

GATHER, SUM, MERGE, MIN, MAX = Collective


def schedule(boundaries, contributions):
    """One step. `contributions`: by part."""
    segments = tuple(ModelSegment(p, "g", {}, {}, tuple(ones)) for p, ones in enumerate(contributions))
    return Schedule(len(segments), {}, {}, boundaries, (Step(segments),), {"g": ""}, {})


def extents(draw, shape, pieces):
    """Some extent of `shape` for each piece; they may overlap."""
    found = []
    for _ in range(pieces):
        spans = []
        for axis, size in enumerate(shape):
            if draw(st.booleans()):
                start = draw(st.integers(0, size))
                spans.append(AxisSpan(axis, start, draw(st.integers(start, size)), size))
        found.append(tuple(spans))
    return found


def numbers(rng, shape, dtype):
    if np.dtype(dtype).kind == "f":
        # Of very different sizes: another order of addition gives other bits.
        return (rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 5, shape)).astype(dtype)
    return rng.integers(-100, 100, shape).astype(dtype)


def folded(made, order, outputs):
    meetings = Meetings(made)
    for part in order:
        assert not meetings.complete("b") or not made.steps[0].segments[part].contributions
        meetings.add(0, part, outputs[part])
        meetings.check()
    return meetings


@given(st.data(), st.sampled_from([SUM, MIN, MAX]), st.sampled_from(["float32", "float64", "int32", "int64"]))
def test_sums_and_edges_are_the_same_bits_in_any_order_and_those_of_the_parts_order(data, collective, dtype):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=0, max_size=3)))
    parts = data.draw(st.integers(1, 5))
    where = extents(data.draw, shape, parts)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    outputs = [{"y": numbers(rng, extent_shape(shape, extent), dtype)} for extent in where]
    made = schedule(
        {"b": Boundary(TensorForm(dtype, shape), collective)},
        [[Contributed("y", "b", extent)] for extent in where],
    )
    copies = [o["y"].copy() for o in outputs]
    found = folded(made, data.draw(st.permutations(range(parts))), outputs).whole("b")
    in_order = folded(made, range(parts), outputs).whole("b")
    assert found.tobytes() == in_order.tobytes()
    assert found.dtype == dtype
    assert all((o["y"] == copy).all() for o, copy in zip(outputs, copies, strict=True)), (
        "what came was changed"
    )
    if collective is SUM:
        total = np.zeros(shape, dtype)
        for extent, o in zip(where, outputs, strict=True):
            place(total, extent, take(total, extent) + o["y"])
        np.testing.assert_array_equal(found, total)
    else:
        low = collective is MIN
        fill = (np.inf if low else -np.inf) if dtype.startswith("f") else getattr(
            np.iinfo(dtype), "max" if low else "min"
        )  # fmt: skip
        edge = np.full(shape, fill, dtype)
        for extent, o in zip(where, outputs, strict=True):
            place(edge, extent, (np.minimum if low else np.maximum)(take(edge, extent), o["y"]))
        np.testing.assert_array_equal(found, edge)


@given(st.data())
def test_gathered_pieces_of_any_partition_are_the_whole(data):
    size = data.draw(st.integers(1, 6))
    outer, inner = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    parts = data.draw(st.integers(1, 4))
    ends = sorted(
        [0, size, *data.draw(st.lists(st.integers(0, size), min_size=parts - 1, max_size=parts - 1))]
    )
    where = [(AxisSpan(1, a, b, size, outer, inner),) for a, b in itertools.pairwise(ends)]
    whole = np.arange(2 * outer * size * inner).reshape(2, -1)
    made = schedule(
        {"b": Boundary(TensorForm("int64", whole.shape))}, [[Contributed("y", "b", e)] for e in where]
    )
    outputs = [{"y": take(whole, extent)} for extent in where]
    meetings = Meetings(made)
    for part in (order := data.draw(st.permutations(range(parts)))):
        assert part in meetings.missing("b")
        complete = meetings.add(0, part, outputs[part])
        assert complete == (["b"] if part == order[-1] else [])
    np.testing.assert_array_equal(meetings.whole("b"), whole)
    for extent in where:
        np.testing.assert_array_equal(meetings.take(Delivery("b", extent)), take(whole, extent))


def unaligned(array):
    """The same elements at an address that no float lies at, as in a message."""
    data = memoryview(b"x" + array.tobytes())[1:]
    found = np.frombuffer(data, array.dtype).reshape(array.shape)
    assert not found.flags.aligned
    return found


def test_a_piece_is_sent_on_as_it_came_and_put_together_only_where_all_is_asked_for():
    meetings = Meetings(halves())
    came = [unaligned(np.float32([[0, 1], [2, 3]])), unaligned(np.float32([[4, 5], [6, 7]]))]
    for part in (1, 0):
        meetings.add(0, part, {"y": came[part]})
    for extent, piece in zip(HALVES, came, strict=True):
        assert meetings.take(Delivery("b", extent)) is piece
    other = (AxisSpan(0, 1, 3, 4),)
    np.testing.assert_array_equal(meetings.take(Delivery("b", other)), [[2, 3], [4, 5]])
    assert meetings.whole("b").flags.aligned
    np.testing.assert_array_equal(meetings.whole("b"), np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(meetings.take(Delivery("b", HALVES[1])), came[1])
    assert meetings.nbytes == 4 * math.prod(FORM.shape), "nothing is kept twice"
    meetings.check()


@pytest.mark.parametrize("collective", [GATHER, SUM, MIN, MAX, MERGE])
def test_what_lies_in_a_message_folds_to_the_same_bits_and_comes_out_aligned(collective):
    rng = np.random.default_rng(0)
    extents = HALVES if collective is GATHER else (WHOLE, WHOLE)
    boundaries = {"b": Boundary(FORM, collective, "l" if collective is MERGE else "")}
    made = [[Contributed("y", "b", extent)] for extent in extents]
    if collective is MERGE:
        boundaries["l"] = Boundary(TensorForm("float32", (4, 1)), MERGE)
        made = [[*ones, Contributed("z", "l")] for ones in made]
    outputs = [
        {
            "y": rng.standard_normal(extent_shape(FORM.shape, extent), np.float32),
            "z": rng.standard_normal((4, 1), np.float32),
        }
        for extent in extents
    ]
    found = []
    for form in (unaligned, np.array):
        meetings = Meetings(schedule(boundaries, made))
        for part, ones in enumerate(outputs):
            meetings.add(0, part, {name: form(array) for name, array in ones.items()})
        found.append(meetings.whole("b"))
        assert found[-1].flags.aligned
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(("rest", "left"), [(0, True), (48, True), (49, False)])
def test_a_piece_keeps_its_message_only_where_it_is_a_good_part_of_it(rest, left):
    """A piece of 16 bytes may be kept for long, and is counted as 16 bytes."""
    message = memoryview(bytes(16 + rest))
    came = np.frombuffer(message[:16], np.float32).reshape(2, 2)
    meetings = Meetings(halves())
    for part in (0, 1):
        meetings.add(0, part, {"y": came})
    assert (meetings.take(Delivery("b", HALVES[0])) is came) == left
    np.testing.assert_array_equal(meetings.whole("b"), np.zeros((4, 2)))


def test_all_of_what_one_part_gives_comes_out_aligned():
    meetings = Meetings(schedule({"b": Boundary(FORM)}, [[Contributed("y", "b")]]))
    meetings.add(0, 0, {"y": unaligned(np.float32(np.arange(8).reshape(4, 2)))})
    assert meetings.whole("b").flags.aligned
    np.testing.assert_array_equal(meetings.whole("b"), np.arange(8).reshape(4, 2))


@given(st.data())
def test_partials_merge_to_attention_over_all_keys_in_any_order_with_the_same_bits(data):
    heads, queries, dim = 2, data.draw(st.integers(1, 3)), 3
    parts = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    counts = [data.draw(st.integers(0, 3)) for _ in range(parts)]
    # Each part has its keys, and some of the heads or all.
    spans = [data.draw(st.sampled_from([None, (0, 1), (1, 2), (0, 2)])) for _ in range(parts)]
    spans[0] = None
    counts[0] = max(counts[0], 1)
    scores = [rng.standard_normal((heads, queries, n)) * 5 for n in counts]
    values = [rng.standard_normal((heads, n, dim)) for n in counts]
    where, outputs = [], []
    top_scores = np.full((heads, queries, sum(counts)), -np.inf)
    at = 0
    for n, span, s, v in zip(counts, spans, scores, values, strict=True):
        low, high = span or (0, heads)
        where.append(() if span is None else (AxisSpan(0, low, high, heads),))
        top_scores[low:high, :, at : at + n] = s[low:high]
        at += n
        shape = (high - low, queries, dim)
        if not n:
            partial = identity(shape)
            outputs.append({"o": np.full(shape, np.nan, np.float32), "l": partial.lse[..., None]})
            continue
        lse = np.log(np.exp(s).sum(-1))
        out = np.exp(s - lse[..., None]) @ v
        outputs.append(
            {"o": out[low:high].astype(np.float32), "l": lse[low:high].astype(np.float32)[..., None]}
        )
    full = (heads, queries, dim)
    boundaries = {
        "b": Boundary(TensorForm("float32", full), MERGE, "lse"),
        "lse": Boundary(TensorForm("float32", (*full[:-1], 1)), MERGE),
    }
    made = schedule(boundaries, [[Contributed("o", "b", e), Contributed("l", "lse", e)] for e in where])
    found = folded(made, data.draw(st.permutations(range(parts))), outputs)
    in_order = folded(made, range(parts), outputs)
    assert found.whole("b").tobytes() == in_order.whole("b").tobytes()
    assert found.whole("lse").tobytes() == in_order.whole("lse").tobytes()
    lse = np.log(np.exp(top_scores).sum(-1, keepdims=True))
    np.testing.assert_allclose(found.whole("lse"), lse, atol=1e-5)
    out = np.exp(top_scores - lse) @ np.concatenate(values, 1)
    np.testing.assert_allclose(found.whole("b"), out, atol=1e-5)
    assert found.take(Delivery("lse", (AxisSpan(0, 1, 2, 2),))).shape == (1, queries, 1)


def test_all_of_one_extent_merge_as_partials_do():
    rng = np.random.default_rng(0)
    partials = [
        Partial(rng.standard_normal((2, 4)).astype("f"), rng.standard_normal(2).astype("f")) for _ in "abc"
    ]
    boundaries = {
        "b": Boundary(TensorForm("float32", (2, 4)), MERGE, "lse"),
        "lse": Boundary(TensorForm("float32", (2, 1)), MERGE),
    }
    made = schedule(boundaries, [[Contributed("o", "b"), Contributed("l", "lse")]] * 3)
    meetings = folded(made, (2, 0, 1), [{"o": p.out, "l": p.lse[:, None]} for p in partials])
    expected = merge(merge(partials[0], partials[1]), partials[2])
    np.testing.assert_allclose(meetings.whole("b"), expected.out, rtol=1e-6)


HALVES = [(AxisSpan(0, 0, 2, 4),), (AxisSpan(0, 2, 4, 4),)]
FORM = TensorForm("float32", (4, 2))
PIECE = np.ones((2, 2), np.float32)


def halves(collective=GATHER):
    return schedule({"b": Boundary(FORM, collective)}, [[Contributed("y", "b", e)] for e in HALVES])


def test_each_counts_once():
    meetings = Meetings(halves())
    meetings.add(0, 0, {"y": PIECE})
    with pytest.raises(DuplicateContribution):
        meetings.add(0, 0, {"y": 2 * PIECE})
    meetings.add(0, 1, {"y": PIECE})
    assert (meetings.whole("b") == 1).all()
    meetings.drop("b")
    with pytest.raises(DuplicateContribution):
        meetings.add(0, 1, {"y": PIECE})
    with pytest.raises(NotFound):
        meetings.whole("b")


@pytest.mark.parametrize(
    ("piece", "error"),
    [
        (np.ones((2, 3), np.float32), InvalidTensor),
        (np.ones((2, 2), np.float64), InvalidTensor),
        (np.float32([[1, np.nan], [2, 3]]), NotFinite),
        (None, InvalidTensor),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(piece, error):
    meetings = Meetings(halves())
    with pytest.raises(error):
        meetings.add(0, 0, {"y": piece} if piece is not None else {})
    assert meetings.missing("b") == (0, 1)
    for part in (0, 1):
        meetings.add(0, part, {"y": PIECE})
    assert meetings.complete("b")


def test_of_several_outputs_all_are_looked_at_before_any_is_folded():
    made = schedule(
        {"b": Boundary(FORM, SUM), "c": Boundary(FORM)}, [[Contributed("y", "b"), Contributed("z", "c")]]
    )
    meetings, whole = Meetings(made), np.ones((4, 2), np.float32)
    with pytest.raises(NotFinite):
        meetings.add(0, 0, {"y": whole, "z": whole * np.nan})
    assert sorted(meetings.add(0, 0, {"y": whole, "z": whole})) == ["b", "c"]


def test_infinity_passes_where_no_partial_is():
    meetings = Meetings(halves())
    for part in (0, 1):
        meetings.add(0, part, {"y": PIECE * -np.inf})
    assert np.isneginf(meetings.whole("b")).all()


def test_nobody_else_contributes():
    with pytest.raises(NotFound):
        Meetings(halves()).add(0, 2, {"y": PIECE})
    with pytest.raises(NotFound):
        Meetings(halves()).add(1, 0, {"y": PIECE})


def test_a_plan_whose_pieces_overlap_is_none():
    made = schedule({"b": Boundary(FORM)}, [[Contributed("y", "b", HALVES[0])], [Contributed("y", "b")]])
    with pytest.raises(ValueError, match="both have some of b"):
        FoldPlan(made)


def test_a_partial_without_its_lse_is_none():
    boundaries = {"b": Boundary(FORM, MERGE, "lse"), "lse": Boundary(TensorForm("float32", (4, 1)), MERGE)}
    with pytest.raises(ValueError, match="lacks its lse"):
        FoldPlan(schedule(boundaries, [[Contributed("y", "b")]]))


@given(st.data())
def test_extents_overlap_where_an_element_is_in_both(data):
    shape, spans = (12,), []
    for _ in range(2):
        outer, size, inner = data.draw(st.sampled_from([(1, 12, 1), (3, 4, 1), (2, 3, 2), (1, 4, 3)]))
        start = data.draw(st.integers(0, size))
        spans.append((AxisSpan(0, start, data.draw(st.integers(start, size)), size, outer, inner),))
    whole = np.arange(12)
    both = set(take(whole, spans[0])) & set(take(whole, spans[1]))
    assert overlap(shape, *spans) == bool(both)
    assert overlap(shape, spans[0], WHOLE) == bool(take(whole, spans[0]).size)


def test_what_nobody_makes_is_zeros():
    made = schedule({"b": Boundary(FORM)}, [[Contributed("y", "b", HALVES[1])]])
    meetings = Meetings(made)
    meetings.add(0, 0, {"y": PIECE})
    np.testing.assert_array_equal(meetings.whole("b")[:, 0], [0, 0, 1, 1])


def test_left_out_parts_are_holes_but_where_partials_merge():
    boundaries = {
        "b": Boundary(FORM),
        "o": Boundary(FORM, MERGE, "l"),
        "l": Boundary(TensorForm("float32", (4, 1)), MERGE),
    }
    made = schedule(
        boundaries, [[Contributed("y", "b", e), Contributed("o", "o"), Contributed("l", "l")] for e in HALVES]
    )
    out = np.float32(np.arange(8).reshape(4, 2))
    meetings = Meetings(made)
    meetings.add(0, 0, {"y": PIECE, "o": out, "l": np.ones((4, 1), np.float32)})
    assert sorted(meetings.leave_out(1)) == ["b", "l", "o"]
    assert meetings.add(0, 1, {"y": PIECE, "o": out, "l": np.ones((4, 1), np.float32)}) == []
    np.testing.assert_array_equal(meetings.whole("o"), out)
    np.testing.assert_array_equal(meetings.whole("b")[:, 0], [1, 1, 0, 0])
    assert meetings.holds("b", HALVES[0])
    assert not meetings.holds("b", HALVES[1])
    assert not meetings.holds("b")
    assert not meetings.holds("o")
    assert meetings.left_out("o") == (1,)
    meetings.check()


def test_bytes_are_counted_until_they_are_dropped():
    meetings = Meetings(halves(SUM))
    meetings.add(0, 1, {"y": PIECE})
    assert meetings.nbytes == PIECE.nbytes
    meetings.add(0, 0, {"y": PIECE})
    assert meetings.nbytes == 4 * math.prod(FORM.shape)
    assert meetings.drop("b") == 4 * math.prod(FORM.shape)
    assert meetings.nbytes == 0


def test_segments_that_contribute_nothing_are_not_waited_for():
    made = halves()
    steps = (*made.steps, Step((ModelSegment(0, "g", {}, {"y": "k"}),)))
    assert (1, 0) not in FoldPlan(replace(made, steps=steps)).makes


@pytest.mark.parametrize(("collective", "wanted"), [(SUM, 6.0), (MIN, 1.0), (MAX, 3.0)])
def test_scalars_fold_too(collective, wanted):
    """The ends of a quantised range are scalars; a third part met a number that NumPy could not write to."""
    boundary = {"b": Boundary(TensorForm("float32", ()), collective)}
    meetings = Meetings(schedule(boundary, [[Contributed("y", "b")]] * 3))
    for part, value in enumerate((1, 3, 2)):
        meetings.add(0, part, {"y": np.array(value, np.float32)})
    assert meetings.whole("b") == np.float32(wanted)


@pytest.mark.parametrize("transposed", [False, True])
def test_of_what_was_rounded_to_float16_an_inf_is_a_number_past_it(transposed):
    for value, rounded, error in (
        (np.inf, True, "past float16"),
        (-np.inf, True, "past float16"),
        (np.nan, True, "holds nan"),
        (np.nan, False, "holds nan"),
        (np.inf, False, ""),
        (65504, True, ""),
        (-65504, True, ""),
    ):
        boundary = Boundary(TensorForm("float16", (4, 3)), GATHER, rounded=rounded)
        folds = FoldPlan(schedule({"b": boundary}, [[Contributed("y", "b")]]))
        array = np.zeros((3, 4), np.float16).T if transposed else np.zeros((4, 3), np.float16)
        array[3, 1] = value
        meetings = Meetings(folds)
        if error:
            with pytest.raises(NotFinite, match=rf"^step 0 of part 0: y.*{error}"):
                meetings.add(0, 0, {"y": array})
        else:
            assert meetings.add(0, 0, {"y": array}) == ["b"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 500, 5000])
def test_nan_is_found_wherever_it_is_and_nothing_else_is_taken_for_it(dtype, rows):
    largest = np.finfo(dtype).max
    for value in (np.nan, -np.nan, np.inf, -np.inf, largest, -largest, 0.0):
        array = np.full((rows, 3), -value, dtype)
        array[-1, 1] = value
        for same in (array, np.asfortranarray(array)):
            boundary = Boundary(TensorForm(dtype, (rows, 3)), GATHER)
            meetings = Meetings(FoldPlan(schedule({"b": boundary}, [[Contributed("y", "b")]])))
            if np.isnan(value):
                with pytest.raises(NotFinite, match="holds nan"):
                    meetings.add(0, 0, {"y": same})
            else:
                assert meetings.add(0, 0, {"y": same}) == ["b"]
