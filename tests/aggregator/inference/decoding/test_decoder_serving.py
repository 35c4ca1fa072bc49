"""Sessions of decoders over nodes in this process: exact whatever becomes of nodes, or they say why not."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from cut_once import cut_once, whole
from decoder_runs import WholeDecoder
from house import House, until

from aggregator.inference.decoding import owed_drops, programs, scheduling, session_bytes, session_places
from aggregator.inference.decoding.ahead import Beginning
from aggregator.inference.decoding.flights import Flight, SessionRows
from aggregator.inference.decoding.programs import cache_scope
from aggregator.inference.decoding.serving import DecoderServing
from aggregator.inference.holding import roomiest
from edge_attention.core.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFinite,
    NotFound,
    ResourceExhausted,
)
from edge_attention.core.messages.program import Run
from edge_attention.core.schedule.fold_plan import FoldPlan
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.graphs.attention import library
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.decoding import cutting
from edge_attention.graphs.decoding.cutting import write_decoder

EXPORTS = Path(__file__).parents[3] / "graphs/axes/exports"
LAYERS = 1 << 20
KERNELS = ("cached_decode", "cached_prefill", "cached_row")
PLANS = {
    "replicate": CutPlan((Stage(range(LAYERS), (0,)),)),
    "heads": CutPlan((Stage(range(LAYERS), (0, 1, 2), Cut.HEADS, shares=(3, 0, 2)),)),
    "heads of three": CutPlan((Stage(range(LAYERS), (0, 1, 2), Cut.HEADS),)),
    "tokens": CutPlan((Stage(range(LAYERS), (0, 1, 2), Cut.TOKENS, shares=(3, 0, 2)),)),
    "layers": CutPlan((Stage(range(2), (0,)), Stage(range(2, 5), (1,)))),
}


class Serving:
    """A decoder served by nodes `a`, `b`, `c` in this process."""

    def __init__(self, house, folder, name, plan, replicas=1, nodes="abcabc"):
        self.house = house
        self.path = name if isinstance(name, Path) else EXPORTS / f"{name}.onnx"
        self.boxes = {node: house.node(node) for node in "abc"}
        form = _written(name, self.path, plan, folder)
        engine = SimpleNamespace(trips=house.trips, bulk=house.bulk, membership=house.membership)
        held = {part: [*nodes[part : part + replicas]] for part in range(plan.parts)}
        pick = roomiest(house.membership)
        self.serving = DecoderServing(engine, "m", self.path, folder, form, held, pick, lambda node: 0, whole)
        house.trips.watch(lambda node: self.serving.look())
        self.vocabulary = form.vocabulary

    async def extend(self, session, ids, seconds=60.0):
        return await self.serving.extend(session.number, ids, seconds)

    async def generates_as_the_file(self, seed, prompt, steps, session=None, greedy=False):
        """Greedy tokens, one after the other, and each logit; returns the session and its reference."""
        rng = np.random.default_rng(seed)
        session, whole = session or self.serving.open("me", greedy=greedy), WholeDecoder(self.path)
        ids = [int(token) for token in rng.integers(self.vocabulary, size=prompt)]
        for _ in range(steps + 1):
            found = await self.extend(session, ids)
            wanted = np.array([whole.step(token) for token in ids])
            assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
            ids = [int(found[-1].argmax())]
            assert ids == [int(wanted[-1].argmax())]
        self.serving.machine.check()
        return session, whole

    def stored(self, node):
        """Names of what the node stores of sessions."""
        names = (*self.boxes[node].node.store.sequences(), *self.boxes[node].node.store._held)
        return sorted(name for name in names if name.startswith(cache_scope("m")))


def _written(name, path, plan, folder):
    if isinstance(name, Path):  # a test's own
        return write_decoder(open_model(path), plan, folder)
    what = name, str(plan), cutting.JOINED_BYTES
    return cut_once(what, folder, lambda to: write_decoder(open_model(path), plan, to))


def scenario(tmp_path, name="gpt2_cached", word="heads", **options):
    """Runs the test, a coroutine over a Serving, to its end."""

    def run(test):
        async def whole():
            with House() as house:
                serving = Serving(house, tmp_path, name, PLANS[word], **options)
                await serving.serving.ready(60)
                await test(serving)
                await serving.serving.close(NotFound("it ends"))
                assert not house.bulk._lent

        asyncio.run(whole())

    return run


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Long prompts are cut, and parts take turns in storing, within the few positions of these models."""
    monkeypatch.setattr(scheduling, "CHUNK_ROWS", 8)
    for module in (session_places, session_bytes):
        monkeypatch.setattr(module, "BLOCK", 4)


