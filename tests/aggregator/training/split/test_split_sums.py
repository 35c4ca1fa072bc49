"""Gradients of pieces add up to those of the whole; samples are drawn by seed; what is none is refused."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.inference.runner import HeldRequest
from aggregator.training.federated.plan import DataInput
from aggregator.training.split import samples
from aggregator.training.split.plan import OVERWRITTEN
from aggregator.training.split.samples import OwnSamples, SampleTurns, check_samples, require_batch
from aggregator.training.split.sums import LANES_KNOWN, AddingPrograms, NodeSums
from aggregator.training.split.versions import GradientSum, piece_of_version
from edge_attention.core.errors import InvalidArgument, InvalidTensor, NotFinite, Unavailable
from edge_attention.core.messages.program import Drop, Return, Run
from edge_attention.core.schedule.schedule import (
    Boundary,
    Contributed,
    ModelSegment,
    Schedule,
    Step,
    TensorForm,
)
from edge_attention.graphs.backward.summed import COUNT, adding_all, adding_graph

NAMES = ("w", "b")


def test_a_parameter_that_is_one_number_is_sent_as_one_number():
    """Its shape is [], which `ascontiguousarray` makes [1]: a part's graph would not take that."""
    plan = SimpleNamespace(names=("scale",), shapes=((),))
    version = SimpleNamespace(read=lambda name: np.array([2], np.float32))
    sent = piece_of_version(plan, version, SimpleNamespace(name="scale", extent=()))
    assert sent.shape == ()
    assert sent == 2


def piece(rng):
    return {
        "w": rng.standard_normal((3, 2)).astype(np.float32),
        "b": rng.standard_normal(2).astype(np.float32),
    }


def test_one_piece_is_what_it_is_to_the_bit():
    rng = np.random.default_rng(0)
    gradients, total = piece(rng), GradientSum(NAMES)
    total.add(0.7, gradients, 3.0)
    loss, found, norm = total.mean()
    assert loss == pytest.approx(0.7)
    assert all(one.tobytes() == gradients[name].tobytes() for one, name in zip(found, NAMES, strict=True))
    flat = np.concatenate([gradients[name].ravel() for name in NAMES]).astype(np.float64)
    assert norm == pytest.approx(np.linalg.norm(flat))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.5, 7.0]), min_size=2, max_size=5), st.integers(0, 100))
def test_pieces_count_by_what_their_labels_count(counts, seed):
    rng = np.random.default_rng(seed)
    pieces, total = [piece(rng) for _ in counts], GradientSum(NAMES)
    for number, (gradients, count) in enumerate(zip(pieces, counts, strict=True)):
        total.add(float(number), gradients, count)
    loss, found, _ = total.mean()
    whole = sum(counts) or 1.0
    assert loss == pytest.approx(sum(n * c for n, c in enumerate(counts)) / whole)
    for name, array in zip(NAMES, found, strict=True):
        wanted = sum(c * g[name].astype(np.float64) for g, c in zip(pieces, counts, strict=True)) / whole
        np.testing.assert_allclose(array, wanted, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([1.0, 0.5, 3.0, 7.0]), min_size=2, max_size=5), st.integers(0, 100))
def test_graphs_that_add_on_nodes_make_the_bits_that_adding_here_makes(counts, seed):
    rng = np.random.default_rng(seed)
    shapes = [(3, 2), (2,)]
    first, following = (
        ort.InferenceSession(adding_graph(shapes, begins).SerializeToString()) for begins in (True, False)
    )
    whole, fed = ort.InferenceSession(adding_all(shapes, len(counts)).SerializeToString()), {}
    here, sums = GradientSum(NAMES), []
    for at, count in enumerate(counts):
        gradients = piece(rng)
        fed |= {f"g/{at}/{i}": gradients[name] for i, name in enumerate(NAMES)}
        here.add(1.0, gradients, count)
        feeds = {f"g/{i}": gradients[name] for i, name in enumerate(NAMES)}
        feeds |= {f"s/{i}": array for i, array in enumerate(sums)} | {COUNT: np.array(count, np.float32)}
        sums = (following if sums else first).run(["t/0", "t/1"], feeds)
    at_once = whole.run(["t/0", "t/1"], fed | {COUNT: np.array(counts, np.float32)})
    assert [one.tobytes() for one in at_once] == [one.tobytes() for one in sums], "added at once or in turn"
    there = GradientSum(NAMES)
    there.take(sum(counts), dict(zip(NAMES, sums, strict=True)), sum(counts))
    (loss, wanted, norm), (other, found, same) = here.mean(clip=0.5), there.mean(clip=0.5)
    assert (loss, norm) == (other, same)
    for one, two in zip(wanted, found, strict=True):
        assert one.tobytes() == two.tobytes()


