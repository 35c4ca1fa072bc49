"""One graph of what ends a token and begins the next: nodes that go ahead run it where they would run three.

    last ──> logits ──> the likeliest ──> token ──> first ──> queries, keys, values

It has the operators of all three and no others, so it computes the same bits; what it spares is two runs, one
of them in a process of its own (aggregator/inference/decoding/ahead.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256

from onnx import AttributeProto, ModelProto, helper

from edge_attention.core.schedule.pieces import NEXT, TOKEN, EndsJoined, GraphPiece, SegmentPieces
from edge_attention.core.schedule.schedule import ModelInput, ModelSegment, Schedule, ending_output
from edge_attention.graphs.onnx_file import rename_values, serialize

__all__ = ["join_ends"]


def join_ends(
    schedule: Schedule,
    pieces: Mapping[str, SegmentPieces],
    graphs: Mapping[str, bytes],
    ids: str,
    logits: str,
) -> tuple[EndsJoined, dict[str, bytes]]:
    """By the graphs of a last and a first piece, the graph of both; and its file, by digest.

    Args:
        graphs: of all pieces, by digest.
        ids, logits: the model's input that takes tokens, and its output.

    Of parts that do not both end and begin a token, and where a graph is of a form not known here, none.
    """
    joined: EndsJoined = {}
    files: dict[str, bytes] = {}
    begins = {segment.part: segment for segment in schedule.steps[0].segments}
    for segment in schedule.steps[-1].segments:
        first, output = begins.get(segment.part), ending_output(segment, schedule.results[logits])
        ends = pieces[segment.graph]
        if first is None or not output or len(ends) != 1:
            continue
        last, begin = ends[0], next(iter(_of_tokens(pieces[first.graph])), None)
        if not (isinstance(last, GraphPiece) and isinstance(begin, GraphPiece)):
            continue
        if (last.graph, begin.graph) in joined:
            continue
        made = [name for name, of in last.outputs.items() if of == output]
        tokens = _inputs_of(begin, first, ids)
        if len(made) != 1 or not tokens:
            continue
        data = _joined(graphs[last.graph], made[0], graphs[begin.graph], tokens)
        if data is not None:
            digest = sha256(data).hexdigest()
            joined[last.graph, begin.graph] = digest
            files[digest] = data
    return joined, files


def _of_tokens(pieces: SegmentPieces) -> SegmentPieces:
    """Those that run for tokens: an attention does in any case."""
    return tuple(one for one in pieces if not (isinstance(one, GraphPiece) and one.memory))


def _inputs_of(piece: GraphPiece, segment: ModelSegment, ids: str) -> list[str]:
    """The graph's inputs that take tokens."""
    sources = segment.inputs
    return [
        name
        for name, of in piece.inputs.items()
        if isinstance(source := sources.get(of), ModelInput) and source == ModelInput(ids)
    ]


def _joined(last: bytes, logits: str, first: bytes, tokens: Sequence[str]) -> bytes | None:
    """The file of both graphs, or None. `tokens`: inputs of `first` that take what is likeliest."""
    one, other = ModelProto.FromString(last), ModelProto.FromString(first)
    versions = {opset.domain: opset.version for opset in one.opset_import}
    for opset in other.opset_import:
        if versions.setdefault(opset.domain, opset.version) != opset.version:
            return None
    values = _values(one)
    if any(name.startswith(TOKEN) for name in values) or _has_more(one) or _has_more(other):
        return None
    renamed = {name: NEXT + name for name in _values(other)} | dict.fromkeys(tokens, TOKEN)
    rename_values(other.graph, renamed)
    for node in other.graph.node:
        node.name = ""
    graph = one.graph
    # As graphs/attention/likeliest.py: of logits [N, 1, V] the tokens, int64 [N, 1].
    graph.node.append(helper.make_node("ArgMax", [logits], [TOKEN], axis=2, keepdims=0))
    graph.node.extend(other.graph.node)
    graph.initializer.extend(other.graph.initializer)
    graph.input.extend(value for value in other.graph.input if value.name != TOKEN)
    token = next(value for value in other.graph.input if value.name == TOKEN)
    graph.output.append(token)
    graph.output.extend(other.graph.output)
    del graph.value_info[:]
    del one.opset_import[:]
    one.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    one.ir_version = max(one.ir_version, other.ir_version)
    return serialize(one)


def _values(model: ModelProto) -> set[str]:
    """The names of all values of the graph."""
    graph = model.graph
    found = {value.name for value in (*graph.input, *graph.output)}
    found.update(tensor.name for tensor in graph.initializer)
    for node in graph.node:
        found.update(_named(node.input), _named(node.output))
    return found


def _named(names: Collection[str]) -> set[str]:
    return {name for name in names if name}


def _has_more(model: ModelProto) -> bool:
    """Whether there is more in it than operators on values: graphs inside nodes, functions."""
    inside = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    return bool(model.functions) or any(
        attribute.type in inside for node in model.graph.node for attribute in node.attribute
    )
