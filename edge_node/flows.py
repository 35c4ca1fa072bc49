"""By what private tensors were computed: found once for tasks that are alike, as those of a round.

A round asks of each node the same but for rows, and the next round again: the inputs of a graph have equal
origins then, and so has what it makes of them. Equal ones are one object here, so that what follows of an
origin (its size, what may leave) is looked up and not found again. Of values nothing in here depends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from edge_attention.core.release import Edge, numbered
from edge_node.store.held import Held
from edge_node.store.origin import Origin, bounded

__all__ = ["flow_of", "origin_of_rows", "origins_of"]

KEPT = 64
"""Of each kind that are remembered; of more those asked for longest ago are found again."""
LETTERS, FLOWS = 16 * 1024, 256 * 1024
"""Of the names of one that is remembered, and bytes of the flows of its inputs."""

_Private = tuple[tuple[str, Origin], ...]


def flow_of(graph: str, inputs: Mapping[str, Held]) -> frozenset[Edge] | None:
    """By what outputs of `graph` are computed from `inputs`; None: of one of them that is not known."""
    private = tuple([(name, held.origin) for name, held in inputs.items() if held.origin is not None])
    few = sum([origin.size for _, origin in private]) <= FLOWS and _short(name for name, _ in private)
    return (_kept_flow if few else _flow)(graph, private)


def origins_of(graph: str, outputs: Iterable[str], flow: frozenset[Edge] | None) -> Mapping[str, Origin]:
    """Of `outputs` of `graph`, by name, which are computed by `flow`."""
    names = tuple(outputs)
    return (_kept_origins if _short(names) else _origins)(graph, names, flow)


def origin_of_rows(source: str, chosen: bool) -> Origin:
    """Of rows of a dataset, which are `source`; `chosen`: private data has chosen which."""
    return _kept_rows(source, chosen) if len(source) <= LETTERS else _rows(source, chosen)


def _short(names: Iterable[str]) -> bool:
    return sum(map(len, names)) <= LETTERS


def _flow(graph: str, private: _Private) -> frozenset[Edge] | None:
    flows = dict[int, frozenset[Edge]]()
    edges = set[Edge]()
    for name, origin in private:
        if (flow := origin.flow) is None:
            return None
        flows[id(flow)] = flow  # most are one and the same
        edges.add((graph, numbered(name), origin.source))
    return bounded(frozenset(edges.union(*flows.values())))


def _origins(graph: str, outputs: tuple[str, ...], flow: frozenset[Edge] | None) -> Mapping[str, Origin]:
    return {output: Origin(graph, output, flow=flow) for output in outputs}


def _rows(source: str, chosen: bool) -> Origin:
    # Rows that private data chose tell of it: no release is of them.
    return Origin("", source, chosen, None if chosen else frozenset())


_kept_flow = lru_cache(KEPT)(_flow)
_kept_origins = lru_cache(KEPT)(_origins)
_kept_rows = lru_cache(KEPT)(_rows)
