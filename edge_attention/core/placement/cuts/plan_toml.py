"""A plan with its boxes as TOML, for people: `plan --out plan.toml` writes it, and a person may change it.

    # tokens (gather) over a 60%, b 40%: 41.2 ms
    halves = false

    [[stage]]
    layers = [0, 7]
    cut = "tokens"
    crossing = "gather"
    boxes = ["a", "b"]      # a list within the list: replicas
    shares = [77, 51]

Parts are numbered in the order of stages and boxes; which part a box has is not said otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.placement.cuts.choice import PredictedPlan
from edge_attention.core.printable import shown
from edge_attention.core.schedule.plan import Cut, CutPlan
from edge_attention.core.schedule.saved_plan import PLAN_BYTES, PLAN_PARTS, loads_plan
from edge_attention.core.toml_text import read_toml_text

__all__ = ["Holders", "dumps_toml", "loads_toml"]

Holders = Mapping[int, tuple[str, ...]]
"""Part -> the boxes that hold it, in order; empty for a part of which nothing is said."""

_KEYS = ("layers", "cut", "crossing", "boxes", "shares", "ranges")


def dumps_toml(plan: PredictedPlan) -> str:
    """The plan, its name and prediction as a comment."""
    lines = [f"# {shown(plan.name)}: {1e3 * plan.seconds:.1f} ms, {1 / plan.each:.3g} requests a second"]
    for name, held in plan.weights.items():
        traffic = (plan.down[name] + plan.up[name]) / 1e6
        lines.append(
            f"# {shown(name)}: {held / 1e6:,.1f} MB of weights; a request {1e3 * plan.busy[name]:.1f} ms of "
            f"its time, {traffic:.2f} MB to and from it"
        )
    lines.append(f"halves = {str(plan.plan.halves).lower()}")
    if plan.plan.mean:
        lines.append("mean = true")
    for stage in plan.plan.stages:
        held_by = [plan.boxes.get(part, ()) for part in stage.parts]
        lines += ["", "[[stage]]", f"layers = [{stage.layers.start}, {stage.layers.stop}]"]
        if stage.cut is not Cut.NONE:
            lines.append(f'cut = "{stage.cut.value}"')
        if stage.cut is Cut.TOKENS:
            lines.append(f'crossing = "{stage.crossing.value}"')
        lines.append(f"boxes = {json.dumps([h[0] if len(h) == 1 else list(h) for h in held_by])}")
        if stage.shares:
            lines.append(f"shares = {json.dumps([int(s) if s == int(s) else s for s in stage.shares])}")
        if stage.ranges:
            lines.append("[stage.ranges]")
            lines += [f"{json.dumps(axis)} = {json.dumps(of)}" for axis, of in stage.ranges.items()]
    return "\n".join(lines) + "\n"


def loads_toml(text: str, layers: int | None = None) -> tuple[CutPlan, Holders]:
    """The plan that `dumps_toml`, or a person, wrote; for a model of so many layers, where they are known.

    Raises:
        InvalidArgument: it is none; says where in the file.
    """
    if len(text) > PLAN_BYTES:
        raise InvalidArgument(f"a plan's file has {len(text):,} bytes; {PLAN_BYTES:,} are the most")
    data = read_toml_text(text, "a plan's file is not TOML")
    for key in data:
        if key not in ("halves", "mean", "stage"):
            _wrong(f"has no {shown(key, 40)}: there are halves, mean and [[stage]]")
    stages = data.get("stage")
    if not isinstance(stages, list) or not stages or len(stages) > PLAN_PARTS:
        _wrong(f"has at least one table [[stage]], and at most {PLAN_PARTS:,}")
    holders: dict[int, tuple[str, ...]] = {}
    plain: list[dict[str, Any]] = []
    for number, stage in enumerate(stages):
        if not isinstance(stage, dict):
            _wrong(f"[[stage]] {number}: it is a table")
        for key in stage:
            if key not in _KEYS:
                _wrong(f"[[stage]] {number} has no {shown(key, 40)}: there are {', '.join(_KEYS)}")
        boxes = [_names(number, one) for one in _boxes(number, stage.get("boxes"))]
        parts = range(len(holders), len(holders) + len(boxes))
        holders.update(zip(parts, boxes, strict=True))
        rest = {key: value for key, value in stage.items() if key != "boxes"}
        plain.append({**rest, "parts": list(parts)})
    more = {key: data[key] for key in ("halves", "mean") if key in data}
    try:
        written = json.dumps({"edge_attention_plan": 1, "stages": plain, **more})
    except (TypeError, ValueError):
        _wrong("holds a date or a time, which no plan has")
    return loads_plan(written, layers), holders


def _boxes(number: int, given: Any) -> list[Any]:
    if not isinstance(given, list) or not given or len(given) > PLAN_PARTS:
        _wrong(f"[[stage]] {number}: boxes is a list of names, one for each part")
    return given


def _names(number: int, given: Any) -> tuple[str, ...]:
    names = given if isinstance(given, list) else [given]
    if not names or not all(isinstance(name, str) and name for name in names):
        _wrong(f"[[stage]] {number}: boxes holds {shown(given, 40)}; it holds names, or lists of replicas")
    return tuple(names)


def _wrong(what: str) -> NoReturn:
    raise InvalidArgument(f"a plan's file {what}")
