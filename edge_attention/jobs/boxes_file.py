"""Boxes and links as people write them, for `edge-attention plan model.onnx --boxes boxes.toml`.

What is wrong is said with its line. `TEMPLATE` is a file to start from.
"""

from __future__ import annotations

import re
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.kinds import BOX_KINDS, LINK_KINDS
from edge_attention.core.printable import shown
from edge_attention.jobs.toml_table import read_toml

__all__ = ["MOST_BOXES_IN_A_FILE", "TEMPLATE", "read_boxes"]

MOST_BOXES_IN_A_FILE = 1_000
"""With those that `count` makes."""

TEMPLATE = """\
# The boxes that a model could be cut over: edge-attention plan model.onnx --boxes boxes.toml
# Speeds by a word are rough; gflops is better, and a deployed model measures them by itself.

[aggregator]              # everything passes it
link = "1gbe"             # local, 1gbe, 2.5gbe, wifi5 or wifi6; or latency_ms, down_mbit and up_mbit
# call_ms = 0.2           # its processor's time to ask one box and take the answer
# trip_ms = 0.7           # what a step over several boxes takes beside computing and sending

[[box]]
name = "kitchen"
kind = "pi5"              # pi4, pi5, n100 or nuc; or gflops = 55, of float32 products on all its cores
memory_mb = 3000          # for weights; without it: as much as is needed
link = "1gbe"
count = 3                 # kitchen-1, kitchen-2, kitchen-3

[[box]]
name = "hall"
gflops = 300
# gbytes = 35             # a second that other operators than products move; by default from gflops
memory_mb = 12000
latency_ms = 2.0          # one way
down_mbit = 200           # from the aggregator; an upload is often slower:
up_mbit = 40
# both_mbit = 200         # in all with a transfer each way at once, if less than both together
# medium = "wifi"         # boxes of one medium share its bandwidth
# machine = "server"      # boxes on one machine share its cores, too:
# cores = 2               # of which so many such boxes compute at once
"""

_BOX_KEYS = (
    "name",
    "kind",
    "gflops",
    "gbytes",
    "memory_mb",
    "count",
    "machine",
    "cores",
    "link",
    "latency_ms",
    "down_mbit",
    "up_mbit",
    "both_mbit",
    "medium",
)
_LINK_KEYS = ("link", "latency_ms", "down_mbit", "up_mbit", "both_mbit", "medium")
_HUB_KEYS = (*_LINK_KEYS, "call_ms", "trip_ms")


def read_boxes(path: Path) -> tuple[list[ComputeBox], BoxLinks]:
    """The boxes of the file, and how they are reached.

    Raises:
        InvalidArgument: it is no such file; says line, key and what to write.
    """
    content = read_toml(path)
    try:
        return _read(content)
    except _Wrong as wrong:
        line = _line(path.read_text("utf-8"), wrong.number, wrong.key)
        raise InvalidArgument(f"{path}, line {line}: {wrong}") from None


class _Wrong(Exception):
    """Of the box with this number, or of the aggregator (-1), or of the file (-2)."""

    def __init__(self, number: int, key: str, what: str) -> None:
        super().__init__(what)
        self.number, self.key = number, key


def _read(content: dict[str, Any]) -> tuple[list[ComputeBox], BoxLinks]:
    for key in content:
        if key not in ("aggregator", "box"):
            raise _Wrong(-2, key, f"{shown(key, 40)!r} is unknown; there are [aggregator] and [[box]]")
    given = content.get("box")
    if not isinstance(given, list) or not given:
        raise _Wrong(
            -2, "box", "there is no box; write one as [[box]] with name and kind, or see plan --template"
        )
    boxes: list[ComputeBox] = []
    of: dict[str, BoxLink] = {}
    for number, values in enumerate(given):
        found, link = _box(number, values)
        for box in found:
            if box.name in of:
                what = f"a second box {shown(box.name)!r}; give each a name of its own"
                raise _Wrong(number, "name", what)
            of[box.name] = link
        boxes += found
        if len(boxes) > MOST_BOXES_IN_A_FILE:
            raise _Wrong(number, "count", f"more than {MOST_BOXES_IN_A_FILE:,} boxes; that many at most")
    links = BoxLinks(of)
    hub = content.get("aggregator", {})
    if not isinstance(hub, dict):
        raise _Wrong(-2, "aggregator", "aggregator is a table: [aggregator]")
    table = _BoxesTable(-1, hub, _HUB_KEYS)
    call, trip = table.number("call_ms"), table.number("trip_ms")
    links = replace(
        links,
        hub=table.link(),
        call_seconds=links.call_seconds if call is None else call / 1e3,
        trip_seconds=links.trip_seconds if trip is None else trip / 1e3,
    )
    return boxes, links