@pytest.mark.parametrize("word", PLANS)
def test_one_row_is_attended_by_the_shorter_graph_but_for_its_lse(tmp_path, word):
    @scenario(tmp_path, name="llama_cached", word=word)
    async def _(fleet):
        await fleet.generates_as_the_file(0, 5, 3)
        graphs = defaultdict(set)
        for (rows, *_), call in fleet.serving._programs._made.items():
            runs = [one for one in call.instructions if isinstance(one, Run)]
            graphs[rows] |= {of for of in KERNELS for one in runs if one.graph == library.digest(of)}
        shorter = "cached_decode" if word == "tokens" else "cached_row"
        assert (graphs[1], graphs[8]) == ({shorter}, {"cached_decode"})


@pytest.mark.parametrize("chunk", [8, 32])
@pytest.mark.parametrize("word", ["replicate", "heads", "tokens"])
def test_capped_scores_and_a_smooth_softmax_are_the_files(tmp_path, word, chunk, monkeypatch):
    """Of 32 rows at once tiles come in order."""
    monkeypatch.setattr(scheduling, "CHUNK_ROWS", chunk)
    model = onnx.load(EXPORTS / "llama_genai.onnx")
    for node in (one for one in model.graph.node if one.op_type == "GroupQueryAttention"):
        more = {"softcap": 1.5, "smooth_softmax": 1, "local_window_size": 6}
        kept = [a for a in node.attribute if a.name not in more]
        del node.attribute[:]
        node.attribute.extend([*kept, *(onnx.helper.make_attribute(*one) for one in more.items())])
    onnx.save(model, tmp_path / "capped.onnx")

    @scenario(tmp_path, name=tmp_path / "capped.onnx", word=word)
    async def _(fleet):
        await asyncio.gather(fleet.generates_as_the_file(0, 23, 4), fleet.generates_as_the_file(1, 3, 3))


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("word", PLANS)
def test_sessions_at_once_are_what_the_file_says_of_each(tmp_path, word, greedy):
    @scenario(tmp_path, word=word)
    async def _(fleet):
        work = (
            fleet.generates_as_the_file(seed, prompt, 5, greedy=greedy)
            for seed, prompt in enumerate((5, 20, 1))
        )
        await asyncio.gather(*work)


def test_a_part_whose_node_has_gone_before_all_began_is_given_to_another(tmp_path):
    """As after the aggregator was started again, and one node never came back."""

    async def whole():
        with House() as house:
            serving = Serving(house, tmp_path, "gpt2_cached", PLANS["replicate"])
            serving.boxes["a"].lose()
            await serving.serving.ready(60)
            session, _ = await serving.generates_as_the_file(0, 3, 1)
            assert "a" not in session.place
            await serving.serving.close(NotFound("it ends"))

    asyncio.run(whole())


def test_grouped_heads(tmp_path):
    @scenario(tmp_path, "llama_genai", "tokens")
    async def _(fleet):
        await fleet.generates_as_the_file(0, 20, 4)


