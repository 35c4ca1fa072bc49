"""A node's own metrics, as they came with its heartbeat: a peer's word, checked before anybody is shown it.

The grammar is the part of Prometheus' text format that nodes write, line by line and nothing else: a family
is HELP, TYPE, then its samples. Not prometheus_client's parser: that is for text one trusts, takes more than
the format has, and four times as long.

A node's report says the same again and again, with other numbers, and so do a thousand nodes of one release:
what was found of a report is kept by what of it is not numbers, and of the next one only those are looked at.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import lru_cache

from prometheus_client.utils import floatToGoString

from edge_attention.core.errors import InvalidArgument
from edge_attention.metrics.node import REPORT_LIMIT

__all__ = ["checked"]

NAMES = ("edge_attention_node_", "process_", "python_")
SERIES, FAMILIES, LABELS = 1000, 200, 8
_SUFFIXES = {
    "counter": ("",),
    "gauge": ("",),
    "untyped": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("", "_sum", "_count"),
}
_NAME = r"[a-zA-Z_][a-zA-Z0-9_]{0,127}"
_VALUE = r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?(?:[eE][+-]?[0-9]{1,3})?|Inf)|NaN"
# Printable text of at most 128 letters, in which quotes and backslashes are escaped.
_QUOTED = r'"((?:[^"\\\x00-\x1f\x7f]|\\[\\"n]){0,128})"'
_LABEL = re.compile(rf"({_NAME})={_QUOTED}(?:,(?!$)|$)")
_HELP = re.compile(rf"# HELP ({_NAME}) ((?:[^\\\x00-\x1f\x7f]|\\[\\n]){{0,512}})")
_TYPE = re.compile(rf"# TYPE ({_NAME}) ({'|'.join(_SUFFIXES)})")
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.{{0,4096}})\}})? ({_VALUE})")
_RESERVED = ("node", "instance", "job")
"""Labels that Prometheus puts on, by which it tells nodes apart."""
FRAMES = 64
"""Reports whose text is known, but for their numbers: of 64 KiB each at most."""

_NUMBER = re.compile(_VALUE)
_known: OrderedDict[str, tuple[str, ...]] = OrderedDict()
"""A report without its numbers: its lines as they are shown, those of samples up to the number."""


def checked(report: bytes) -> bytes:
    """`report` as Prometheus text of our own making, which says the same.

    Raises:
        InvalidArgument: it is too large, no such text, or speaks of what is not a node's to tell.
    """
    if len(report) > REPORT_LIMIT:
        raise InvalidArgument(f"its metrics are {len(report):,} bytes; the limit is {REPORT_LIMIT:,}")
    try:
        text = report.decode()
    except UnicodeDecodeError:
        raise InvalidArgument("its metrics are not UTF-8") from None
    frame, numbers = _parted(text)
    if (known := _known.get(frame)) is not None and None not in (shown := [_shown(n) for n in numbers]):
        _known.move_to_end(frame)
        of = iter(shown)
        lines = [line if line[0] == "#" else f"{line} {next(of)}" for line in known]
    else:
        lines = _lines(text)
        _known[frame] = tuple(line if line[0] == "#" else line.rpartition(" ")[0] for line in lines)
        while len(_known) > FRAMES:
            _known.popitem(last=False)
    found = "".join(line + "\n" for line in lines).encode()
    if len(found) > REPORT_LIMIT:
        raise InvalidArgument(f"its metrics are {len(found):,} bytes in full; the limit is {REPORT_LIMIT:,}")
    return found


def _parted(text: str) -> tuple[str, list[str]]:
    """`text` without the last word of its samples, and those words, which are to be numbers."""
    frame: list[str] = []
    numbers: list[str] = []
    for line in text.split("\n"):
        name, space, number = line.rpartition(" ")
        if space and line[0] != "#":
            numbers.append(number)
            line = name + space
        frame.append(line)
    return "\n".join(frame), numbers


@lru_cache(maxsize=4096)
def _shown(number: str) -> str | None:
    """A sample's number as it is shown; None: it is none. Most are a zero."""
    if len(number) > 128 or _NUMBER.fullmatch(number) is None:
        return None
    shown: str = floatToGoString(float(number))  # type: ignore[no-untyped-call]
    return shown


def _lines(text: str) -> list[str]:
    """The lines of a report as they are shown. Raises InvalidArgument: see `checked`."""
    lines: list[str] = []
    families: set[str] = set()
    series: set[tuple[str, str]] = set()
    helped = family = kind = ""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line:
            continue
        if not line.isprintable():
            raise InvalidArgument(f"line {number} of its metrics cannot be shown: {line[:80]!r}")
        if (sample := _SAMPLE.fullmatch(line)) is not None:
            name, labels, value = sample[1], _labels(sample[2] or "", number), sample[3]
            if not family or name not in [family + suffix for suffix in _SUFFIXES[kind]]:
                raise InvalidArgument(f"line {number} of its metrics: {name[:80]} follows no TYPE of its own")
            if (name, labels) in series:
                raise InvalidArgument(f"line {number} of its metrics repeats the series {name[:80]}")
            series.add((name, labels))
            if len(series) > SERIES:
                raise InvalidArgument(f"its metrics have over {SERIES:,} series, which is the limit")
            number_text: str = floatToGoString(float(value))  # type: ignore[no-untyped-call]
            lines.append(f"{name}{labels} {number_text}")
        elif (said := _TYPE.fullmatch(line)) is not None:
            family, kind = said[1], said[2]
            if family in families or family != helped:
                raise InvalidArgument(
                    f"line {number} of its metrics: {family[:80]} has no HELP, or two TYPEs"
                )
            if not family.startswith(NAMES):
                raise InvalidArgument(
                    f"its metrics speak of {family[:80]}; names begin with {', '.join(NAMES)}"
                )
            families.add(family)
            if len(families) > FAMILIES:
                raise InvalidArgument(f"its metrics have over {FAMILIES} names, which is the limit")
            lines.append(line)
        elif (said := _HELP.fullmatch(line)) is not None and (family or not helped):
            helped, family = said[1], ""
            lines.append(line)
        else:
            raise InvalidArgument(f"line {number} of its metrics cannot be read: {line[:80]!r}")
    if helped and not family:
        raise InvalidArgument(f"its metrics end with the HELP of {helped[:80]}")
    return lines


def _labels(text: str, line: int) -> str:
    """`{a="x",b="y"}` in order of name, or nothing."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        label = _LABEL.match(text, at)
        if label is None or label[1] in found or label[1] in _RESERVED or label[1].startswith("__"):
            raise InvalidArgument(f"line {line} of its metrics has labels that cannot be: {text[:80]!r}")
        found[label[1]], at = label[2], label.end()
        if len(found) > LABELS:
            raise InvalidArgument(f"line {line} of its metrics has over {LABELS} labels")
    return "{" + ",".join(f'{name}="{found[name]}"' for name in sorted(found)) + "}" if found else ""
