"""Plans as JSON: what a person writes, a file holds and the aggregator keeps.

    {"edge_attention_plan": 1,
     "stages": [{"layers": [0, 6], "parts": [0, 1], "cut": "tokens", "crossing": "gather", "shares": [2, 1]},
                {"layers": [6, 13], "parts": [2]}]}

`layers` are from and before; `cut`, `crossing`, `shares` and `ranges` (`{"heads.3": [[0, 5], [5, 12]]}`, a
range a part) may be left out, as may `halves` and `mean` beside the stages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.printable import shown
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Ranges, Stage

__all__ = ["PLAN_BYTES", "PLAN_PARTS", "PLAN_STAGES", "dumps_plan", "loads_plan"]

PLAN_BYTES = 1 << 20
"""Of a plan's file: 200 layers of 20 parts that are said range by range are 60 KB."""

PLAN_PARTS = 1024
PLAN_STAGES = 1024

_VERSION = "edge_attention_plan"
_LARGEST = 1 << 53
"""A number of a range or a layer; JSON holds none beyond exactly."""

Named = TypeVar("Named", Cut, Crossing)


def dumps_plan(plan: CutPlan) -> str:
    """The plan as JSON, a stage a line; what is as it would be anyway is left out."""
    lines = [json.dumps(_stage(stage)) for stage in plan.stages]
    more = "".join(f', "{name}": true' for name in ("halves", "mean") if getattr(plan, name))
    return f'{{"{_VERSION}": 1{more}, "stages": [\n  ' + ",\n  ".join(lines) + "\n]}\n"


def loads_plan(text: str | bytes, layers: int | None = None) -> CutPlan:
    """The plan that a person, or `dumps_plan`, wrote; for a model of so many layers, where they are known.

    Raises:
        InvalidArgument: it is none; says where in the file.
    """
    if len(text) > PLAN_BYTES:
        raise InvalidArgument(
            f"a plan's file has {len(text):,} bytes; {PLAN_BYTES:,} are the most that is read"
        )
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"a plan's file is JSON; this is none ({shown(error, 100)})") from None
    if not isinstance(data, dict) or data.get(_VERSION) != 1:
        raise InvalidArgument(f'a plan\'s file is {{"{_VERSION}": 1, "stages": [...]}}; this is another one')
    _known("the plan", data, (_VERSION, "stages", "halves", "mean"))
    stages = _list("stages", data.get("stages"), PLAN_STAGES)
    found = CutPlan(
        tuple(_to_stage(f"stages[{number}]", stage) for number, stage in enumerate(stages)),
        _bool("halves", data.get("halves", False)),
        _bool("mean", data.get("mean", False)),
    )
    _check(found, layers)
    return found


def _check(plan: CutPlan, layers: int | None) -> None:
    """Stages follow each other, and parts are numbered from 0 without a gap."""
    at = 0
    for number, stage in enumerate(plan.stages):
        if stage.layers.start != at:
            _wrong(
                f"stages[{number}].layers", f"begin at {stage.layers.start}; the stage before ends at {at}"
            )
        at = stage.layers.stop
    if layers is not None and at != layers:
        _wrong("stages", f"end at layer {at}; the model has {layers}")
    parts = {part for stage in plan.stages for part in stage.parts}
    if parts != set(range(len(parts))):
        least = min(set(range(len(parts))) - parts)
        _wrong("stages", f"parts are numbered from 0 without a gap, and there is no part {least}")


def _stage(stage: Stage) -> dict[str, Any]:
    data: dict[str, Any] = {"layers": [stage.layers.start, stage.layers.stop], "parts": list(stage.parts)}
    if stage.cut is not Cut.NONE:
        data["cut"] = stage.cut.value
    if stage.cut is Cut.TOKENS:
        data["crossing"] = stage.crossing.value
    if stage.shares:
        data["shares"] = list(stage.shares)
    if stage.ranges:
        data["ranges"] = {name: [list(one) for one in ranges] for name, ranges in stage.ranges.items()}
    return data


def _to_stage(where: str, data: Any) -> Stage:
    if not isinstance(data, dict):
        _wrong(where, "is an object")
    _known(where, data, ("layers", "parts", "cut", "crossing", "shares", "ranges"))
    layers = _pair(f"{where}.layers", data.get("layers"))
    if layers[0] == layers[1]:
        _wrong(f"{where}.layers", "are none")
    parts = [
        _integer(f"{where}.parts", part, PLAN_PARTS - 1)
        for part in _list(f"{where}.parts", data.get("parts"), PLAN_PARTS)
    ]
    if not parts or len(set(parts)) < len(parts):
        _wrong(f"{where}.parts", "are numbers of parts, each once")
    shares = _list(f"{where}.shares", data.get("shares", []), PLAN_PARTS)
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= _LARGEST:
            _wrong(f"{where}.shares", f"are numbers from 0, in proportion; {shown(share, 40)} is none")
    ranges = data.get("ranges", {})
    if not isinstance(ranges, dict):
        _wrong(f"{where}.ranges", "is an object: an axis, and a range a part")
    try:
        return Stage(
            range(*layers),
            tuple(parts),
            _named(f"{where}.cut", data.get("cut", Cut.NONE.value), Cut),
            _named(f"{where}.crossing", data.get("crossing", Crossing.GATHER.value), Crossing),
            tuple(map(float, shares)),
            {
                name: _to_ranges(f"{where}.ranges of {shown(name, 60)}", of, len(parts))
                for name, of in ranges.items()
            },
        )
    except ValueError as error:
        _wrong(where, f"is no stage: {error}")


def _to_ranges(where: str, data: Any, parts: int) -> Ranges:
    found = tuple(_pair(where, one) for one in _list(where, data, PLAN_PARTS))
    if len(found) != parts:
        _wrong(where, f"are {len(found)} ranges for {parts} parts; a part that has none has [0, 0]")
    after = 0
    for start, stop in found:
        if start < stop:
            if start < after:
                _wrong(where, f"overlap, or are not in order, at {start}")
            after = stop
    return found


def _pair(where: str, data: Any) -> tuple[int, int]:
    numbers = [_integer(where, one, _LARGEST) for one in _list(where, data, 2)]
    if len(numbers) != 2 or numbers[0] > numbers[1]:
        _wrong(where, "are two numbers, from and before")
    return numbers[0], numbers[1]


def _integer(where: str, data: Any, most: int) -> int:
    if isinstance(data, bool) or not isinstance(data, int) or not 0 <= data <= most:
        _wrong(where, f"are whole numbers from 0 to {most:,}; {shown(data, 40)} is none")
    return data


def _bool(where: str, data: Any) -> bool:
    if not isinstance(data, bool):
        _wrong(where, "is true or false")
    return data


def _list(where: str, data: Any, most: int) -> Sequence[Any]:
    if not isinstance(data, list) or len(data) > most:
        _wrong(where, f"is a list, of at most {most:,}")
    return data


def _named(where: str, data: Any, kinds: type[Named]) -> Named:
    try:
        return kinds(data)
    except ValueError:
        _wrong(where, f"is one of {', '.join(kind.value for kind in kinds)}, not {shown(data, 40)}")


def _known(where: str, data: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in data:
        if name not in names:
            _wrong(where, f"has no {shown(name, 40)}: {', '.join(names)}")


def _wrong(where: str, what: str) -> NoReturn:
    raise InvalidArgument(f"a plan's file: {where} {what}")
