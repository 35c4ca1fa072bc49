"""Metrics as they are collected and written, without `prometheus_client`, which takes 4 MB of an idle node.

A family here has the attributes of `prometheus_client`'s, so that its registries and encoders take what is
made here: the aggregator's, and a node's own port.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

__all__ = [
    "Collects",
    "Family",
    "FamilyRegistry",
    "Gauge",
    "Registers",
    "Sample",
    "counted",
    "measured",
    "number",
]


class Sample(NamedTuple):
    """One number; what comes after it is never said here."""

    name: str
    labels: dict[str, str]
    value: float
    timestamp: None = None
    exemplar: None = None
    native_histogram: None = None


class Family:
    """What one metric says now. `name` is without the `_total` of a counter's samples."""

    unit = ""

    def __init__(self, name: str, documentation: str, type: str, labels: Iterable[str] = ()) -> None:
        self.name = name
        self.documentation = documentation
        self.type = type
        self.labelnames = tuple(labels)
        self.samples: list[Sample] = []

    def add(self, suffix: str, value: float, labels: dict[str, str] | None = None) -> None:
        self.samples.append(Sample(self.name + suffix, labels or {}, float(value)))


class Collects(Protocol):
    """Of metrics. `collect` may be called by any thread."""

    def collect(self) -> Iterable[Any]: ...


class Registers(Protocol):
    """A registry, ours or `prometheus_client`'s."""

    def register(self, collector: Any) -> None: ...


class FamilyRegistry:
    """The metrics of a process, in the order in which they were registered."""

    def __init__(self) -> None:
        self._sources: list[Collects] = []

    def register(self, collector: Collects) -> None:
        self._sources.append(collector)

    def collect(self) -> Iterator[Family]:
        for source in self._sources:
            yield from source.collect()

    def text(self) -> bytes:
        """All of them in Prometheus' text format, 0.0.4."""
        lines = []
        for family in self.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            help = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
            lines += [f"# HELP {name} {help}\n", f"# TYPE {name} {family.type}\n"]
            lines += [f"{s.name}{_labels(s.labels)} {number(s.value)}\n" for s in family.samples]
        return "".join(lines).encode()


class Gauge:
    """One that is set, with labels or none."""

    def __init__(self, name: str, text: str, registry: Registers) -> None:
        self._name = name
        self._text = text
        self._values: dict[tuple[tuple[str, str], ...], float] = {}
        self._read: Callable[[], float] | None = None
        registry.register(self)

    def set(self, value: float, **labels: str) -> None:
        self._values[tuple(labels.items())] = value

    def follow(self, read: Callable[[], float]) -> None:
        """From now on it is, without labels, what `read` says when somebody asks."""
        self._read = read

    def collect(self) -> Iterator[Family]:
        if self._read is not None:
            self.set(self._read())
        values = list(self._values.items())
        family = Family(self._name, self._text, "gauge", dict(values[0][0]) if values else ())
        for labels, value in values:
            family.add("", value, dict(labels))
        yield family


def counted(name: str, text: str, value: float | None = None, labels: Iterable[str] = ()) -> Family:
    """A counter called `name`, which ends in `_total`; with a `value`, that is all it says."""
    return _with(Family(name.removesuffix("_total"), text, "counter", labels), "_total", value)


def measured(name: str, text: str, value: float | None = None, labels: Iterable[str] = ()) -> Family:
    """A gauge; with a `value`, that is all it says."""
    return _with(Family(name, text, "gauge", labels), "", value)


def _with(family: Family, suffix: str, value: float | None) -> Family:
    if value is not None:
        family.add(suffix, value)
    return family


def number(value: float) -> str:
    """As Go writes it, which is what Prometheus compares labels `le` by."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    text = repr(float(value))
    dot = text.find(".")
    # Go takes exponents sooner than Python.
    if value > 0 and dot > 6:
        return f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.") + f"e+{dot - 1:02}"
    return text


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    pairs: Sequence[str] = [f'{name}="{_escaped(labels[name])}"' for name in sorted(labels)]
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
