"""Plans by a word, without a planner: as many parts as nodes, in equal shares; and which node holds which.

replicate        each node has all of the model
batch, tokens,
heads            one stage, whose parts share an axis
layers           a stage a part, of layers with about as many bytes of weights each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.core.messages.inference import WORDS_OF_PLANS
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage

__all__ = ["GAIN", "Holders", "by_word", "even_layers", "plan_word", "spread"]

Holders = Mapping[int, tuple[str, ...]]
"""Part -> nodes that hold it, the one that is asked first in front."""

_CUTS = {"batch": Cut.BATCH, "tokens": Cut.TOKENS, "heads": Cut.HEADS}
MAX_REPLICAS = 64
GAIN = 1.1
"""A plan over several nodes is predicted to be so many times as quick as one node, or one node it is; and a
plan made anew so many times as quick as the one that serves, or that one goes on."""


def plan_word(plan: str) -> tuple[str, Crossing]:
    """What a word asks for: `tokens:switch` is tokens, and SWITCH.

    Raises:
        InvalidArgument: it is no such word.
    """
    word, colon, crossing = (plan or "auto").partition(":")
    known = [one.value for one in Crossing]
    if word not in WORDS_OF_PLANS or (colon and (word != "tokens" or crossing not in known)):
        raise InvalidArgument(
            f"plan {plan[:80]!r} is none; say {', '.join(WORDS_OF_PLANS)}, of tokens how they cross an "
            f"attention, too (tokens:{', tokens:'.join(known)}), or give a plan's file"
        )
    return word, Crossing(crossing) if crossing else Crossing.GATHER


def by_word(
    word: str,
    crossing: Crossing,
    nodes: Sequence[str],
    layer_bytes: Sequence[int],
    replicas: int = 0,
    *,
    halves: bool = False,
) -> tuple[CutPlan, Holders]:
    """The plan of a word other than auto for these nodes, and who holds what.

    Args:
        layer_bytes: of each layer's weights.
        replicas: nodes that hold each part; 0: one, of a model that is not cut all.

    Raises:
        FailedPrecondition: there are too few nodes.
    """
    if not nodes:
        raise FailedPrecondition("no node is here to hold the model; start one with edge-node")
    layers = range(len(layer_bytes))
    if word == "replicate":
        plan = CutPlan((Stage(layers, (0,)),), halves)
        return plan, spread(1, nodes, replicas or len(nodes))
    copies = max(replicas, 1)
    if copies > len(nodes):
        raise FailedPrecondition(
            f"{copies} replicas need {copies} nodes at least, and there are {len(nodes)}"
        )
    count = len(nodes) // copies
    if word == "layers":
        rows = even_layers(layer_bytes, count)
        plan = CutPlan(tuple(Stage(row, (part,)) for part, row in enumerate(rows)), halves)
    elif count == 1:
        plan = CutPlan((Stage(layers, (0,)),), halves)
    else:
        plan = CutPlan((Stage(layers, tuple(range(count)), _CUTS[word], crossing),), halves)
    return plan, spread(plan.parts, nodes, copies)


def spread(parts: int, nodes: Sequence[str], copies: int) -> Holders:
    """Each part at `copies` nodes: the first of each part at a node of its own while there are such.

    Raises:
        FailedPrecondition: there are fewer nodes than copies.
    """
    if not 1 <= copies <= min(len(nodes), MAX_REPLICAS):
        raise FailedPrecondition(
            f"{copies} nodes are to hold each part, and {len(nodes)} are here (at most {MAX_REPLICAS} do)"
        )
    found: dict[int, tuple[str, ...]] = {}
    for part in range(parts):
        found[part] = tuple(nodes[(part + copy * parts) % len(nodes)] for copy in range(copies))
        # Where copies of a part fall on one node, the next ones take them.
        if len(set(found[part])) < copies:
            found[part] = tuple(nodes[(part + copy) % len(nodes)] for copy in range(copies))
    return found


def even_layers(layer_bytes: Sequence[int], parts: int) -> tuple[range, ...]:
    """At most `parts` ranges of layers, of which the largest has as few bytes as can be."""
    parts = min(parts, len(layer_bytes))
    low, high = max(layer_bytes, default=0), sum(layer_bytes)
    while low < high:
        middle = (low + high) // 2
        if len(_filled(layer_bytes, middle)) <= parts:
            high = middle
        else:
            low = middle + 1
    rows = _filled(layer_bytes, low)
    # Layers of no weights may have left parts without any: the longest ranges are halved for them.
    while len(rows) < parts:
        at = max(range(len(rows)), key=lambda i: (len(rows[i]) > 1, sum(layer_bytes[j] for j in rows[i])))
        row = rows[at]
        middle = (row.start + row.stop) // 2
        rows[at : at + 1] = [range(row.start, middle), range(middle, row.stop)]
    return tuple(rows)


def _filled(layer_bytes: Sequence[int], most: int) -> list[range]:
    """Ranges of at most `most` bytes each, filled from the first layer on."""
    rows, start, size = [], 0, 0
    for layer, bytes in enumerate(layer_bytes):
        if layer > start and size + bytes > most:
            rows.append(range(start, layer))
            start, size = layer, 0
        size += bytes
    return [*rows, range(start, len(layer_bytes))]
