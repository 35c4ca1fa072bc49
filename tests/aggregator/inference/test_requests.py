"""One request as a state machine: whatever happens to nodes, its answer is the whole's, or it says why."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.inference.boundary_room import RecordRoom
from aggregator.inference.course import Course, graphs_to_follow
from aggregator.inference.part_of_request import PartPhase
from aggregator.inference.request_actions import AskSegment, Ended, Seek, Supply
from aggregator.inference.requests import ModelRequest
from edge_attention.core.errors import DeadlineExceeded, NodeFailed, NotFinite, NotFound, Unavailable
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.schedule.extents import AxisSpan
from edge_attention.core.schedule.schedule import (
    Boundary,
    Collective,
    Contributed,
    Delivery,
    Kept,
    ModelInput,
    ModelSegment,
    Schedule,
    Step,
    TensorForm,
)

READY, SUSPECT, LOST, DRAINING = NodeState.READY, NodeState.SUSPECT, NodeState.LOST, NodeState.DRAINING
GONE = Unavailable("it has gone")
FORM = TensorForm("float64", (4,))


def schedule(parts=2, layers=3, stateless=False):
    """Part p: k0 = (p + 2) x; then k = k + sum over all parts of what they gave; what each gives is p + k."""
    steps, boundaries = [], {}
    for step in range(layers):
        boundaries[f"b{step}"] = Boundary(FORM, Collective.SUM)
        segments = []
        for part in range(parts):
            if step == 0:
                inputs = {"x": ModelInput("x")}
            elif stateless:
                inputs = {"s": Delivery(f"b{step - 1}")}
            else:
                inputs = {"s": Delivery(f"b{step - 1}"), "k": Kept(f"k{step - 1}")}
            kept = {} if stateless or step == layers - 1 else {"k": f"k{step}"}
            segments.append(ModelSegment(part, "g", inputs, kept, (Contributed("y", f"b{step}"),)))
        steps.append(Step(tuple(segments)))
    return Schedule(parts, {"x": FORM}, {"out": f"b{layers - 1}"}, boundaries, tuple(steps), {"g": "d"}, {})


X = np.arange(4.0)


def compute(part, inputs):
    k = (part + 2) * inputs["x"] if "x" in inputs else inputs.get("k", 0.0) / 7 + inputs["s"]
    return {"k": k, "y": (part + 1) * k}


def truth(made, stateless=False):
    kept, total = {}, None
    for step in made.steps:
        before, total = total, np.zeros(4)
        for segment in step.segments:
            inputs = {"x": X} if before is None else {"s": before}
            if before is not None and not stateless:
                inputs["k"] = kept[segment.part]
            found = compute(segment.part, inputs)
            kept[segment.part] = found["k"]
            total = total + found["y"]
    return total


class Fleet:
    """Nodes that are there or not, and what each has kept; performs what a request says when told to."""

    def __init__(self, holders):
        self.held = {part: list(nodes) for part, nodes in holders.items()}
        names = {node for nodes in holders.values() for node in nodes}
        self.states = dict.fromkeys(names, READY)
        self.lives = dict.fromkeys(names, 0)
        self.kept = {}
        self.asked, self.sought, self.supplied, self.ended = [], [], [], None
        self.runs = []

    def state(self, node):
        return self.states.get(node, LOST)

    def life(self, node):
        return str(self.lives[node])

    def holders(self, part):
        return tuple(self.held[part])

    def why(self, part):
        return "; ".join(f"node {node!r} is {self.state(node).value}" for node in self.held[part])

    def load(self, node):
        return sum(ask.node == node for ask in self.asked)

    def do(self, actions):
        for action in actions:
            match action:
                case AskSegment():
                    self.asked.append(action)
                case Seek():
                    self.sought.append(action)
                case Supply():
                    self.supplied.append(action)
                case Ended():
                    assert self.ended is None
                    self.ended = action

    def restart(self, node):
        self.lives[node] += 1
        self.kept = {key: value for key, value in self.kept.items() if key[0] != node}

    def run(self, request, ask, now=0.0):
        """The node runs it and answers."""
        self.asked.remove(ask)
        if ask.number not in request.open:
            return
        segment = ask.one.segment
        inputs = {}
        for name, source in segment.inputs.items():
            match source:
                case ModelInput():
                    inputs[name] = X
                case Delivery():
                    inputs[name] = request.meetings.take(source)
                case Kept(kept):
                    inputs[name] = self.kept[ask.node, ask.one.part, kept]
        outputs = compute(ask.one.part, inputs)
        self.runs.append((ask.node, ask.one.part, ask.one.step))
        for output, name in segment.kept.items():
            self.kept[ask.node, ask.one.part, name] = outputs[output]
        self.do(request.came(ask.number, {"y": outputs["y"]}, now))

    def run_all(self, request):
        while self.asked:
            self.run(request, self.asked[0])


def request(made, fleet, record=1 << 30, deadline=100.0, go_on=None):
    found = ModelRequest(Course(made), fleet, RecordRoom(record), 0.0, deadline, go_on)
    fleet.do(found.start())
    return found


def answered(one, fleet, made, **options):
    assert fleet.ended == Ended(None)
    np.testing.assert_allclose(one.results()["out"], truth(made, **options), rtol=1e-12)
    assert one.coverage == 1.0
    assert not one.lacking


def test_steps_follow_one_another_and_parts_run_at_once():
    made, fleet = schedule(), Fleet({0: ["a"], 1: ["b"]})
    one = request(made, fleet)
    assert [(ask.node, ask.one.step) for ask in fleet.asked] == [("a", 0), ("b", 0)]
    fleet.run(one, fleet.asked[1])
    assert [(ask.node, ask.one.step) for ask in fleet.asked] == [("a", 0)], "b waits for the boundary"
    fleet.run_all(one)
    answered(one, fleet, made)
    assert len(fleet.runs) == 6
    assert not one.abandoned


def test_a_replica_goes_on_at_once_and_runs_again_what_was_kept():
    made, fleet = schedule(layers=4), Fleet({0: ["a"], 1: ["b", "c"]})
    one = request(made, fleet)
    for _ in range(5):
        fleet.run(one, fleet.asked[0])
    fleet.states["b"] = SUSPECT
    fleet.do(one.look(1.0))
    fleet.run_all(one)
    answered(one, fleet, made)
    assert [run for run in fleet.runs if run[0] == "c"] == [("c", 1, s) for s in (0, 1, 2, 3)]
    assert one.moves == 1


def test_a_node_that_is_back_as_it_was_goes_on_where_it_was():
    made, fleet = schedule(), Fleet({0: ["a"], 1: ["b"]})
    one = request(made, fleet)
    for _ in range(3):
        fleet.run(one, fleet.asked[0])
    fleet.states["b"] = SUSPECT
    fleet.do(one.look(1.0))
    assert not fleet.sought, "it may come back"
    assert "node 'b' is suspect" in one.waits()
    fleet.states["b"] = READY
    fleet.do(one.look(2.0))
    fleet.run_all(one)
    answered(one, fleet, made)
    assert len(fleet.runs) == 6


def test_a_node_that_is_back_as_another_process_runs_again_what_it_had_kept():
    made, fleet = schedule(), Fleet({0: ["a"], 1: ["b"]})
    one = request(made, fleet)
    for _ in range(3):
        fleet.run(one, fleet.asked[0])
    fleet.restart("b")
    fleet.do(one.look(1.0))
    fleet.run_all(one)
    answered(one, fleet, made)
    assert fleet.runs.count(("b", 1, 0)) == 2


def test_without_a_replica_another_node_is_sought_when_the_lease_ends_and_words_say_so():
    made, fleet = schedule(), Fleet({0: ["a"], 1: ["b"]})
    one = request(made, fleet)
    fleet.run(one, fleet.asked[0])
    fleet.states["b"] = LOST
    fleet.do(one.look(1.0))
    assert fleet.sought == [Seek(1, frozenset())]
    assert one.of(1)[0] is PartPhase.WAITS
    assert "part 1 cannot run step 0: node 'b' is lost" in one.waits()
    fleet.states["c"], fleet.lives["c"] = READY, 0
    fleet.held[1].append("c")
    fleet.do(one.look(2.0))
    fleet.run_all(one)
    answered(one, fleet, made)


def test_nobody_waits_past_the_deadline():
    made, fleet = schedule(), Fleet({0: ["a"], 1: ["b"]})
    one = request(made, fleet, deadline=7.0)
    fleet.states["b"] = LOST
    fleet.do(one.look(1.0))
    assert one.wake == 7.0
    assert one.tick(6.9) == []
    fleet.do(one.tick(7.0))
    assert isinstance(fleet.ended.error, DeadlineExceeded)
    assert "part 1 cannot run step 0" in fleet.ended.error.message
    assert "part 0 waits for node 'a' to run step 0" in fleet.ended.error.message
    assert one.abandoned
    assert one.came(1, {"y": X}, 8.0) == [], "late"


def test_what_a_node_lacks_it_is_given_again_a_few_times():
    made, fleet = schedule(), Fleet({0: ["a"], 1: ["b"]})
    one = request(made, fleet)
    fleet.run(one, fleet.asked[0])
    for _ in range(2):
        fleet.held[1] = []
        fleet.do(one.failed(fleet.asked.pop().number, NotFound("nothing is stored"), 1.0, lacks=True))
        fleet.held[1] = ["b"]
        fleet.do(one.look(2.0))
    assert fleet.supplied == [Supply(1, "b")] * 2
    fleet.do(one.failed(fleet.asked.pop().number, NotFound("nothing is stored"), 1.0, lacks=True))
    assert isinstance(fleet.ended.error, NotFound)


def test_nonsense_is_refused_or_another_holder_says_better():
    made, fleet = schedule(), Fleet({0: ["a"], 1: ["b", "c"]})
    one = request(made, fleet)
    ask = fleet.asked[1]
    with pytest.raises(NotFinite):
        one.came(ask.number, {"y": X * np.nan}, 1.0)
    fleet.asked.remove(ask)
    fleet.do(one.failed(ask.number, NotFinite("node 'b': NaN"), 1.0))
    fleet.run_all(one)
    answered(one, fleet, made)
    assert {node for node, part, _ in fleet.runs if part == 1} == {"c"}

    fleet = Fleet({0: ["a"], 1: ["b"]})
    one = request(made, fleet)
    fleet.do(one.failed(fleet.asked[1].number, NotFinite("node 'b': NaN"), 1.0))
    assert isinstance(fleet.ended.error, NotFinite)


def test_boundaries_beyond_the_record_are_forgotten_and_the_request_begins_again():
    made, fleet = schedule(layers=4), Fleet({0: ["a"], 1: ["b"]})
    record = RecordRoom(32)
    one = ModelRequest(Course(made), fleet, record, 0.0, 100.0)
    fleet.do(one.start())
    for _ in range(6):
        fleet.run(one, fleet.asked[0])
        assert record.used <= 32
    fleet.restart("b")
    fleet.do(one.look(1.0))
    assert one.restarts == 1
    fleet.run_all(one)
    answered(one, fleet, made)
    assert record.used == 0


def test_a_request_whose_nodes_go_all_the_time_is_refused():
    made, fleet = schedule(layers=4), Fleet({0: ["a"], 1: ["b"]})
    one = request(made, fleet, record=0)
    for _ in range(20):
        if fleet.ended:
            break
        for _ in range(6):
            fleet.run(one, fleet.asked[0])
        fleet.restart("b")
        fleet.do(one.look(1.0))
    assert isinstance(fleet.ended.error, Unavailable)


def test_requests_go_to_the_replica_with_least_in_hand():
    made = schedule(parts=1, stateless=True)
    fleet = Fleet({0: ["a", "b", "c"]})
    for _ in range(3):
        request(made, fleet)
    assert [ask.node for ask in fleet.asked] == ["a", "b", "c"]
    fleet.states["a"] = DRAINING
    fleet.asked.clear()
    request(made, fleet)
    assert fleet.asked[0].node == "b"


@given(st.data())
def test_whatever_happens_to_nodes_the_answer_is_the_wholes(data):
    parts, layers = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    stateless = data.draw(st.booleans())
    made = schedule(parts, layers, stateless)
    nodes = ["a", "b", "c"]
    held = {p: data.draw(st.lists(st.sampled_from(nodes), min_size=1, unique=True)) for p in range(parts)}
    fleet = Fleet(held)
    for node in nodes:
        fleet.states.setdefault(node, READY)
        fleet.lives.setdefault(node, 0)
    one = request(made, fleet, record=data.draw(st.sampled_from([0, 32, 96, 1 << 20])))
    for _ in range(data.draw(st.integers(0, 25))):
        if fleet.ended:
            break
        what = data.draw(st.sampled_from(["run", "run", "run", "away", "lost", "back", "new", "fails"]))
        node = data.draw(st.sampled_from(nodes))
        if what in ("run", "fails"):
            if fleet.asked:
                ask = data.draw(st.sampled_from(fleet.asked))
                if what == "run" and fleet.states[ask.node] is READY:
                    fleet.run(one, ask)
                elif what == "fails" and fleet.states[ask.node] is not READY:
                    fleet.asked.remove(ask)
                    fleet.do(one.failed(ask.number, GONE, 0.0, away=True))
            continue
        if what == "away" and fleet.states[node] is READY:
            fleet.states[node] = SUSPECT
        elif what == "lost":
            fleet.states[node] = LOST
        elif what == "back":
            if fleet.states[node] is LOST:
                fleet.restart(node)
            fleet.states[node] = READY
        elif what == "new":
            fleet.restart(node)
            fleet.states[node] = READY
        fleet.do(one.look(0.0))
    for node in nodes:  # in the end all are there
        if fleet.states[node] is not READY:
            fleet.restart(node)
            fleet.states[node] = READY
    if not fleet.ended:
        fleet.do(one.look(0.0))
        fleet.run_all(one)
    if fleet.ended.error is None:
        answered(one, fleet, made, stateless=stateless)
    else:
        assert one.restarts > 3


# What is partial

QUERIES, OUT = TensorForm("float32", (4, 3)), TensorForm("float32", (4, 3))
LSES = TensorForm("float32", (4, 1))
ROWS = [(AxisSpan(0, 0, 2, 4),), (AxisSpan(0, 2, 4, 4),)]


def merging(takes_all=False):
    """Each part gives its rows of q; partials of all queries over its own keys; its rows of the result."""
    boundaries = {
        "q": Boundary(QUERIES),
        "o": Boundary(OUT, Collective.MERGE, "l"),
        "l": Boundary(LSES, Collective.MERGE),
        "y": Boundary(OUT),
    }
    steps = [[], [], []]
    for part, rows in enumerate(ROWS):
        mine = () if takes_all else rows
        made = (Contributed("q", "q", rows),)
        steps[0].append(ModelSegment(part, "g", {"x": ModelInput("x", rows)}, {"k": "k"}, made))
        partial = (Contributed("o", "o"), Contributed("l", "l"))
        steps[1].append(ModelSegment(part, "h", {"q": Delivery("q"), "k": Kept("k")}, {}, partial))
        inputs = {"o": Delivery("o", rows if not takes_all else mine)}
        steps[2].append(ModelSegment(part, "i", inputs, {}, (Contributed("y", "y", rows),)))
    made = tuple(Step(tuple(step)) for step in steps)
    return Schedule(2, {"x": QUERIES}, {"out": "y"}, boundaries, made, dict.fromkeys("ghi", "d"), {})


@pytest.mark.parametrize("when", [0, 1, 2])
def test_without_one_parts_keys_the_answer_is_the_others_and_says_so(when):
    made, fleet = merging(), Fleet({0: ["a"], 1: ["b"]})
    one = request(made, fleet, go_on=5.0)
    ones = np.ones((4, 3), np.float32)

    def outputs(ask):
        step = ask.one.step
        if step == 1:
            return {"o": (ask.one.part + 1) * ones, "l": np.zeros((4, 1), np.float32)}
        if step == 0:
            return {"q": ones[:2]}
        return {"y": one.meetings.take(ask.one.segment.inputs["o"])}

    while not fleet.ended:
        for ask in list(fleet.asked):
            fleet.asked.remove(ask)
            if ask.one.part == 1 and ask.one.step == when:
                fleet.states["b"] = LOST
                fleet.do(one.look(1.0))
                continue
            fleet.do(one.came(ask.number, outputs(ask), 1.0))
        if not fleet.asked and not fleet.ended:
            assert one.wake == 5.0
            fleet.do(one.tick(5.0))
            assert one.of(1)[0] is PartPhase.LEFT_OUT
    assert fleet.ended == Ended(None)
    y = one.results()["out"]
    expected = 1.0 if when < 2 else 1.5
    np.testing.assert_array_equal(y[:2], expected)
    assert np.isnan(y[2:]).all()
    assert one.coverage == 0.5
    assert f"part 1 from step {when} on" in one.lacking


@pytest.mark.parametrize(("flow", "may"), [({"m": {"x"}}, True), ({"m": {"q"}}, False), (None, False)])
def test_what_partials_are_made_with_may_be_kept_if_it_is_not_of_others_queries(flow, may):
    made = merging()
    steps = list(made.steps)
    steps[1] = Step(tuple(replace(s, kept={"m": "m"}) for s in steps[1].segments))
    made, fleet = replace(made, steps=tuple(steps)), Fleet({0: ["a"], 1: ["b"]})
    assert graphs_to_follow(made) == {"h"}
    flows = {} if flow is None else {"h": {name: frozenset(of) for name, of in flow.items()}}
    one = ModelRequest(Course(made, flows), fleet, RecordRoom(0), 0.0, 9.0, 5.0)
    fleet.states["b"] = LOST
    fleet.do(one.start())
    fleet.do(one.tick(5.0))
    assert (one.of(1)[0] is PartPhase.LEFT_OUT) == may


def test_what_others_need_is_not_left_out():
    for made in (schedule(), merging(takes_all=True)):
        fleet = Fleet({0: ["a"], 1: ["b"]})
        one = request(made, fleet, go_on=5.0)
        fleet.states["b"] = LOST
        fleet.do(one.look(1.0))
        assert one.tick(5.0) == []
        assert one.of(1)[0] is PartPhase.WAITS
        assert one.wake == 100.0


def test_a_part_that_keeps_a_name_twice_has_no_course():
    made = schedule()
    steps = list(made.steps)
    twice = [replace(s, kept={"k": "k0"}) for s in steps[1].segments]
    steps[1] = Step(tuple(twice))
    last = [replace(s, inputs={"s": Delivery("b1"), "k": Kept("k0")}) for s in steps[2].segments]
    steps[2] = Step(tuple(last))
    with pytest.raises(ValueError, match="keeps k0 twice"):
        Course(replace(made, steps=tuple(steps)))


def test_the_peak_is_what_boundaries_take_at_a_time():
    # A sum of two is its pieces and itself, [4] of float64; two of these are alive while the next one comes.
    assert Course(schedule(parts=2, layers=4)).peak == 2 * 3 * 32
    assert Course(schedule(parts=2, layers=1)).peak == 3 * 32
    assert Course(merging()).peak == (48 + 3 * 48)


def test_what_runs_again_is_what_later_segments_need():
    course = Course(schedule(layers=4))
    assert course.again(0, 0) == ()
    assert course.again(0, 2) == (0, 1)
    assert course.recorded(0, 3) == {"b0", "b1"}
    assert course.sent(0, 3) == {"b2"}
    assert Course(schedule(layers=4, stateless=True)).again(0, 3) == ()
    assert list(itertools.chain(*(course.again(1, 4),))) == []


def test_a_node_that_is_lost_again_and_again_is_not_asked_any_more():
    made, fleet = schedule(parts=1), Fleet({0: ["a"]})
    one = request(made, fleet)
    for _ in range(20):
        if fleet.ended:
            break
        fleet.do(one.failed(fleet.asked.pop().number, GONE, 1.0, away=True))
    assert isinstance(fleet.ended.error, Unavailable)


def test_who_gives_up_ends_it():
    made, fleet = schedule(), Fleet({0: ["a"], 1: ["b"]})
    one = request(made, fleet)
    fleet.do(one.end(NodeFailed("no")))
    assert isinstance(fleet.ended.error, NodeFailed)
    assert one.end(NodeFailed("no")) == one.look(1.0) == one.tick(1.0) == []
