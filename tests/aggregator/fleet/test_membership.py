"""Membership as transcripts: who registers, who is silent, who is back."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aggregator.fleet import membership as rooms
from aggregator.fleet import pace as paces
from aggregator.fleet import registration as limits
from aggregator.fleet.membership import Membership
from edge_attention.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from edge_attention.core.messages.box import Box
from edge_attention.core.messages.fleet import ListNodesResponse, NodeState
from edge_attention.core.messages.link import PROTOCOL, Column, Dataset, Heartbeat, Register, Sequence
from edge_attention.core.tensors import DataType
from edge_attention.core.transitions import told
from edge_attention.wire import services


@pytest.fixture
def fleet():
    sessions = (f"s{n}" for n in itertools.count(1))
    return Membership(10.0, lambda: next(sessions))


def register(name="a", instance="1", session="", **changed):
    return replace(Register(PROTOCOL, "0", name, instance, session, "CPU", 1, 100), **changed)


def test_a_node_comes_is_silent_is_lost_and_is_back(fleet):
    first = fleet.register(register(), 0.0)
    assert (first.resumed, first.member.session, fleet.state("a")) == (False, "s1", NodeState.READY)
    fleet.heard("a", 8.0)
    assert fleet.tick(17.9) == ()
    assert fleet.tick(18.1) == ("a",)
    assert fleet.tick(30.0) == (), "told once"
    assert not fleet.live("a")
    again = fleet.register(register(session="s1"), 31.0)
    assert (again.resumed, again.member.session, fleet.live("a")) == (True, "s1", True)


def test_a_broken_stream_makes_a_node_suspect_until_its_lease_ends(fleet):
    epoch = fleet.register(register(), 0.0).member.epoch
    assert fleet.disconnected("a", epoch, 1.0)
    assert fleet.state("a") is NodeState.SUSPECT
    with pytest.raises(FailedPrecondition, match="'a' is suspect"):
        fleet.require_live("a")
    assert fleet.tick(11.0) == ("a",)
    assert fleet.state("a") is NodeState.LOST


def test_the_end_of_an_old_stream_does_not_touch_its_successor(fleet):
    old = fleet.register(register(), 0.0).member.epoch
    new = fleet.register(register(session="s1"), 1.0).member.epoch
    assert new != old
    assert not fleet.disconnected("a", old, 1.0)
    assert fleet.state("a") is NodeState.READY
    assert fleet.disconnected("a", new, 1.0)
    assert not fleet.disconnected("a", new, 1.0), "once"


def test_a_live_name_belongs_to_its_process(fleet):
    epoch = fleet.register(register(), 0.0).member.epoch
    with pytest.raises(AlreadyExists, match="--name"):
        fleet.register(register(instance="2"), 1.0)
    fleet.disconnected("a", epoch, 1.0)
    taken = fleet.register(register(instance="2", session="s1"), 2.0)
    assert not taken.resumed, "a session cannot be taken with the name"
    assert taken.member.session == "s2"


def test_a_draining_node_that_disconnects_has_left(fleet):
    epoch = fleet.register(register(), 0.0).member.epoch
    fleet.heard("a", 1.0, Heartbeat(1, 7, 2, draining=True))
    assert fleet.state("a") is NodeState.DRAINING
    assert fleet.live("a")
    node = fleet.nodes(3.0)[0]
    assert (node.memory, node.tasks, node.silent_seconds) == (7, 2, 2.0)
    fleet.disconnected("a", epoch, 1.0)
    assert fleet.state("a") is NodeState.LOST


def test_a_late_heartbeat_does_not_revive_the_lost(fleet):
    fleet.register(register(), 0.0)
    fleet.tick(11.0)
    fleet.heard("a", 12.0, Heartbeat(1, 0, 0))
    assert fleet.state("a") is NodeState.LOST


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"protocol": PROTOCOL + 1}, FailedPrecondition),
        ({"name": "../a"}, InvalidArgument),
        ({"name": ""}, InvalidArgument),
        ({"instance": ""}, InvalidArgument),
        ({"datasets": (Dataset("a/b", 1, (), False),)}, InvalidArgument),
        ({"sequences": (Sequence("passwords", 1),)}, InvalidArgument),
    ],
)
def test_who_is_not_let_in(fleet, fields, error):
    with pytest.raises(error):
        fleet.register(register(**fields), 0.0)
    assert fleet.members() == ()


def test_sessions_are_found_and_the_empty_one_is_nobodys(fleet):
    fleet.register(register(), 0.0)
    assert fleet.of_session("s1").name == "a"
    for session in ("", "s2"):
        with pytest.raises(NotFound):
            fleet.of_session(session)
    with pytest.raises(NotFound, match="nodes seen: a"):
        fleet.require_live("b")
    assert fleet.state("b") is NodeState.LOST


def test_names_made_up_do_not_fill_the_memory(fleet, monkeypatch):
    monkeypatch.setattr(rooms, "MEMBERS", 2)
    fleet.register(register("a"), 0.0)
    fleet.register(register("b"), 5.0)
    with pytest.raises(ResourceExhausted):
        fleet.register(register("c"), 6.0)
    fleet.tick(11.0)
    fleet.register(register("c"), 12.0)
    assert [member.name for member in fleet.members()] == ["b", "c"]
    fleet.heard("a", 12.5)  # of its stream, which is about to end
    fleet.register(register("b", session="s2"), 13.0)
    assert len(fleet.members()) == 2


def test_nodes_of_an_earlier_life_are_expected_for_a_lease(fleet):
    fleet.expect(["a", "b"], 0.0)
    assert fleet.state("a") is NodeState.SUSPECT
    assert not fleet.live("a")
    assert fleet.members() == ()
    fleet.register(register("a"), 1.0)
    assert fleet.state("a") is NodeState.READY
    assert fleet.tick(10.5) == ("b",)
    assert fleet.state("b") is NodeState.LOST
    assert fleet.tick(12.0) == ("a",)


# How often nodes beat


def slow(fleet, monkeypatch):
    """Two nodes, `n0` and `n1`, are many: asked for 4.5 s and a lease of 15 s, three for 6 and 20."""
    monkeypatch.setattr(paces, "BEATS_A_SECOND", 0.5)
    for name in ("n0", "n1"):
        fleet.register(register(name), 0.0)
    fleet.tick(0.0)
    assert fleet.pace == paces.Pace(4.5, 15.0)


def test_who_comes_to_a_large_fleet_is_told_its_pace_and_has_its_lease(fleet, monkeypatch):
    slow(fleet, monkeypatch)
    member = fleet.register(register("late"), 100.0).member
    assert fleet.ends(member) == pytest.approx(115.0)
    assert fleet.answer("late", Heartbeat(1, 0, 0, interval_seconds=4.5)) is None, "it beats so already"


def test_who_was_there_before_has_the_longer_lease_from_when_it_is_told(fleet, monkeypatch):
    slow(fleet, monkeypatch)
    member = fleet.get("n0")
    assert fleet.ends(member) == pytest.approx(10.0), "of when it registered"
    beat = Heartbeat(1, 0, 0, interval_seconds=3.0)
    fleet.heard("n0", 3.0, beat)
    assert fleet.answer("n0", beat) == paces.Pace(4.5, 15.0)
    assert fleet.ends(member) == pytest.approx(18.0), "it may beat more seldom from now on"


def test_a_fleet_that_shrinks_gives_a_node_the_longer_lease_until_it_says_that_it_follows(fleet, monkeypatch):
    slow(fleet, monkeypatch)
    member, beat = fleet.get("n0"), Heartbeat(1, 0, 0, interval_seconds=3.0)
    fleet.register(register("gone"), 0.0)
    fleet.tick(0.0)
    fleet.heard("n0", 3.0, beat)
    assert fleet.answer("n0", beat) == paces.Pace(6.0, 20.0)
    fleet.heard("n0", 6.0, beat)  # the answer has not come there yet
    fleet.heard("n1", 14.0)
    fleet.tick(15.1)
    assert fleet.state("gone") is NodeState.LOST
    assert fleet.pace == paces.Pace(4.5, 15.0)
    later = Heartbeat(2, 0, 0, interval_seconds=6.0)
    fleet.heard("n0", 16.0, later)
    assert fleet.answer("n0", later) == fleet.pace
    assert fleet.ends(member) == pytest.approx(36.0), "it may not have heard yet that it is to beat more"
    fleet.heard("n0", 20.0, Heartbeat(3, 0, 0, interval_seconds=4.5))
    assert fleet.ends(member) == pytest.approx(35.0)


def test_a_longer_lease_is_not_forgotten_while_its_word_is_on_the_way(fleet, monkeypatch):
    slow(fleet, monkeypatch)
    beat = Heartbeat(1, 0, 0, interval_seconds=3.0)
    fleet.heard("n0", 3.0, beat)
    fleet.answer("n0", beat)
    monkeypatch.setattr(paces, "BEATS_A_SECOND", 200.0)
    fleet.tick(4.0)
    fleet.heard("n0", 6.0, beat)
    assert fleet.answer("n0", beat) is None, "it beats as it is to, and may yet hear otherwise"
    assert fleet.ends(fleet.get("n0")) == pytest.approx(21.0)


def test_a_node_of_an_earlier_release_goes_on_as_it_registered(fleet, monkeypatch):
    slow(fleet, monkeypatch)
    beat = Heartbeat(1, 0, 0)
    fleet.heard("n0", 3.0, beat)
    assert fleet.answer("n0", beat) is None
    assert fleet.ends(fleet.get("n0")) == pytest.approx(13.0)


@pytest.mark.parametrize("interval", [1e9, float("inf"), float("nan"), -1.0, 1e-9])
def test_what_a_node_says_of_its_heartbeats_does_not_keep_its_name_for_ever(fleet, interval):
    member = fleet.register(register(), 0.0).member
    beat = Heartbeat(1, 0, 0, interval_seconds=interval)
    fleet.heard("a", 1.0, beat)
    fleet.answer("a", beat)
    assert 10.0 <= fleet.ends(member) - 1.0 <= 50.0
    assert fleet.tick(51.1) == ("a",)


def test_who_lost_its_stream_in_a_large_fleet_has_a_small_fleets_time_to_come_back(fleet, monkeypatch):
    slow(fleet, monkeypatch)
    member = fleet.register(register("late"), 100.0).member
    fleet.disconnected("late", member.epoch, 101.0)
    assert fleet.ends(member) == pytest.approx(111.0)
    again = fleet.register(register("late", session=member.session), 105.0).member
    fleet.disconnected("late", again.epoch, 109.0)
    assert fleet.ends(again) == pytest.approx(119.0), "from when it broke: beats are seconds apart"


def test_after_a_restart_many_nodes_are_expected_for_longer(fleet, monkeypatch):
    monkeypatch.setattr(paces, "BEATS_A_SECOND", 0.5)
    fleet.expect(["a", "b"], 0.0)
    assert fleet.tick(14.9) == ()
    assert fleet.tick(20.1) == ("a", "b")


def test_what_a_node_told_of_itself_is_kept_while_it_is_there(fleet):
    first = fleet.register(register(), 0.0).member
    first.metrics = b"said"
    assert fleet.disconnected("a", first.epoch, 1.0)
    assert fleet.register(register(session="s1"), 1.0).member.metrics == b"said", "resumed"
    assert fleet.disconnected("a", fleet.get("a").epoch, 1.0)
    fresh = fleet.register(register(instance="2"), 2.0).member
    assert fresh.metrics == b"", "another process"
    fresh.metrics = b"said"
    fleet.tick(13.0)
    assert fresh.metrics == b"", "lost"
    left = fleet.register(register(instance="2", session=fresh.session), 14.0).member
    left.metrics = b"said"
    fleet.heard("a", 15.0, Heartbeat(1, 0, 0, draining=True))
    fleet.disconnected("a", left.epoch, 1.0)
    assert left.metrics == b"", "left"


def test_how_often_a_node_has_come_and_for_how_long_it_is_here(fleet):
    for now in (0.0, 5.0, 7.0):
        fleet.disconnected("a", fleet.register(register(session="s1"), now).member.epoch, now)
    (node,) = fleet.nodes(17.0)
    assert (node.registrations, node.registered_seconds) == (3, 10.0)
    fleet.register(register("b"), 17.0)
    assert [node.registrations for node in fleet.nodes(17.0)] == [3, 1]


def test_what_a_node_says_of_its_box_is_told_but_not_without_bounds(fleet):
    said = Box("x" * 1000, float("nan"), 4, providers=("y" * 1000,) * 1000, versions={"z" * 1000: "1"})
    fleet.register(register(box=said), 0.0)
    fleet.register(register("b"), 0.0)
    kept, none = (node.box for node in fleet.nodes(0.0))
    assert none is None
    assert kept == said.bounded() != said
    assert kept.processors == 4
    assert replace(said, id="\x1b[2J").bounded().id == "?[2J"


def columns(count, letters=1, rank=0):
    return tuple(Column(f"{n:04}" + "c" * letters, DataType.FLOAT32, (2**40,) * rank) for n in range(count))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"provider": "P" * 129}, "provider has 129 characters; the limit is 128"),
        ({"provider": "CPU\x1b]0;pwned\x07"}, r"provider is 'CPU\\x1b\]0;pwned\\x07'; it may hold printable"),
        ({"software": "1\x9b31m"}, "software is .* printable"),
        ({"software": "1" * 4_000_000}, "software has 4,000,000 characters; the limit is 128"),
        ({"instance": "1" * 129}, "instance has 129 characters"),
        ({"session": "1\n"}, "session is"),
        ({"releases": ("r" * 257,)}, "a release has 257 characters; the limit is 256"),
        ({"releases": ("\x1b[5m",)}, "a release is"),
        ({"releases": ("r",) * 257}, "releases: there are 257; the limit is 256"),
        ({"datasets": (Dataset("d", 1, (), False),) * 257}, "datasets: there are 257; the limit is 256"),
        (
            {"datasets": (Dataset("d", 1, columns(1_025), False),)},
            "columns: there are 1,025; the limit is 1,024",
        ),
        ({"datasets": (Dataset("d", 1, columns(1, 128), False),)}, "a name has 132 characters"),
        ({"datasets": (Dataset("d", 1, columns(1, 1, 9), False),)}, "over 8 dimensions"),
        (
            {"datasets": (Dataset("d", 1, columns(1_024, 60), False),)},
            "bytes; the limit is 65,536: serve fewer",
        ),
        (
            {"sequences": (Sequence("task/a", 1),) * 16_385},
            "sequences: there are 16,385; the limit is 16,384",
        ),
    ],
)
def test_what_a_node_may_not_say_of_itself_names_the_field_and_the_limit(fleet, fields, says):
    with pytest.raises(InvalidArgument, match=f"node 'a'.*{says}") as refused:
        fleet.register(register(**fields), 0.0)
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 1_000
    assert fleet.members() == ()


def test_the_list_of_a_fleet_that_says_all_it_may_is_one_message(fleet):
    """Each node as wordy as can be, in characters of four bytes; those that are lost make room."""
    wordy = register(
        provider="\U0001f600" * 128,
        software="\U0001f600" * 128,
        threads=2**31 - 1,
        memory_limit=2**64 - 1,
        datasets=(Dataset("d" * 64, 2**62, columns(380, 1, 8), True),),
        releases=("\U0001f600" * 200,) * 16,
        box=Box("x" * 64, 1e300, 2**31, 2**31, 1e300, 2**62, 2**62, 2**62, "y" * 64, ("z" * 64,) * 16,
                {f"{n:064}": "v" * 64 for n in range(16)}, 1e300),
    )  # fmt: skip
    assert limits.DESCRIPTION * 0.9 < limits.description_bytes(wordy) <= limits.DESCRIPTION
    for number in range(56):
        fleet.register(replace(wordy, name=f"node-{number}"), 0.0)
    with pytest.raises(ResourceExhausted, match="the limit is 3,670,016: have them serve fewer datasets"):  # noqa: PT012
        for number in range(9):
            fleet.register(replace(wordy, name=f"more-{number}"), 0.0)
    count = len(fleet.members())
    response = ListNodesResponse(fleet.nodes(1e9))
    assert len(services.LIST_NODES.response.encode(response)) <= rooms.DESCRIPTIONS
    fleet.tick(60.0)
    fleet.register(replace(wordy, name="late"), 61.0)
    assert len(fleet.members()) == count, "one of the lost was forgotten"
    assert fleet.live("late")


def test_what_all_nodes_store_has_a_limit_and_the_lost_make_room(fleet, monkeypatch):
    """Four thousand names of 512 letters are two megabytes, and ten thousand nodes can be made up."""
    monkeypatch.setattr(rooms, "STORED", 3 * 10 * (rooms.STORED_NAME + 100))
    full = tuple(Sequence(f"context/{n:092}", 1) for n in range(10))
    for name in ("a", "b", "c"):
        fleet.register(register(name, sequences=full), 0.0)
    fleet.register(register("empty"), 0.0)
    fleet.register(register("c", instance="1", session="s3", sequences=full), 1.0)
    with pytest.raises(ResourceExhausted, match="the nodes here store would take 9,120 bytes; the limit"):
        fleet.register(register("d", sequences=full), 1.0)
    for name in ("b", "c", "empty"):
        fleet.heard(name, 9.0)
    assert fleet.tick(11.0) == ("a",)
    fleet.register(register("d", sequences=full), 12.0)
    assert [member.name for member in fleet.members()] == ["b", "c", "d", "empty"]


class AnyMembership(RuleBasedStateMachine):
    """Two names and two processes of each, a clock, and streams that end late or never."""

    def __init__(self):
        super().__init__()
        sessions = (f"s{n}" for n in itertools.count(1))
        self.fleet = Membership(10.0, lambda: next(sessions))
        self.now = 0.0
        self.admitted = {}
        """Name -> the admission that counts, and its process."""
        self.epochs = []
        """Connections there have been: (name, epoch)."""
        self.heard = {}
        self.lost = set()

    @rule(seconds=st.floats(0.0, 8.0))
    def time_passes(self, seconds):
        self.now += seconds
        for name in self.fleet.tick(self.now):
            assert name not in self.lost, "told once"
            assert self.now - self.heard[name] > self.fleet.lease
            self.lost.add(name)
        for name, heard in self.heard.items():
            assert (self.now - heard > self.fleet.lease) <= (self.fleet.state(name) is NodeState.LOST)

    @rule(name=st.sampled_from("ab"), instance=st.sampled_from("12"), knows=st.booleans())
    def a_node_registers(self, name, instance, knows):
        before, of = self.admitted.get(name, (None, None))
        session = before.member.session if before is not None and knows else ""
        live = self.fleet.live(name)
        try:
            admission = self.fleet.register(register(name, instance, session), self.now)
        except AlreadyExists:
            assert live
            assert of != instance, "refused to the process that holds it"
            return
        assert not live or of == instance, "a live name was given away"
        assert admission.resumed == (of == instance and bool(session))
        self.admitted[name] = (admission, instance)
        self.epochs.append((name, admission.member.epoch))
        self.heard[name] = self.now
        self.lost.discard(name)
        assert self.fleet.live(name)

    @rule(name=st.sampled_from("abc"), draining=st.none() | st.booleans())
    def a_node_is_heard(self, name, draining):
        before = self.fleet.state(name)
        self.fleet.heard(name, self.now, None if draining is None else Heartbeat(1, 5, 0, draining))
        if name in self.heard:
            self.heard[name] = self.now
        live = before in (NodeState.READY, NodeState.DRAINING)
        assert self.fleet.live(name) == live, "what a node says does not bring it back"

    @rule(data=st.data())
    def a_stream_ends(self, data):
        if not self.epochs:
            return
        name, epoch = data.draw(st.sampled_from(self.epochs))
        current, state = self.admitted[name][0].member, self.fleet.state(name)
        ended = self.fleet.disconnected(name, epoch, self.now)
        assert ended == (current.epoch == epoch and state in (NodeState.READY, NodeState.DRAINING))
        if ended:
            left = state is NodeState.DRAINING
            assert self.fleet.state(name) is (NodeState.LOST if left else NodeState.SUSPECT)
            if left:
                self.lost.add(name)

    @invariant()
    def its_sessions_are_found(self):
        self.fleet.check()
        for name, (admission, _) in self.admitted.items():
            assert self.fleet.of_session(admission.member.session).name == name


TestWhateverHappensANameIsOneProcess = AnyMembership.TestCase


def test_its_last_transitions_say_who_came_and_went(fleet):
    epoch = fleet.register(register(), 1.0).member.epoch
    fleet.heard("a", 2.0, Heartbeat(1, 0, 0))
    fleet.disconnected("a", epoch, 3.0)
    fleet.tick(20.0)
    assert told(fleet.transitions) == (
        "0.000 s: a registered: lost -> ready; 2.000 s: a disconnected: ready -> suspect; "
        "19.000 s: a silent: suspect -> lost"
    )


@pytest.mark.parametrize("broken", [
    lambda fleet, a, b: setattr(a, "session", b.session),
    lambda fleet, a, b: setattr(a, "epoch", 9),
    lambda fleet, a, b: setattr(a, "stored", rooms.STORED + 1),
    lambda fleet, a, b: fleet._expected.update(a=0.0),
])  # fmt: skip
def test_check_finds_a_state_that_cannot_be(fleet, broken):
    a, b = (fleet.register(register(name), 0.0).member for name in "ab")
    fleet.check()
    broken(fleet, a, b)
    with pytest.raises(AssertionError):
        fleet.check()


def test_members_are_told_by_name_whoever_came_and_went(fleet):
    for name in ("c", "a", "b"):
        fleet.register(register(name), 0.0)
        fleet.members()
    assert [member.name for member in fleet.members()] == ["a", "b", "c"]
    before = fleet.get("b")
    fleet.tick(100.0)
    again = fleet.register(register("b"), 101.0).member
    assert again is not before
    assert fleet.members()[1] is again, "the member that it is now"
