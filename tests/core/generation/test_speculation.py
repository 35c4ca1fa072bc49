"""How many guesses are worth a trip."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.generation.speculation import GAIN, GuessRecord, SpeculationRule


def rule_of(first, further, back=0.0, rows=(1, 2, 4, 8, 16)):
    rule = SpeculationRule(rows)
    rule.took(1, first)
    rule.took(4, first + 3 * further)
    if back:
        rule.taken_back(back)
    return rule


def test_nothing_is_guessed_before_a_trip_was_measured():
    assert SpeculationRule().guesses(15, 1.0) == 0


def test_where_the_trip_is_what_takes_time_sure_guesses_fill_it():
    assert rule_of(0.005, 0.0001).guesses(15, 0.99) == 15
    assert rule_of(0.005, 0.0001).guesses(2, 0.99) == 2


def test_where_every_row_costs_as_much_as_a_trip_nothing_is_guessed():
    rule = rule_of(0.005, 0.005)
    assert rule.guesses(15, 0.9) == 0


def test_wrong_guesses_are_not_worth_it():
    assert rule_of(0.005, 0.001).guesses(15, 0.05) == 0
    assert 0 < rule_of(0.005, 0.001).guesses(15, 0.6) < 15


def test_taking_back_counts():
    assert rule_of(0.005, 0.0005).guesses(15, 0.4) > 0
    assert rule_of(0.005, 0.0005, back=0.02).guesses(15, 0.4) == 0


def test_dear_rows_are_tried_again_after_a_while():
    rule = rule_of(0.005, 0.02)
    assert rule.guesses(15, 0.95) == 0
    for _ in range(64):
        rule.took(1, 0.005)
    assert rule.guesses(15, 0.95) == 15
    rule.took(16, 0.3)
    assert rule.guesses(15, 0.95) == 0


@given(st.floats(1e-4, 1), st.floats(0, 1), st.floats(0, 1), st.integers(0, 40), st.floats(0, 1))
def test_what_it_takes_is_the_best_there_is(first, further, back, known, right):
    rule = rule_of(first, further, back)
    taken = rule.guesses(known, right)
    further = max(first + 3 * further - first, 0.0) / 3

    def rate(k):
        tokens = sum(right**i for i in range(k + 1))
        rows = next(rows for rows in (1, 2, 4, 8, 16) if rows > k)
        wrong = (1 - right**k) * back if back else 0.0
        return tokens / (first + (rows - 1) * further + wrong)

    choices = {0, *(min(rows - 1, known) for rows in (2, 4, 8, 16))}
    assert taken in choices
    best = max(map(rate, choices))
    if taken:
        assert rate(taken) >= best * (1 - 1e-9)
        assert rate(taken) > GAIN * rate(0) * (1 - 1e-9)
    else:
        assert best <= GAIN * rate(0) * (1 + 1e-9)


def test_a_record_forgets_slowly():
    record = GuessRecord()
    assert record.right(5) == 0.5
    for _ in range(60):
        record.fared(5, True)
    assert record.right(5) > 0.99
    for _ in range(10):
        record.fared(5, False)
    assert 0.3 < record.right(5) < 0.4
    assert record.right(3) == 0.5