def adding(elements, graphs=("first", "next")):
    """What adds the one gradient of part 0, of so many elements."""
    named = {f"sum/0/{graph}": graph[0] for graph in graphs}
    segment = ModelSegment(0, f"sum/0/{graphs[-1]}", {}, {}, (Contributed("grad/0", "g"),))
    boundaries = {"g": Boundary(TensorForm("float32", (elements,)))}
    sums = Schedule(1, {}, {"grad:w": "g"}, boundaries, (Step((segment,)),), named, {})
    return AddingPrograms("run", sums, named)


def test_what_adds_a_piece_is_the_same_in_every_step_and_reads_what_the_piece_before_made():
    programs = adding(4)
    for piece in range(1, 5):
        (before,) = programs.of(0, 0, piece - 1, False)
        (run,) = programs.of(0, piece % 3, piece, False)
        assert run.inputs["s/0"].name == before.outputs["t/0"] != run.outputs["t/0"]
        assert f"/lane{piece % 3}/p0/grad/0" in run.inputs["g/0"].name
    assert programs.of(0, 0, 0, False)[0].graph == "f"
    # A node knows what comes again by these very instructions.
    assert programs.of(0, 1, 3, False) is programs.of(0, 1, 5, False)
    assert adding(4).scope != programs.scope
    run, sent = programs.of(0, 1, 7, True)
    assert sent == Return(run.outputs["t/0"], "t/0")
    assert programs.wanted(0) == {"t/0": (np.dtype(np.float32), (4,))}


