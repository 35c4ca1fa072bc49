"""What a schedule takes: its bytes by extents, its steps one after another, the slowest part of each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.costs import LayerWork
from edge_attention.core.placement.cuts.scheduled import predict_schedule, weights_held
from edge_attention.core.placement.cuts.trips import StepErrand, trip_seconds
from edge_attention.core.schedule.extents import AxisSpan
from edge_attention.core.schedule.schedule import (
    Boundary,
    Contributed,
    Delivery,
    ModelInput,
    ModelSegment,
    Schedule,
    Step,
    TensorForm,
    Weight,
)

FREE = BoxLinks(byte_seconds=0.0, call_seconds=0.0, trip_seconds=0.0)


def halves_of(axis_size: int) -> tuple[tuple[AxisSpan], tuple[AxisSpan]]:
    half = axis_size // 2
    return (AxisSpan(0, 0, half, axis_size),), (AxisSpan(0, half, axis_size, axis_size),)


def schedule() -> Schedule:
    """x [8, 4] by rows over two parts, gathered, then all of it on part 0."""
    rows, form = halves_of(8), TensorForm("float32", (8, 4))
    first = tuple(
        ModelSegment(
            part,
            "half",
            {"x": ModelInput("x", rows[part]), "w": Weight("w")},
            {},
            (Contributed("y", "b0", rows[part]),),
        )
        for part in (0, 1)
    )
    last = ModelSegment(0, "end", {"x": Delivery("b0", rows[1])}, {}, (Contributed("y", "b1"),))
    found = Schedule(
        2,
        {"x": form},
        {"y": "b1"},
        {"b0": Boundary(form), "b1": Boundary(form)},
        (Step(first), Step((last,))),
        {"half": "digest-half", "end": "digest-end"},
        {},
    )
    found.check()
    return found


def test_each_step_is_as_long_as_its_slowest_part() -> None:
    boxes = {0: ComputeBox("a", 1e9, operator_seconds=0.0), 1: ComputeBox("b", 5e8, operator_seconds=0.0)}
    half = LayerWork(flops=1e6)
    work = {(0, 0): half, (0, 1): half, (1, 0): LayerWork(flops=3e6)}
    run = predict_schedule(schedule(), work, boxes, FREE)
    assert run.steps == pytest.approx((2e-3, 3e-3))
    assert run.busy == pytest.approx((4e-3, 2e-3))
    assert run.each == pytest.approx(4e-3)  # many in flight: the busiest box
    assert run.down == (64 + 64, 64)
    assert run.up == (64 + 128, 64)
    # What was measured counts instead.
    measured = {(0, 1): 0.5}
    assert predict_schedule(schedule(), work, boxes, FREE, measured=measured).steps[0] == pytest.approx(0.5)
    assert predict_schedule(schedule(), work, boxes, FREE, halves=True).up == (
        32 + 128,
        32,
    )  # the result in float32


def test_what_parts_hold_of_the_weights() -> None:
    assert weights_held(schedule(), {"w": TensorForm("float16", (10, 10))}) == (200, 200)


def test_boxes_of_one_machine_wait_for_its_cores() -> None:
    box = ComputeBox("a", 1e9, machine="here", cores=2)
    four = [StepErrand(replace(box, name=f"{n}"), 1.0, 0, 0) for n in range(4)]
    assert trip_seconds(four[:2], FREE) == pytest.approx(1.0)
    assert trip_seconds(four, FREE) == pytest.approx(2.0)


def test_all_share_the_aggregators_link_and_some_their_medium() -> None:
    boxes = [ComputeBox(f"{n}", 1e9) for n in range(3)]
    errands = [StepErrand(box, 0.0, 1e6, 0) for box in boxes]
    cables = {box.name: BoxLink(0.01, 1e6, 1e6) for box in boxes}
    assert trip_seconds(errands, replace(FREE, of=cables)) == pytest.approx(1.02)
    hub = BoxLink(0.0, 1e6, 1e6)
    assert trip_seconds(errands, replace(FREE, of=cables, hub=hub)) == pytest.approx(3.02)
    air = {name: replace(link, medium="air") for name, link in cables.items()}
    assert trip_seconds(errands, replace(FREE, of=air)) == pytest.approx(3.02)
