"""Parts that share the stored tokens of a decoder: each does all the model, and attends over those it stores.

Partials are merged after each attention, so that all parts go on with the same numbers; what none of them
attends for the first one does alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.schedule.pieces import AttentionPiece, GraphPiece, SegmentPieces
from edge_attention.core.schedule.schedule import (
    Boundary,
    Collective,
    Contributed,
    Delivery,
    Kept,
    ModelSegment,
    Schedule,
    Source,
    Step,
    TensorForm,
)

__all__ = ["shared_by_tokens"]


def shared_by_tokens(
    schedule: Schedule,
    whole: Mapping[str, SegmentPieces],
    parts: int,
    logits: str,
    attended: Sequence[TensorForm],
) -> tuple[Schedule, dict[str, SegmentPieces]]:
    """The schedule in which each part does all the model, and its pieces by graph.

    Args:
        schedule: of the model on one part.
        whole: its pieces, by graph.
        attended: the form of what each attention makes, in order.

    Raises:
        FailedPrecondition: the model is not one segment where it is whole.
    """
    if len(schedule.steps) != 1 or len(schedule.steps[0].segments) != 1:
        raise FailedPrecondition(
            "the model is not one segment where it is whole: it cannot be shared by tokens"
        )
    (segment,) = schedule.steps[0].segments
    boundaries: dict[str, Boundary] = {}
    steps: list[tuple[SegmentPieces, list[Contributed]]] = []
    graphs: list[GraphPiece] = []
    merged: dict[str, str] = {}
    last = schedule.results[logits]
    forms = iter(attended)
    pieces = whole[segment.graph]
    for number, piece in enumerate(pieces):
        match piece:
            case GraphPiece():
                graphs.append(piece)
                if number < len(pieces) - 1:
                    continue
                contributed = [c for c in segment.contributions if c.boundary == last]
                steps.append((tuple(graphs), contributed))
            case AttentionPiece(out=out, lse=lse):
                name, form = f"m{len(boundaries) // 2}", next(forms)
                boundaries[name] = Boundary(form, Collective.MERGE, f"{name}.lse")
                narrow = TensorForm(form.dtype, (*form.shape[:-1], 1))
                boundaries[f"{name}.lse"] = Boundary(narrow, Collective.MERGE)
                merged |= {out: name, lse: f"{name}.lse"}
                steps.append(((*graphs, piece), [Contributed(out, name), Contributed(lse, f"{name}.lse")]))
                graphs = []
    boundaries[last] = schedule.boundaries[last]
    return _scheduled(schedule, segment, steps, merged, boundaries, parts, logits)


def _scheduled(
    schedule: Schedule,
    segment: ModelSegment,
    steps: list[tuple[SegmentPieces, list[Contributed]]],
    merged: Mapping[str, str],
    boundaries: Mapping[str, Boundary],
    parts: int,
    logits: str,
) -> tuple[Schedule, dict[str, SegmentPieces]]:
    """`merged`: value that attention makes, or its lse -> the boundary where it is merged."""
    made_in: dict[str, int] = {}
    read_in: dict[str, list[int]] = {}
    for number, (pieces, _) in enumerate(steps):
        for piece in pieces:
            match piece:
                case GraphPiece(_, inputs, outputs):
                    for name in inputs.values():
                        read_in.setdefault(name, []).append(number)
                    made_in |= dict.fromkeys(outputs.values(), number)
                case AttentionPiece(queries, keys, values, bias=bias):
                    for name in filter(None, (queries, keys, values, bias)):
                        read_in.setdefault(name, []).append(number)
    found: list[Step] = []
    graphs, by_graph = {}, {}
    for number, (pieces, contributed) in enumerate(steps):
        sources: dict[str, Source] = {}
        for name, readers in read_in.items():
            if number not in readers or made_in.get(name) == number:
                continue
            if name in merged:
                sources[name] = Delivery(merged[name])
            elif name in made_in:
                sources[name] = Kept(name)
            else:
                sources[name] = segment.inputs[name]
        kept = {
            name: name
            for name, at in made_in.items()
            if at == number and any(reader > number for reader in read_in.get(name, ()))
        }
        graph = f"s{number}"
        graphs[graph], by_graph[graph] = _digest_of(pieces), pieces
        last = number == len(steps) - 1
        found.append(
            Step(
                tuple(
                    ModelSegment(part, graph, sources, kept, tuple(contributed))
                    for part in range(1 if last else parts)
                )
            )
        )
    whole = replace(
        schedule,
        parts=parts,
        results={logits: schedule.results[logits]},
        boundaries=dict(boundaries),
        steps=tuple(found),
        graphs=graphs,
    )
    whole.check()
    return whole, by_graph


def _digest_of(pieces: SegmentPieces) -> str:
    return next(piece.graph for piece in pieces if isinstance(piece, GraphPiece))
