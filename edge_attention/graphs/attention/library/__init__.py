"""The attention graphs as committed bytes, so that their digests are the same on every machine.

A node reads them from here and needs no `onnx`; `python -m edge_attention.graphs.attention.library_build`
writes them from `edge_attention.graphs.attention.build`.

    session = onnxruntime.InferenceSession(load(forward_graph(queries=1, group=1)))
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib import resources
from types import MappingProxyType

from edge_attention.core.errors import NotFound
from edge_attention.core.release import ANY, ANY_COLUMN, GraphRule, Release, output

__all__ = ["RELEASES", "TILE", "digest", "forward_graph", "load", "names", "release"]

# Tokens a tile of a stored context holds, unless a job says otherwise.
TILE = 512

# Rows of one key head's product (queries times query heads a key head) up to which doing all tiles at
# once beats doing them in order; measured by `benchmarks.kernel`.
_DECODE_ROWS = 16

# What an operator lets leave by allowing a release by name: results and sums over tokens; never
# what is laid out by token in the store's own order (p, dkeys, dvalues).
RELEASES: Mapping[str, Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "attention": MappingProxyType(
            {
                "attention_backward": frozenset({"dq"}),
                "attention_batch_backward": frozenset({"dq"}),
                "attention_batch_forward": frozenset({"out", "lse"}),
                "attention_decode": frozenset({"out", "lse"}),
                "attention_lse": frozenset({"lse"}),
                "attention_prefill": frozenset({"out", "lse"}),
                "attention_scores": frozenset({"lse"}),
                "attention_values": frozenset({"out"}),
                "attention_weights": frozenset({"weights"}),
                "segment_summary": frozenset({"key_norm", "value_min", "value_max"}),
            }
        )
    }
)


@cache
def names() -> tuple[str, ...]:
    """The names of all graphs, sorted."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".onnx") for name in files if name.endswith(".onnx")))


@cache
def load(name: str) -> bytes:
    """The graph called `name`, the bytes of an ONNX file. Raises NotFound for a name not in `names()`."""
    if name not in names():
        raise NotFound(f"There is no graph {name!r} in the library; it has {', '.join(names())}.")
    return resources.files(__name__).joinpath(f"{name}.onnx").read_bytes()


@cache
def digest(name: str) -> str:
    """SHA-256 of `load(name)`, in hex: what a program calls the graph by. Raises NotFound."""
    return sha256(load(name)).hexdigest()


@cache
def release(name: str, encoder: str = ANY) -> Release:
    """The release called `name`: outputs that may leave a node that allows it, and where they come from.

    Keys and values are the outputs `keys` and `values` of the graph `encoder` (its digest; `*`: of any
    graph), which has computed them from rows of datasets and nothing else that is private; or sequences of
    such. Queries and what masks them are never private. Who may send any encoder may send one that copies
    rows.

    Raises NotFound for a name not in `RELEASES`.
    """
    if name not in RELEASES:
        raise NotFound(f"There is no release {name!r}; this version has {', '.join(sorted(RELEASES))}.")
    stored = {each: frozenset({f"{encoder}:{each}"}) for each in ("keys", "values")}
    scores = {"p": frozenset({output(digest("attention_scores"), "p")})}
    graphs = {
        digest(graph): GraphRule({**stored, **scores}, leaves) for graph, leaves in RELEASES[name].items()
    }
    return Release({**graphs, encoder: GraphRule({ANY: frozenset({ANY_COLUMN})})})


def forward_graph(queries: int, group: int) -> str:
    """The faster forward graph for `queries` queries with `group` = Hq // Hk query heads a key head."""
    return "attention_decode" if queries * group <= _DECODE_ROWS else "attention_prefill"