def test_large_gradients_are_dropped_once_they_are_added_and_small_ones_written_over():
    assert [type(one) for one in adding(OVERWRITTEN // 4).of(0, 0, 1, False)] == [Run]
    programs = adding(OVERWRITTEN // 4 + 1)
    run, drop = programs.of(0, 0, 1, False)
    before = run.inputs["s/0"].name.removesuffix("0")
    assert drop.stored == ("job/run/lane0/p0/grad/", before)
    _, sent, drop = programs.of(0, 0, 1, True)
    assert drop.stored == ("job/run/lane0/p0/grad/", before, sent.stored.removesuffix("0"))


class Trips:
    """Remembers what nodes are asked."""

    def __init__(self):
        self.posted, self.asked = [], []

    async def make(self, errands, seconds, take, **rest):
        self.asked += errands
        return SimpleNamespace(missing={})

    def post(self, node, instructions):
        self.posted.append((node, instructions))


def test_a_step_that_does_not_go_well_leaves_no_sums_of_the_steps_before_on_nodes():
    async def scenario():
        trips, programs = Trips(), adding(4)
        for node in ("b", "a"):  # the part has moved between two steps
            good = NodeSums(programs, 1, trips, frozenset(), ())
            await good.add(0, 1.0, HeldRequest(0, {0: node}, 0, {}), 60.0)
            good.whole = True
            good.free()
        assert not trips.posted
        # It ends before anything of it was added.
        NodeSums(programs, 1, trips, frozenset(), ()).free()
        assert trips.posted == [(node, (Drop((programs.scope,)),)) for node in "ab"]

    asyncio.run(scenario())


def held(lane, node="a", moves=0):
    return HeldRequest(lane, {0: node}, moves, {})


async def turns(count=20):
    """Let whatever can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_small_pieces_wait_for_each_other_and_are_added_by_one_call_in_their_order():
    async def scenario():
        trips, programs = Trips(), adding(4, ("all",))
        assert programs.together
        sums = NodeSums(programs, 3, trips, frozenset(), ())
        waiting = [
            asyncio.ensure_future(sums.add(piece, count, held(lane), 60.0))
            for piece, count, lane in ((2, 3.0, 7), (0, 1.0, 5))
        ]
        await turns()
        assert not any(task.done() for task in waiting)
        assert not trips.asked
        await sums.add(1, 2.0, held(6), 60.0)
        await asyncio.gather(*waiting)
        (errand,) = trips.asked
        run, sent = errand.instructions
        lanes = [run.inputs[f"g/{k}/0"].name for k in range(3)]
        assert lanes == [f"job/run/lane{lane}/p0/grad/0" for lane in (5, 6, 7)], "whichever came first"
        assert errand.inline["task/count"].tolist() == [1.0, 2.0, 3.0]
        assert (run.graph, sent) == ("a", Return(run.outputs["t/0"], "t/0"))
        assert errand.wanted == programs.wanted(0)
        # A node knows what comes again by these very instructions.
        assert programs.of_all(0, (5, 6, 7)) is errand.instructions
        assert programs.of_all(0, (5, 7, 6)) is not errand.instructions

    asyncio.run(scenario())


def test_what_is_kept_of_lanes_does_not_grow():
    programs = adding(4, ("all",))
    for lane in range(1000):
        programs.of_all(0, (lane, lane + 1))
    assert len(programs._whole) <= LANES_KNOWN


@pytest.mark.parametrize("trouble", ["moved", "elsewhere", "spoilt"])
def test_no_piece_is_added_where_one_has_failed_or_gone_elsewhere(trouble):
    async def scenario():
        trips = Trips()
        sums = NodeSums(adding(4, ("all",)), 3, trips, frozenset(), ())
        waiting = asyncio.ensure_future(sums.add(0, 1.0, held(0), 60.0))
        await turns()
        if trouble == "spoilt":
            await sums.spoil()
        else:
            last = held(1, moves=1) if trouble == "moved" else held(1, node="b")
            with pytest.raises(Unavailable, match="on another node in the middle of a step"):
                await sums.add(1, 1.0, last, 60.0)
        with pytest.raises(Unavailable, match="the step begins again"):
            await waiting
        for piece in (1, 2):
            with pytest.raises(Unavailable):
                await sums.add(piece, 1.0, held(piece), 60.0)
        assert not trips.asked

    asyncio.run(scenario())


def test_a_piece_that_waits_for_others_does_not_wait_for_ever():
    async def scenario():
        sums = NodeSums(adding(4, ("all",)), 2, Trips(), frozenset(), ())
        with pytest.raises(Unavailable, match="the step begins again"):
            await sums.add(0, 1.0, held(0), 0.01)

    asyncio.run(scenario())


def test_a_norm_past_clip_is_clip():
    total = GradientSum(("w",))
    total.add(1.0, {"w": np.array([3.0, 4.0], np.float32)}, 1.0)
    _, (found,), norm = total.mean(clip=1.0)
    assert norm == pytest.approx(5.0)
    np.testing.assert_allclose(found, [0.6, 0.8], rtol=1e-6)


def test_a_gradient_that_is_no_number_is_named():
    with pytest.raises(InvalidTensor, match="gradient of w"):
        GradientSum(("w",)).add(1.0, {"w": np.array([np.nan], np.float32)}, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 4), st.floats(0, 0.9), st.integers(0, 5))
def test_no_sample_that_is_held_out_is_trained_on_and_a_step_is_the_same_again(count, size, holdout, seed):
    turns = SampleTurns(count, 2 * size, size, holdout, seed)
    held = set(turns.held_out().tolist())
    assert len(held) == turns.held
    assert turns.held % size == 0
    assert turns.held < count
    seen = [turns.of_step(number).tolist() for number in range(1, 8)]
    assert all(len(rows) == 2 * size for rows in seen)
    assert not held & {row for rows in seen for row in rows}
    assert seen == [
        SampleTurns(count, 2 * size, size, holdout, seed).of_step(n).tolist() for n in range(1, 8)
    ]


INPUTS = (DataInput("x", "float32", (3,)), DataInput("y", "int64", ()))
LABEL = SimpleNamespace(labels="y", weights="", classes=4, binary=False, ignore=-100)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({}, None, ""),
        ({"x": None}, InvalidTensor, "lacks 'x'"),
        ({"x": np.ones((5, 2), np.float32)}, InvalidTensor, r"'x' is float32 \[2\] a row"),
        ({"x": np.ones((5, 3), np.float64)}, InvalidTensor, "float64"),
        ({"x": np.full((5, 3), np.inf, np.float32)}, NotFinite, "'x' holds NaN or Inf, first in row 0"),
        ({"y": np.arange(5)}, InvalidTensor, "'y' are 0 to 4, and the model has the classes 0 to 3"),
        ({"y": np.array([0, -100, 3, -100, 1])}, None, ""),
        ({"z": np.ones(5, np.float32)}, InvalidTensor, "'z', which is no input"),
        ({"y": np.arange(4)}, InvalidTensor, "several numbers of rows"),
    ],
)
def test_samples_are_what_the_model_takes_or_are_refused_by_name(tmp_path, changed, error, said):
    arrays = {"x": np.arange(15, dtype=np.float32).reshape(5, 3), "y": np.array([0, 1, 2, 3, 0])} | changed
    arrays = {name: array for name, array in arrays.items() if array is not None}
    file = tmp_path / "data.safetensors"
    safetensors.numpy.save_file(arrays, file)
    if error is not None:
        with pytest.raises(error, match=said):
            check_samples(file, INPUTS, LABEL)
        return
    assert check_samples(file, INPUTS, LABEL) == 5
    own = OwnSamples(file, INPUTS)
    found = own.feeds(np.array([4, 0, 4]))
    assert own.count == 5
    np.testing.assert_array_equal(found["x"], arrays["x"][[4, 0, 4]])
    np.testing.assert_array_equal(found["y"], arrays["y"][[4, 0, 4]])


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([[0, 1], [2, 3], [3, 0]], ""),
        (
            [[0, 1], [2, 4], [0, 9]],
            r"data: 'ids' holds 4 in row 1, and the model looks it up in a table of 4 rows, 0 to 3",
        ),
        ([[0, 1], [2, 3], [-1, 0]], "data: 'ids' holds -1 in row 2, and"),
    ],
)
def test_numbers_past_the_table_that_they_look_up_are_found_by_their_row(tmp_path, ids, said, monkeypatch):
    monkeypatch.setattr(samples, "LOOKED_AT", 3)
    file = tmp_path / "data.safetensors"
    safetensors.numpy.save_file({"ids": np.array(ids)}, file)
    inputs = (DataInput("ids", "int64", (2,)),)
    assert check_samples(file, inputs, None) == 3
    with pytest.raises(InvalidTensor, match=said) if said else nullcontext():
        assert check_samples(file, inputs, None, {"ids": 4}) == 3


@pytest.mark.parametrize(
    ("count", "holdout", "pieces", "said"),
    [
        (8, 0.0, 4, ""),
        (
            7,
            0.0,
            4,
            "batch is 8, and 7 samples are trained on: a step would take some of them several times; set "
            "batch = 4,",
        ),
        (
            10,
            0.4,
            4,
            r"batch is 8, and 6 samples are trained on of 10, as 4 are held out: .*set batch = 4, or less",
        ),
        (3, 0.0, 4, "set batch = 3 and micro_batches = 1, or less"),
    ],
)
def test_a_batch_is_of_no_more_samples_than_there_are(count, holdout, pieces, said):
    job = SimpleNamespace(batch=8, micro_batches=pieces, holdout=holdout, seed=0)
    with pytest.raises(InvalidArgument, match=said) if said else nullcontext():
        require_batch(job, count)
