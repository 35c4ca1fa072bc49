"""Bytes of a schedule, against what is counted by hand."""

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
    Weight,
)
from edge_attention.core.schedule.traffic import PartTraffic, traffic_of


def tokens(start, stop):
    return (AxisSpan(1, start, stop, 8),)


def two_parts():
    """Ids [1, 8] over two parts of 5 and 3 tokens; a gather of [1, 8, 4], of which each lacks the other's."""
    first = [
        ModelSegment(
            part,
            "a",
            {"x0": ModelInput("ids", tokens(*ends)), "w0": Weight("table")},
            {"y0": "own"},
            (Contributed("y0", "keys", tokens(*ends)), Contributed("y0", "twice", tokens(*ends))),
        )
        for part, ends in enumerate([(0, 5), (5, 8)])
    ]
    second = [
        ModelSegment(
            part,
            "b",
            {"x0": Kept("own"), "x1": Delivery("keys", tokens(*other))},
            {},
            (Contributed("y0", "sum"),),
        )
        for part, other in enumerate([(5, 8), (0, 5)])
    ]
    keys = TensorForm("float32", (1, 8, 4))
    schedule = Schedule(
        2,
        {"ids": TensorForm("int64", (1, 8))},
        {"y": "sum"},
        {
            "keys": Boundary(keys),
            "twice": Boundary(keys),
            "sum": Boundary(TensorForm("float32", (1, 4)), Collective.SUM),
        },
        (Step(tuple(first)), Step(tuple(second))),
        {"a": "0" * 64, "b": "1" * 64},
        {},
    )
    schedule.check()
    return schedule


def test_what_is_sent_is_counted_once_and_only_what_is_sent():
    found = traffic_of(two_parts())
    ids, row = 8, 4 * 4
    assert found.parts[0] == PartTraffic(received=5 * ids + 3 * row, sent=5 * row + row, trips=2)
    assert found.parts[1] == PartTraffic(received=3 * ids + 5 * row, sent=3 * row + row, trips=2)
    assert found.steps == ((5 * ids, 5 * row), (5 * row, row))
    assert (found.down, found.up) == (8 * ids + 8 * row, 8 * row + 2 * row)


def test_halves_are_half_the_boundaries_and_all_of_the_inputs():
    whole, halves = traffic_of(two_parts()), traffic_of(two_parts(), halves=True)
    results = 2 * 4 * 4  # what the model answers is not rounded
    assert halves.up == (whole.up - results) // 2 + results
    assert halves.down == 8 * 8 + (whole.down - 8 * 8) // 2