def _box(number: int, values: Any) -> tuple[list[ComputeBox], BoxLink]:
    if not isinstance(values, dict):
        raise _Wrong(number, "", "a box is a table: [[box]]")
    table = _BoxesTable(number, values, _BOX_KEYS)
    name = table.text("name")
    if not name:
        raise _Wrong(number, "", "the box has no name; write name = '...'")
    kind, gflops = table.text("kind"), table.number("gflops", above=True)
    if kind and kind not in BOX_KINDS:
        what = f"{shown(kind, 40)!r} is no kind; there are {', '.join(BOX_KINDS)}; or write gflops = ..."
        raise _Wrong(number, "kind", what)
    if bool(kind) == (gflops is not None):
        what = f"say how fast {shown(name)!r} is by one of kind ({', '.join(BOX_KINDS)}) and gflops"
        raise _Wrong(number, "gflops" if kind else "", what)
    gbytes = table.number("gbytes", above=True)
    memory = table.number("memory_mb", above=True)
    cores, machine = table.number("cores", above=True), table.text("machine")
    if (cores is None) != (not machine):
        raise _Wrong(number, "cores" if cores else "machine", "machine and cores are said together")
    box = ComputeBox(
        name,
        BOX_KINDS[kind] if kind else 1e9 * (gflops or 0.0),
        1e9 * (gbytes or 0.0),
        memory=float("inf") if memory is None else 1e6 * memory,
        machine=machine,
        cores=float("inf") if cores is None else cores,
    )
    count = table.number("count", above=True)
    if count is not None and count != int(count):
        raise _Wrong(number, "count", "count is a whole number")
    if count is not None and count > MOST_BOXES_IN_A_FILE:
        raise _Wrong(number, "count", f"count is at most {MOST_BOXES_IN_A_FILE:,}")
    alike = [box] if count is None else [replace(box, name=f"{name}-{n + 1}") for n in range(int(count))]
    return alike, table.link()


class _BoxesTable:
    """A table's keys, taken with their kinds."""

    def __init__(self, number: int, values: dict[str, Any], known: tuple[str, ...]) -> None:
        self._number = number
        self._values = values
        for key in values:
            if key not in known:
                near = get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                raise _Wrong(number, key, f"the key {shown(key, 40)!r} is unknown; {hint}")

    def text(self, key: str) -> str:
        value = self._values.get(key, "")
        if not isinstance(value, str):
            raise _Wrong(self._number, key, f"{key} is {value!r}; it must be a string")
        return value

    def number(self, key: str, *, above: bool = False) -> float | None:
        """A number from 0, or above 0; None where it is not said."""
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _Wrong(self._number, key, f"{key} is {value!r}; it must be a number")
        if not (0 < value < 1e15 or (value == 0 and not above)):
            least = "a number above 0" if above else "0 or more"
            raise _Wrong(self._number, key, f"{key} is {value}; it must be {least}")
        return float(value)

    def link(self) -> BoxLink:
        """Of the kind that is named, or plain, with what is said beside that."""
        kind = self.text("link")
        if kind and kind not in LINK_KINDS:
            what = (
                f"{shown(kind, 40)!r} is no link; there are {', '.join(LINK_KINDS)}; or write down_mbit = ..."
            )
            raise _Wrong(self._number, "link", what)
        found = LINK_KINDS[kind or "local"]
        latency, down = self.number("latency_ms"), self.number("down_mbit", above=True)
        up, both = self.number("up_mbit", above=True), self.number("both_mbit", above=True)
        return BoxLink(
            found.latency if latency is None else latency / 1e3,
            found.down if down is None else down * 1e6 / 8,
            found.up if up is None else up * 1e6 / 8,
            found.both if both is None else both * 1e6 / 8,
            self.text("medium") or found.medium,
        )


def _line(text: str, number: int, key: str) -> int:
    """The line of a key of a box's table, or of the table."""
    lines = text.splitlines()
    if number == -2:
        pattern = re.compile(rf"\s*\[*\s*{re.escape(key)}\b")
        return next((n + 1 for n, line in enumerate(lines) if pattern.match(line)), 1)
    header = r"\s*\[\s*aggregator\s*\]" if number == -1 else r"\s*\[\[\s*box\s*\]\]"
    starts = [n for n, line in enumerate(lines) if re.match(header, line)]
    at = max(number, 0)
    if at >= len(starts):
        return 1
    for n in range(starts[at] + 1, len(lines)):
        if re.match(r"\s*\[", lines[n]):
            break
        if key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", lines[n]):
            return n + 1
    return starts[at] + 1
