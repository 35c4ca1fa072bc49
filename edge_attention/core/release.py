"""Releases: what may leave a node though it was computed from private data, and from which.

A release names graphs by digest. Of each it says which outputs may leave, and what of private data each input
may be: rows of a column, or an output of a graph that the release names as well. What is not private may be
bound to any input. So a release is a grammar, and a tensor may leave if all that it was computed by is in it.

    {"graphs":{"<update>":{"inputs":{"sum":["<step>:next/sum"],"x/*":["<step>:next/x/*"]},
                           "leaves":["norm","update/*"]},
               "<step>":{"inputs":{"features":["column \"features\" of dataset \"rows\""],
                                   "x/*":["<step>:next/x/*"]},"leaves":[]}},"release":1}

That is its text, in one line. Its digest is the SHA-256 of the text: an operator who allows the digest allows
the graphs and the origins. Names are compared without their numbers: `x/3` is `x/*`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import groupby

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.table import ColumnRead, TensorRead

__all__ = [
    "ANY",
    "ANY_COLUMN",
    "MAX_TEXT",
    "Edge",
    "GraphRule",
    "Release",
    "any_rows",
    "column",
    "columns_of",
    "every_row",
    "numbered",
    "output",
    "plain_columns",
    "table_source",
]

Edge = tuple[str, str, str]
"""That an input of a graph was private, and what it was: (digest, input, source), names without numbers.

