"""Plans by a word, without a planner: as many parts as nodes, in equal shares; and which node holds which.

replicate        each node has all of the model
batch, tokens,
heads            one stage, whose parts share an axis
layers           a stage a part, that take about as long each, on the node that is to do it
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.core.messages.inference import WORDS_OF_PLANS
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage

__all__ = ["GAIN", "Holders", "LayerSeconds", "by_word", "even_layers", "even_stages", "plan_word", "spread"]

Holders = Mapping[int, tuple[str, ...]]
"""Part -> nodes that hold it, the one that is asked first in front."""

_CUTS = {"batch": Cut.BATCH, "tokens": Cut.TOKENS, "heads": Cut.HEADS}
MAX_REPLICAS = 64
GAIN = 1.1
"""A plan over several nodes is predicted to be so many times as quick as one node, or one node it is; and a
plan made anew so many times as quick as the one that serves, or that one goes on."""


@dataclass(frozen=True)
class LayerSeconds:
    """What a node is predicted to take for each layer of a model.

    Attributes:
        seconds: by layer, as it was measured.
        stated: by layer, on a box of which only its threads are known.
        memory: bytes of weights that it has room for.
    """

    seconds: tuple[float, ...]
    stated: tuple[float, ...]
    memory: float = math.inf


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
    seconds: Mapping[str, LayerSeconds] | None = None,
) -> tuple[CutPlan, Holders]:
    """The plan of a word other than auto for these nodes, and who holds what.

    Args:
        layer_bytes: of each layer's weights.
        replicas: nodes that hold each part; 0: one, of a model that is not cut all.
        seconds: node -> what layers take there; None: nobody knows, and stages have about as many bytes.

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
        rows = _stages(nodes, count, copies, layer_bytes, seconds or {})
        plan = CutPlan(tuple(Stage(row, (part,)) for part, row in enumerate(rows)), halves)
    elif count == 1:
        plan = CutPlan((Stage(layers, (0,)),), halves)
    else:
        plan = CutPlan((Stage(layers, tuple(range(count)), _CUTS[word], crossing),), halves)
    return plan, spread(plan.parts, nodes, copies)


def _stages(
    nodes: Sequence[str],
    count: int,
    copies: int,
    layer_bytes: Sequence[int],
    seconds: Mapping[str, LayerSeconds],
) -> tuple[range, ...]:
    """The layers of each stage, of which there are `count` at most."""
    count = min(count, len(layer_bytes))
    if any(name not in seconds for name in nodes):
        return even_layers(layer_bytes, count)
    holders = spread(count, nodes, copies)
    held = [[seconds[name] for name in holders[part]] for part in range(count)]
    rooms = [min(one.memory for one in several) for several in held]
    measured = [[max(each) for each in zip(*(one.seconds for one in of), strict=True)] for of in held]
    stated = [[max(each) for each in zip(*(one.stated for one in of), strict=True)] for of in held]
    rows, alike = (even_stages(times, layer_bytes, rooms) for times in (measured, stated))
    if rows is None or alike is None:
        return even_layers(layer_bytes, count)
    # Measures of boxes that are alike differ by a few percent, too, and the same boxes get the same plan.
    return rows if GAIN * _longest(measured, rows) <= _longest(measured, alike) else alike


def _longest(seconds: Sequence[Sequence[float]], rows: Sequence[range]) -> float:
    return max(sum(times[layer] for layer in row) for times, row in zip(seconds, rows, strict=True))


def even_stages(
    seconds: Sequence[Sequence[float]], layer_bytes: Sequence[int], memory: Sequence[float]
) -> tuple[range, ...] | None:
    """A range of layers for each stage, so that the one that takes longest takes as little as can be.

    Args:
        seconds: by stage, what each layer takes there.
        memory: by stage, bytes of weights that fit.

    Returns:
        None where the layers do not fit so.
    """
    # best[n][j]: of n stages with the layers before j, what the longest takes; where the last begins.
    layers, stages = len(layer_bytes), len(seconds)
    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
    for stage in range(stages):
        found: dict[int, tuple[float, int]] = {}
        for start, (before, _) in best[-1].items():
            took, size = 0.0, 0
            for stop in range(start + 1, layers - (stages - stage - 1) + 1):
                took += seconds[stage][stop - 1]
                size += layer_bytes[stop - 1]
                if size > memory[stage]:
                    break
                longest = max(before, took)
                if stop not in found or longest < found[stop][0]:
                    found[stop] = longest, start
        best.append(found)
    if layers not in best[-1]:
        return None
    rows, stop = [], layers
    for stage in range(stages, 0, -1):
        start = best[stage][stop][1]
        rows.append(range(start, stop))
        stop = start
    return tuple(reversed(rows))


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