def test_a_session_goes_back_and_on_another_way(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        session, _ = await fleet.generates_as_the_file(0, 4, 0)
        await fleet.extend(session, [1, 2, 3])
        fleet.serving.truncate(session.number, 4)
        again = WholeDecoder(fleet.path)
        wanted = [again.step(token) for token in (*session.tokens, 5)][-1]
        found = await fleet.extend(session, [5])
        assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("word", ["heads", "tokens"])
def test_a_node_goes_in_the_middle_and_its_part_is_stored_anew(tmp_path, word):
    @scenario(tmp_path, word=word)
    async def _(fleet):
        sessions = [(await fleet.generates_as_the_file(seed, 6 + seed, 1))[0] for seed in range(2)]
        fleet.boxes["c"].lose()
        for session in sessions:
            whole = WholeDecoder(fleet.path)
            wanted = [whole.step(token) for token in (*session.tokens, 7)][-1]
            found = await fleet.extend(session, [7])
            assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()
            assert "c" not in session.place


def test_a_node_that_has_lost_what_it_stored_is_given_it_again(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        session, whole = await fleet.generates_as_the_file(0, 5, 1)
        fleet.boxes["a"].node.store.drop(cache_scope("m"), None)
        last = int(np.argmax(whole.step(session.tokens[-1])))
        found = await fleet.extend(session, [last])
        again = WholeDecoder(fleet.path)
        wanted = [again.step(token) for token in session.tokens][-1]
        assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_what_nodes_store_is_freed_with_the_session(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        session, _ = await fleet.generates_as_the_file(0, 5, 1)
        assert any("/a0/k" in name for name in fleet.stored("a"))
        fleet.serving.close_session(session.number)
        await until(lambda: not any("/a0/k" in name for name in fleet.stored("a")))
        with pytest.raises(NotFound, match="any more"):
            await fleet.extend(session, [1])


def test_a_node_that_is_away_forgets_a_session_when_it_is_back(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        session, _ = await fleet.generates_as_the_file(0, 5, 1)
        fleet.boxes["a"].disconnect()
        fleet.serving.close_session(session.number)
        await until(lambda: not any("/a0/k" in name for name in fleet.stored("c")))
        assert any("/a0/k" in name for name in fleet.stored("a"))
        assert fleet.serving.machine.open("me", 0.0).slot != session.slot, "it is not free yet"
        fleet.boxes["a"].connect()
        await until(lambda: not any("/a0/k" in name for name in fleet.stored("a")))
        await until(lambda: not fleet.serving._owed)
        assert fleet.serving.machine.open("me", 0.0).slot == session.slot


def test_a_node_that_goes_on_with_a_lost_trip_changes_nobodys_numbers(tmp_path):
    """Its stream broke in the middle; back again it runs what it was asked, beside the next trips."""

    @scenario(tmp_path)
    async def _(fleet):
        session, _ = await fleet.generates_as_the_file(0, 5, 1)
        box, tokens = fleet.boxes["a"], list(session.tokens)
        box.mute, asked = True, len(box.programs)
        call = asyncio.create_task(fleet.extend(session, [1, 2, 3]))
        await until(lambda: len(box.programs) > asked)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        lost = box.programs[asked:]
        box.disconnect()
        await until(lambda: not fleet.serving.machine._flights)
        box.connect()
        box.mute = False
        whole = WholeDecoder(fleet.path)
        wanted = [whole.step(token) for token in (*tokens, 9)][-1]
        found = await fleet.extend(session, [9])
        assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()
        for program in lost:
            list(box.execute(program))
        wanted, found = whole.step(4), await fleet.extend(session, [4])
        assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_programs_of_the_same_sessions_are_one_and_have_a_bound_in_bytes(tmp_path, monkeypatch):
    @scenario(tmp_path)
    async def _(fleet):
        made = fleet.serving._programs._made
        sessions = [fleet.serving.open("me") for _ in range(3)]
        for order in itertools.permutations(range(3)):
            await asyncio.gather(*(fleet.extend(sessions[at], [at]) for at in order))
        known = {slots for _, _, slots, *_ in made}
        assert all(list(slots) == sorted(slots) for slots in known)
        assert fleet.serving._programs._bytes == sum(call.nbytes for call in made.values())
        monkeypatch.setattr(programs, "PROGRAMS_BYTES", 1)
        await fleet.extend(fleet.serving.open("me"), [1])
        assert len(made) == 1


def test_what_is_refused_leaves_the_session_as_it_was(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        session, whole = await fleet.generates_as_the_file(0, 5, 0)
        for ids, error in (
            ([], InvalidArgument),
            ([fleet.vocabulary], InvalidArgument),
            ([-1], InvalidArgument),
            ([0] * 600, ResourceExhausted),
        ):
            with pytest.raises(error):
                await fleet.extend(session, ids)
        first = asyncio.create_task(fleet.extend(session, [3]))
        await asyncio.sleep(0)
        with pytest.raises(FailedPrecondition, match="being extended"):
            await fleet.extend(session, [4])
        found, wanted = await first, whole.step(3)
        assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_whoever_waits_for_a_node_is_told_so_at_the_deadline(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        session, _ = await fleet.generates_as_the_file(0, 5, 0)
        for node in "abc":
            fleet.boxes[node].lose()
        with pytest.raises(DeadlineExceeded, match="no node that is there holds part"):
            await fleet.extend(session, [1], seconds=0.3)


def test_the_clock_is_not_set_anew_at_each_token(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        session, _ = await fleet.generates_as_the_file(0, 5, 0)
        await fleet.extend(session, [1])
        timer = fleet.serving._timer
        for _ in range(3):
            await fleet.extend(session, [1])
        assert fleet.serving._timer is timer
        assert not timer.cancelled()
        sooner = asyncio.create_task(fleet.extend(session, [1], seconds=30.0))
        await asyncio.sleep(0)
        assert fleet.serving._timer.when() < timer.when()
        await sooner


def test_a_call_that_is_given_up_leaves_the_session_as_it_was(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        session, whole = await fleet.generates_as_the_file(0, 5, 0)
        call = asyncio.create_task(fleet.extend(session, [1, 2, 3]))
        await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: not fleet.serving.machine._flights)
        found, wanted = await fleet.extend(session, [9]), whole.step(9)
        assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_closing_ends_what_is_asked(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        session, _ = await fleet.generates_as_the_file(0, 5, 0)
        call = asyncio.create_task(fleet.extend(session, [1, 2, 3]))
        await asyncio.sleep(0.001)
        fleet.serving.close_session(session.number)
        with pytest.raises(Cancelled, match="closed"):
            await call
        await until(lambda: session.number not in fleet.serving.machine.sessions)


def _calls(fleet, node="a"):
    return sum(program.shard.startswith("part") for program in fleet.boxes[node].programs)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("name", ["gpt2_cached", "llama_cached"])
@pytest.mark.parametrize("word", ["heads", "heads of three"])
def test_who_takes_the_likeliest_token_has_a_trip_less_and_the_same_bits(
    tmp_path, monkeypatch, name, word, joined
):
    """Whether or not one graph ends a token and begins the next."""
    if not joined:
        monkeypatch.setattr(cutting, "JOINED_BYTES", 0)

    @scenario(tmp_path, name, word)
    async def _(fleet):
        steps = len(fleet.serving._cuts[1].course.schedule.steps)
        await fleet.extend(fleet.serving.open("me"), [2])
        found, calls = {}, {}
        for greedy in (False, True):
            session, ids, rows = fleet.serving.open("me", greedy=greedy), [3], []
            for _ in range(8):
                before = _calls(fleet)
                rows.append((await fleet.extend(session, ids))[-1])
                ids = [int(rows[-1].argmax())]
                calls.setdefault(greedy, []).append(_calls(fleet) - before)
            found[greedy] = np.array(rows)
            fleet.serving.machine.check()
        assert found[True].tobytes() == found[False].tobytes()
        assert calls[False] == [steps] * 8
        assert calls[True] == [steps, *[steps - 1] * 7]
        # Of the graphs that end a token and begin the next each node runs one, or three.
        ahead = [c for c in fleet.serving._programs._made.values() if any(s.ahead for s in c.shares)]
        runs = [one.graph for call in ahead for one in call.instructions if isinstance(one, Run)]
        assert ahead
        assert (library.digest("likeliest") in runs) is not joined
        assert (not {*fleet.serving._cuts[1].ends.values()}.isdisjoint(runs)) is joined


def test_of_another_token_than_the_likeliest_nothing_is_taken_that_was_begun(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        session, whole = await fleet.generates_as_the_file(0, 4, 3, greedy=True)
        for token in (5, 2, 7):
            found, wanted = await fleet.extend(session, [token]), whole.step(token)
            if int(wanted.argmax()) == token:
                continue
            assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()
        fleet.serving.truncate(session.number, 4)
        again = WholeDecoder(fleet.path)
        wanted = [again.step(token) for token in (*session.tokens, 6)][-1]
        found = await fleet.extend(session, [6])
        assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()
        # A longer one, of which the first token was begun.
        wanted = [again.step(token) for token in (int(wanted.argmax()), 3)]
        found = await fleet.extend(session, [int(found[0].argmax()), 3])
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("tokens", [(4, 4), (4, 5), (4,)])
def test_what_parts_have_begun_counts_where_they_took_one_token(tokens):
    share = SimpleNamespace(ahead=True, returned={}, token="t", step=0, part=0)
    beginning = Beginning(
        SimpleNamespace(course=SimpleNamespace(folds=object.__new__(FoldPlan))),
        Flight(1, 0, 1, ("a", "b"), (SessionRows(7, 0, 3, (9,)),), True),
    )
    for token in tokens:
        answer = SimpleNamespace(array=lambda name, token=token: np.array([[token]]))
        beginning.take(SimpleNamespace(shares=(share,)), answer)
    begun = beginning.begun()
    assert (begun is None) == (tokens == (4, 5))
    for other, same in (
        (Flight(2, 0, 1, ("a", "b"), (SessionRows(7, 0, 4, (4,)),)), True),
        (Flight(2, 0, 1, ("a", "b"), (SessionRows(7, 0, 4, (5,)),)), False),  # another token
        (Flight(2, 0, 1, ("a", "b"), (SessionRows(7, 0, 3, (4,)),)), False),  # or place
        (Flight(2, 0, 1, ("a", "b"), (SessionRows(8, 0, 4, (4,)),)), False),  # or session
        (Flight(2, 0, 1, ("a", "c"), (SessionRows(7, 0, 4, (4,)),)), False),  # or nodes
        (Flight(2, 0, 2, ("a", "b"), (SessionRows(7, 0, 4, (4, 1)),)), False),  # or more of them
    ):
        assert begun is None or begun.is_of(other) is same


@pytest.mark.parametrize("word", ["heads of three", "tokens"])
def test_parts_on_one_node_are_one_call_a_step(tmp_path, word):
    """Two were two tasks at a time: neither ran on the node's loop, and one waited for the other."""

    @scenario(tmp_path, word=word, nodes="aba")
    async def _(fleet):
        steps = len(fleet.serving._cuts[1].course.schedule.steps)
        session, _ = await fleet.generates_as_the_file(0, 9, 2)
        before = _calls(fleet)
        await fleet.extend(session, [1])
        assert _calls(fleet) - before == steps
        assert any(len(call.shares) == 2 for call in fleet.serving._programs._made.values())
        await fleet.generates_as_the_file(1, 3, 4, greedy=True)


def test_parts_on_one_node_whose_rows_are_too_much_for_one_call_are_two(tmp_path, monkeypatch):
    @scenario(tmp_path, word="heads of three", nodes="aba")
    async def _(fleet):
        await fleet.generates_as_the_file(0, 1, 1)
        flight, form = Flight(0, 0, 1, (), (SessionRows(0, 0, 0, (0,)),)), fleet.serving.form
        most = max(
            sum(array.nbytes for array in call.zeros(flight, form).values())
            for (rows, *_), call in fleet.serving._programs._made.items()
            if rows == 1 and len(call.shares) == 1
        )
        monkeypatch.setattr(programs, "CALL_BYTES", most)
        session, _ = await fleet.generates_as_the_file(1, 1, 1)
        before = _calls(fleet)
        await fleet.extend(session, [1])
        assert _calls(fleet) - before > len(fleet.serving._cuts[1].course.schedule.steps)


def test_of_nan_it_says_which_node_and_part_made_it(tmp_path):
    """It was said as 'the model cannot go on from there', or in words that named an output alone."""
    model = onnx.load(EXPORTS / "gpt2_cached.onnx")
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim == 2 and array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(array, np.nan), tensor.name))
    onnx.save(model, tmp_path / "nan.onnx")

    @scenario(tmp_path, str(tmp_path / "nan"))
    async def _(fleet):
        session = fleet.serving.open("me")
        with pytest.raises(NotFinite, match=r"node '[ac]': step 0 of part [02]: \w+ holds nan at \[0, "):
            await fleet.extend(session, [3])


def test_logits_that_came_as_who_asked_was_cancelled_leave_the_session_as_it_was(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        session, whole = await fleet.generates_as_the_file(0, 5, 0)
        tokens = list(session.tokens)
        call = asyncio.create_task(fleet.extend(session, [1, 2, 3]))
        end = fleet.serving._end

        def cancelled_then(*answer):
            end(*answer)
            call.cancel()

        fleet.serving._end = cancelled_then
        with pytest.raises(asyncio.CancelledError):
            await call
        fleet.serving._end = end
        assert session.tokens == tokens
        found, wanted = await fleet.extend(session, [9]), whole.step(9)
        assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_what_was_begun_is_of_the_very_next_trip_and_of_no_later_one(tmp_path):
    """In a lane of its own it lay there while the session went back and on another way."""

    @scenario(tmp_path)
    async def _(fleet):
        serving, box = fleet.serving, fleet.boxes["a"]
        serving.machine._lanes = [0, 1]
        session, whole = serving.open("me", greedy=True), WholeDecoder(fleet.path)
        other = serving.open("you")

        async def in_the_second_lane(ids):
            """Extend `session` while a trip of the other one, which nobody waits for, has the first lane."""
            run, held = box.run, []
            box.run = held.append
            call = asyncio.create_task(fleet.extend(other, [1]))
            await until(lambda: held)
            call.cancel()
            await asyncio.wait([call])
            box.run = run
            found = await fleet.extend(session, ids)
            for program in held:
                run(program)
            await until(lambda: not serving.machine._flights)
            return found

        await fleet.extend(session, [3, 4])
        token = int((await in_the_second_lane([5]))[-1].argmax())
        serving.truncate(session.number, 0)
        await fleet.extend(session, [7, 1, 2])
        wanted = [whole.step(one) for one in (7, 1, 2, token)][-1]
        found = await in_the_second_lane([token])
        assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_node_that_never_drops_what_it_is_to_fills_nothing_here(tmp_path, monkeypatch):
    """It answers all else. Each change of a node was a task for each session that there ever was."""
    monkeypatch.setattr(owed_drops, "OWED", 3)

    def never(contribution):
        return None if contribution.shard.startswith("forget.") else contribution

    @scenario(tmp_path)
    async def _(fleet):
        fleet.boxes["a"].tamper = never
        slots = set()
        for seed in range(6):
            session, _ = await fleet.generates_as_the_file(seed, 5, 0)
            slots.add(session.slot)
            fleet.serving.close_session(session.number)
        await until(lambda: not any("/a0/k" in name for name in fleet.stored("c")))
        for _ in range(50):
            fleet.serving.look()
        assert len(fleet.serving._owed) == 3
        assert len(slots) == 6, "where it may store something still nobody else does"
        assert sum(not task.done() for task in fleet.serving._tasks) == 1
        fleet.boxes["a"].tamper = None
        fleet.boxes["a"].disconnect()
        fleet.boxes["a"].connect()
        await until(lambda: not fleet.serving._owed)


def test_a_node_that_goes_as_it_is_tried_with_a_part_keeps_nothing_of_that(tmp_path):
    """It is tried again by other names, so that what it drops late is nothing that it stores then."""

    @scenario(tmp_path, word="tokens")
    async def _(fleet):
        session, _ = await fleet.generates_as_the_file(0, 5, 1)
        gone = []

        def goes(box):
            def one(contribution):
                if gone or not contribution.shard.startswith("warm.part2."):
                    return contribution
                asyncio.get_running_loop().call_soon(lambda: (box.disconnect(), gone.append(box)))
                return None

            box.tamper = one

        for node in "ab":
            goes(fleet.boxes[node])
        tokens = list(session.tokens)
        fleet.boxes["c"].lose()
        call = asyncio.create_task(fleet.extend(session, [7]))
        await until(lambda: gone)
        assert any("/warm" in name for name in fleet.stored(gone[0].name))
        whole = WholeDecoder(fleet.path)
        wanted = [whole.step(token) for token in (*tokens, 7)][-1]
        gone[0].connect()
        found = await call
        assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()
        await until(lambda: not any("/warm" in name for node in "ab" for name in fleet.stored(node)))


def test_what_nodes_are_to_drop_they_are_asked_once_at_a_time(tmp_path):
    """A second time it could be what another session has stored in that place by then."""

    @scenario(tmp_path)
    async def _(fleet):
        session, _ = await fleet.generates_as_the_file(0, 5, 0)
        box, slot = fleet.boxes["a"], session.slot
        asked = len(box.programs)
        fleet.serving.close_session(session.number)
        fleet.serving.look()
        await until(lambda: slot in fleet.serving.machine._slots)
        assert [one.shard for one in box.programs[asked:]] == ["forget.a"]
