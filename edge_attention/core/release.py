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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from edge_attention.core.errors import InvalidArgument

__all__ = [
    "ANY",
    "ANY_COLUMN",
    "MAX_TEXT",
    "Edge",
    "GraphRule",
    "Release",
    "column",
    "column_of",
    "numbered",
    "output",
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
_SOURCE = re.compile(r'column ("(?:[^"\\]|\\.)*") of dataset ("(?:[^"\\]|\\.)*")')


def numbered(name: str) -> str:
    """`name` without the numbers of its parts: `x/3` as `x/*`."""
    return _NUMBER.sub(ANY, name)


def output(graph: str, name: str) -> str:
    """The source: output `name` of the graph with the digest `graph`."""
    return f"{graph}:{numbered(name)}"


def column(dataset: str, name: str) -> str:
    """The source: rows of a column."""
    return f"column {json.dumps(name)} of dataset {json.dumps(dataset)}"


def column_of(source: str) -> tuple[str, str] | None:
    """Dataset and column of a source that `column` gave; None of any other."""
    match = _SOURCE.fullmatch(source)
    return None if match is None else (json.loads(match[2]), json.loads(match[1]))


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
        return tuple(sorted({s for s in sources if s.startswith(_COLUMN) or s == ANY_COLUMN}))

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
        if source in sources:
            return True
        if source.startswith(_COLUMN):
            return ANY_COLUMN in sources
        made_by, colon, rest = source.partition(":")
        return bool(colon and _DIGEST.fullmatch(made_by) and f"{ANY}:{rest}" in sources)