A source is what `output` or `column` gives.
"""

FORMAT = 1
ANY = "*"
"""As a graph: each that the release does not name. As an input or output: each. `*:keys`: any graph's."""
ANY_COLUMN = "column * of dataset *"
MAX_TEXT = 64 * 1024
"""Characters of a release at most."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"(?<=/)[0-9]+(?=/|$)")
_COLUMN = 'column "'
_EVERY_ROW = ", every row"
_COLUMNS = "columns "
_LONG = 2_048
"""Letters of what a tensor reads from which a digest stands for them: nodes remember them with results."""
_NAME = 512
"""Letters of a name at most that is remembered without its numbers: whoever asks may give some as long as a
message."""
_TABLE = re.compile(r'columns (\{.*\}|sha256:[0-9a-f]{64}) of dataset ("(?:[^"\\]|\\.)*")')
_SOURCE = re.compile(r'column ("(?:[^"\\]|\\.)*") of dataset ("(?:[^"\\]|\\.)*")')


def numbered(name: str) -> str:
    """`name` without the numbers of its parts: `x/3` as `x/*`."""
    return _remembered(name) if len(name) <= _NAME else _NUMBER.sub(ANY, name)


@lru_cache(4096)
def _remembered(name: str) -> str:
    return _NUMBER.sub(ANY, name)


def output(graph: str, name: str) -> str:
    """The source: output `name` of the graph with the digest `graph`."""
    return f"{graph}:{numbered(name)}"


def column(dataset: str, name: str) -> str:
    """The source: rows of a column."""
    return f"column {json.dumps(name)} of dataset {json.dumps(dataset)}"


def every_row(source: str) -> str:
    """The source: all rows at once of what `table_source` says.

    A release of that is of no rows that a program chooses: a sum over one row would be its value, and of sums
    over a few the difference. A release of a source without it is of all rows as well.
    """
    return source + _EVERY_ROW


def any_rows(source: str) -> str:
    """The source without that it is of all rows at once."""
    return source.removesuffix(_EVERY_ROW)


def table_source(dataset: str, tensor: TensorRead, complete: Sequence[ColumnRead] = ()) -> str:
    """The source: a tensor of a dataset's rows, of those that have a value in each column of `complete`.

    One column by itself is what `column` says, whatever type it is read as. All else names all that the
    tensor tells of: which columns, their order, which categories, where values are filled in (not with
    what), by which columns rows were left out. A release is of exactly that. A long one is a digest.
    """
    told = _all_told(tensor.columns)
    if not complete and not tensor.presence and len(told) == 1 and isinstance(told[0], str):
        return column(dataset, told[0])
    of: dict[str, object] = {"columns": told}
    if complete:
        of["complete"] = _all_told(complete)
    if tensor.presence:
        of["presence"] = True
    text = json.dumps(of, sort_keys=True, separators=(",", ":"))
    if len(text) > _LONG:
        text = f"sha256:{sha256(text.encode()).hexdigest()}"
    return f"{_COLUMNS}{text} of dataset {json.dumps(dataset)}"


def _all_told(columns: Sequence[ColumnRead]) -> list[str | dict[str, object]]:
    """As a release says them: those of `*`, which follow each other, are `*`."""
    found: list[str | dict[str, object]] = []
    for alike, some in groupby(columns, lambda each: each.of_all):
        run = list(some)
        if alike:
            filled = any(each.constant is not None for each in run)
            run = [ColumnRead(ANY, constant=0.0 if filled else None)]
        found += map(_told, run)
    return found


def _told(each: ColumnRead) -> str | dict[str, object]:
    found: dict[str, object] = {"dataset": each.dataset} if each.dataset else {}
    if each.categories:
        found["categories"] = list(each.categories)
    if each.one_hot:
        found["one_hot"] = True
    if each.constant is not None:
        found["filled"] = True
    return {**found, "column": each.name} if found else each.name


def columns_of(source: str) -> tuple[tuple[str, str], ...]:
    """Dataset and column of each column that a source reads; none: it is no such source, or reads any."""
    source = any_rows(source)
    if match := _SOURCE.fullmatch(source):
        return ((json.loads(match[2]), json.loads(match[1])),)
    if not (match := _TABLE.fullmatch(source)) or match[1].startswith("sha256:"):
        return ()
    dataset, of = json.loads(match[2]), json.loads(match[1])
    told = [*of["columns"], *of.get("complete", ())]
    pairs = (
        (dataset, each) if isinstance(each, str) else (each.get("dataset", dataset), each["column"])
        for each in told
    )
    return tuple(dict.fromkeys((str(of_dataset), str(name)) for of_dataset, name in pairs))


def plain_columns(source: str) -> tuple[str, ...]:
    """The columns, as `column` gives them, whose values as they are a source has side by side; else none."""
    match = _TABLE.fullmatch(any_rows(source))
    if match is None or match[1].startswith("sha256:"):
        return ()
    of = json.loads(match[1])
    if of.keys() != {"columns"} or not all(isinstance(each, str) for each in of["columns"]):
        return ()
    return tuple(column(json.loads(match[2]), each) for each in of["columns"])


@dataclass(frozen=True)
class GraphRule:
    """Of one graph: what of private data each input may be (those left out: nothing), and what may leave."""

    inputs: Mapping[str, frozenset[str]]
    leaves: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Release:
    """`graphs`: by digest. Names in it are without numbers."""

    graphs: Mapping[str, GraphRule]

    @cached_property
    def text(self) -> str:
        """What its digest is of: JSON of one form for one release, ASCII."""
        graphs = {
            graph: {
                "inputs": {name: sorted(sources) for name, sources in rule.inputs.items()},
                "leaves": sorted(rule.leaves),
            }
            for graph, rule in self.graphs.items()
        }
        return json.dumps({"release": FORMAT, "graphs": graphs}, sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text, in hex."""
        return sha256(self.text.encode()).hexdigest()

    @classmethod
    def parse(cls, text: str) -> Release:
        """The release with that text, to the letter.

        Raises:
            InvalidArgument: it is none, or not in the one form.
        """
        if len(text) > MAX_TEXT:
            raise InvalidArgument(f"a release has at most {MAX_TEXT:,} characters; this has {len(text):,}")
        try:
            found = json.loads(text)
            graphs = {
                str(graph): GraphRule(
                    {str(name): frozenset(map(str, sources)) for name, sources in rule["inputs"].items()},
                    frozenset(map(str, rule["leaves"])),
                )
                for graph, rule in found["graphs"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InvalidArgument(f"{text[:80]!r} is no release") from None
        if not all(graph == ANY or _DIGEST.fullmatch(graph) for graph in graphs):
            raise InvalidArgument("a release names graphs by their SHA-256, 64 lower-case hex digits")
        release = cls(graphs)
        if release.text != text:
            raise InvalidArgument(
                "a release is written in one form: sorted, without spaces, in ASCII; this text is not"
            )
        return release

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it lets results be computed from, sorted."""
        sources = (s for rule in self.graphs.values() for each in rule.inputs.values() for s in each)
        return tuple(sorted({s for s in sources if s.startswith((_COLUMN, _COLUMNS)) or s == ANY_COLUMN}))

    def leaves(self, graph: str, name: str) -> bool:
        """Whether output `name` of `graph` is one that may leave, if all it was computed by is in here."""
        rule = self.graphs.get(graph)
        return rule is not None and (numbered(name) in rule.leaves or ANY in rule.leaves)

    def stranger(self, flow: Iterable[Edge]) -> Edge | None:
        """The first part of `flow`, by which something was computed, that is not in here; None: all is."""
        return next((edge for edge in sorted(flow) if not self._has(edge)), None)

    def _has(self, edge: Edge) -> bool:
        graph, name, source = edge
        rule = self.graphs.get(graph) or self.graphs.get(ANY)
        if rule is None:
            return False
        sources = rule.inputs.get(name, frozenset()) | rule.inputs.get(ANY, frozenset())
        if source in sources or any_rows(source) in sources:
            return True
        if source.startswith((_COLUMN, _COLUMNS)):
            plain = plain_columns(source)
            return ANY_COLUMN in sources or (bool(plain) and sources.issuperset(plain))
        made_by, colon, rest = source.partition(":")
        return bool(colon and _DIGEST.fullmatch(made_by) and f"{ANY}:{rest}" in sources)
