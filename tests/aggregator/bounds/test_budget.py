"""The accounts of what is bounded: never below nothing, never above the total, fair between callers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.bounds.bounds import ALL, CallerBound
from aggregator.bounds.budget import TOLD_SECONDS, Budget, Budgets, BudgetState
from edge_attention.core.errors import EdgeAttentionError, Overloaded, ResourceExhausted
from edge_attention.core.transitions import told

CALLERS = ["a", "b", "c", None]
BOUND = CallerBound("things", 100, "things under way", "have fewer", 2.0)

steps = st.lists(
    st.tuples(st.sampled_from(["take", "grow", "give"]), st.sampled_from(CALLERS), st.integers(0, 120)),
    max_size=60,
)


@given(steps, st.integers(1, 200))
def test_whatever_is_taken_and_given_back_the_account_is_right(steps, total):
    budget = Budget(CallerBound("things", total, "things", "have fewer"))
    leases = {caller: [] for caller in CALLERS}
    for step, caller, amount in steps:
        held = leases[caller]
        before = budget.used
        try:
            if step == "take":
                held.append(budget.take(caller, amount))
            elif step == "grow" and held:
                held[0].grow(amount)
            elif held:
                lease = held.pop()
                lease.give_back()
                lease.give_back()  # once is enough
        except EdgeAttentionError:
            assert budget.used == before
        budget.check()
        for name in "abc":
            assert budget.of(name) == sum(lease.amount for lease in leases[name])
        assert budget.used == sum(lease.amount for of in leases.values() for lease in of)
    for of in leases.values():
        for lease in of:
            lease.give_back()
    budget.check()
    assert (budget.used, budget.callers) == (0, 0)


@given(st.integers(2, 1000))
def test_a_caller_alone_has_a_half(total):
    budget = Budget(CallerBound("things", total, "things", "have fewer"))
    leases = [budget.take("a") for _ in range(total // 2)]
    with pytest.raises(ResourceExhausted):
        budget.take("a")
    leases[0].give_back()
    budget.take("a")


@given(st.integers(1, 20), st.integers(100, 2000))
def test_beside_any_number_of_greedy_callers_there_is_room_for_another(greedy, total):
    budget = Budget(CallerBound("things", total, "things", "have fewer"))
    going = True
    while going:
        going = False
        for number in range(greedy):
            try:
                budget.take(f"bad {number}")
                going = True
            except ResourceExhausted:
                pass
    fair = total // (greedy + 1)
    assert all(abs(budget.of(f"bad {number}") - fair) <= greedy for number in range(greedy))
    room = (total - budget.used) // 2
    if room:
        budget.take("good", room)


def test_a_refusal_names_the_bound_what_is_used_and_when_to_come_again():
    names = []
    budget = Budget(BOUND, names.append)
    budget.take("a", 40)
    budget.take("b", 10)
    with pytest.raises(Overloaded) as refused:
        budget.take("a", 30)
    assert refused.value.message == (
        "bound things: there are 50 of 100 things under way, 40 of them this caller's, who may have no more "
        "than is left free; this call needs 30 more: have fewer, and try again in 2 s"
    )
    assert refused.value.retry_after == 2.0
    assert names == ["things"]
    lasting = Budget(CallerBound("things", 1, "things", "drop some"))
    lasting.take(None)
    with pytest.raises(ResourceExhausted, match="bound things: there are 1 of 1 things, drop some"):
        lasting.take(None)


def test_its_last_transitions_say_since_when_it_refuses_and_whom():
    now = itertools.count(1.0)
    budget = Budget(BOUND, clock=lambda: next(now))
    held = budget.take("a", 50)
    for caller in ("b", "a"):
        with pytest.raises(Overloaded):
            budget.take(caller, 30)
    held.give_back()
    with budget.take("a", 20):
        assert told(budget.transitions) == (
            "0.000 s: b asks for 30, 50 of 100 are used: granting -> refusing; "
            "1.000 s: a asks for 20, 0 of 100 are used: refusing -> granting"
        )


def test_how_a_bound_came_to_refuse_is_logged_and_not_for_every_refusal(caplog):
    caplog.set_level("INFO")
    refused, now = [], [0.0]
    budgets = Budgets(refused.append, lambda: now[0])
    for now[0] in (0.0, 1.0, TOLD_SECONDS - 1, TOLD_SECONDS):
        with pytest.raises(EdgeAttentionError):
            budgets.take(ALL[0], "a", ALL[0].total)
    assert refused == [ALL[0].name] * 4
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"bound {ALL[0].name} refuses somebody"
    ] * 2


@pytest.mark.parametrize("broken", [
    lambda budget, lease: setattr(budget, "used", 101),
    lambda budget, lease: setattr(budget, "state", BudgetState.GRANTING),
    lambda budget, lease: setattr(lease, "amount", -1),
    lambda budget, lease: setattr(lease, "amount", 51),
])  # fmt: skip
def test_check_finds_an_account_that_cannot_be(broken):
    budget = Budget(BOUND)
    lease = budget.take("a", 50)
    with pytest.raises(Overloaded):
        budget.take("a", 50)
    lease.check()
    broken(budget, lease)
    with pytest.raises(AssertionError):
        lease.check()


def test_a_lease_is_given_back_when_its_block_ends():
    budget = Budget(BOUND)
    with budget.take("a", 10) as lease:
        lease.grow(5)
        assert budget.used == 15
    assert budget.used == 0


def test_every_bound_has_a_name_of_its_own_and_an_account():
    names = [bound.name for bound in ALL]
    assert len(names) == len(set(names)) > 10
    budgets = Budgets()
    for bound in ALL:
        with budgets.take(bound, "a", 1):
            assert budgets[bound].used == 1
        assert bound.remedy
        assert bound.unit


def test_what_was_there_before_is_counted_and_only_what_is_new_refused():
    budget = Budget(CallerBound("things", 10, "things", "have fewer"))
    kept = budget.keep("a", 12)
    budget.check()
    with pytest.raises(ResourceExhausted):
        budget.take("b")
    kept.shrink(5)
    budget.take("b", 1)
    kept.give_back()
    budget.check()
    assert (budget.used, budget.of("a"), budget.of("b")) == (1, 0, 1)
