"""Attention over a past in plain operators: where it is in a file.

A core is what lies between the keys and values, joined with those of earlier tokens, and what comes of them:

    past, new ──> Concat ──> keys ───┐
    queries ─────────────────────────┼──> ... ──> scores ... softmax ... ──> out
    past, new ──> Concat ──> values ─┘

What exporters write in there is of many kinds: scales before or behind the product, masks made of ranges or
looked up in tables, repeated heads, an operator of its own. So it is not read but tried (`core_forms.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from onnx import NodeProto

from edge_attention.core.errors import FailedPrecondition
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.decoding.numbers_fed import MEMORY
from edge_attention.graphs.decoding.step_graph import BESIDE, DecoderInputs, StepGraph, label
from edge_attention.graphs.decoding.written_pasts import WrittenPast, written_pasts
from edge_attention.graphs.reading.needed import reads

__all__ = ["AttentionCore", "cores_of", "memory_cores_of"]

_LAYOUT = frozenset({"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True, eq=False)
class AttentionCore:
    """One attention of a file.

    Attributes:
        queries: what its queries are, as it is given them.
        new_keys, new_values: what is joined with the past.
        keys, values: joined.
        node: the one that makes `out`.
        widths: of a key and of a value.
        memory: keys and values are of what an encoder made, and nothing is joined.
        tokens: of the memory, where the file fixes how many there are; else 0.
        along: the axes of joined keys and values that have tokens; heads come before widths.
        laid: how keys and values lie that are written in their pasts; (): they are joined.
    """

    queries: str
    new_keys: str
    new_values: str
    keys: str
    values: str
    node: NodeProto
    groups: int
    widths: tuple[int, int]
    memory: bool = False
    tokens: int = 0
    along: tuple[int, int] = (2, 2)
    laid: tuple[WrittenPast, ...] = ()

    @property
    def out(self) -> str:
        return str(self.node.output[0])


def cores_of(graph: StepGraph, inputs: DecoderInputs) -> list[AttentionCore]:
    """The attentions whose past is joined by a Concat, or written in, in order.

    Raises:
        FailedPrecondition: a past is used in a way that is not known here.
    """
    written = written_pasts(graph, inputs)
    joined = _joined(graph, inputs) | {name: (one.past, one.new) for name, one in written.items()}
    cores = [_core(graph, inputs, node, pair) for node, pair in _pairs(graph, joined)]
    cores = [replace(c, laid=(written[c.keys], written[c.values])) if c.keys in written else c for c in cores]
    return [replace(core, node=_guarded(graph, inputs, core.node)) for core in cores]


def _guarded(graph: StepGraph, inputs: DecoderInputs, node: NodeProto) -> NodeProto:
    """The last of the nodes behind `node` that make something of it and of the mask or the past's length:
    some files have zeros where a row sees nothing."""
    tokens = graph.behind([inputs.ids])
    aside = {name for name in (inputs.mask, *inputs.pasts) if name}
    for one in graph.nodes:
        if reads(one) & aside and not tokens.intersection(one.output):
            aside.update(one.output)
    at, ends = node, set(graph.outputs)
    while at.output[0] not in ends:
        readers = [one for one in graph.nodes if at.output[0] in reads(one)]
        if len(readers) != 1 or len(readers[0].output) != 1:
            break
        beside = reads(readers[0]) - {at.output[0]}
        guards = bool(beside & aside) and not beside & tokens
        if not guards and readers[0].op_type not in _LAYOUT:
            break
        at = readers[0]
        node = at if guards else node
    return node


def memory_cores_of(graph: StepGraph, inputs: DecoderInputs, bound: BoundGraph) -> list[AttentionCore]:
    """The attentions over what an encoder made: their keys and values are of it alone.

    Raises FailedPrecondition: what is made of it is used in another way.
    """
    found = memory_values(graph, inputs, bound)
    fixed = graph.shape(inputs.states)[1]
    cores = []
    for node, pair in _pairs(graph, {name: (name, name) for name in found}):
        core = _core(graph, inputs, node, pair, {name: bound.shape(name) for name in pair})
        cores.append(replace(core, memory=True, tokens=fixed))
    return cores


def memory_values(graph: StepGraph, inputs: DecoderInputs, bound: BoundGraph) -> list[str]:
    """The keys and values of what an encoder made, each [1, heads, tokens, width], in order.

    They are the last of that form before tokens meet them.
    """
    made, tokens = graph.behind([inputs.states]), graph.behind([inputs.ids])
    makers = graph.makers()
    found: dict[str, None] = {}
    for node in graph.nodes:
        if not tokens.intersection(node.output):
            continue
        for name in sorted(reads(node) & made - tokens):
            at = name
            while not _is_memory(at, graph.shape(inputs.states)[1] or MEMORY, bound):
                maker = makers.get(at)
                before = sorted(reads(maker) & made) if maker is not None else []
                if len(before) != 1:
                    raise FailedPrecondition(
                        f"{label(node)}: {name[:80]!r} is of what the encoder made, and no keys or values "
                        "[batch, heads, tokens, width] are found that it is made of"
                    )
                at = before[0]
            found[at] = None
    return list(found)


def _is_memory(name: str, tokens: int, bound: BoundGraph) -> bool:
    shape = bound.specs[name].shape if name in bound.specs else ()
    return len(shape) == 4 and shape[0] == 1 and shape[2] == tokens


def _pairs(
    graph: StepGraph, joined: Mapping[str, tuple[str, str]]
) -> list[tuple[NodeProto, dict[str, tuple[str, str]]]]:
    """Of keys and values, which go together, and the node where they meet."""
    order = {name: at for at, node in enumerate(graph.nodes) for name in node.output if name}
    after = {name: graph.behind([name]) for name in joined}
    found = []
    left = sorted(joined, key=order.__getitem__)
    while left:
        one = left.pop(0)
        makers = [
            (min((order[n] for n in after[one] & after[two] if n not in joined), default=math.inf), two)
            for two in left
        ]
        at, two = min(makers, default=(math.inf, ""))
        if not two or at == math.inf:
            raise FailedPrecondition(f"what {joined[one][0][:80]!r} is for is not known: nothing meets it")
        left.remove(two)
        found.append((graph.nodes[int(at)], {one: joined[one], two: joined[two]}))
    return found


def _joined(graph: StepGraph, inputs: DecoderInputs) -> dict[str, tuple[str, str]]:
    """By joined value the past, and what is new."""
    found: dict[str, tuple[str, str]] = {}
    for node in graph.nodes:
        for past in reads(node) & set(inputs.pasts) - graph.written:
            if node.op_type == "Shape":
                continue
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0) % 4
            plain = node.op_type == "Concat" and not node.domain and list(node.input)[:1] == [past]
            if not plain or axis not in (1, 2, 3) or len(node.input) != 2:
                of_encoder = any("encoder" in name.replace("decoder", "") for name in inputs.pasts)
                beside = f"; {BESIDE}" if of_encoder else ""
                raise FailedPrecondition(
                    f"{label(node)} takes the past {past[:80]!r}: only pasts that new keys and values are "
                    f"joined to by a Concat over tokens, or that GroupQueryAttention takes, are known{beside}"
                )
            found[node.output[0]] = past, node.input[1]
    return found


def _core(
    graph: StepGraph,
    inputs: DecoderInputs,
    node: NodeProto,
    joined: dict[str, tuple[str, str]],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> AttentionCore:
    """The core that ends in `node`: which of the two are keys is told by which meets the queries."""
    tokens = graph.behind([inputs.ids])
    inside = graph.behind(joined)
    queries: dict[str, NodeProto] = {}
    for one in graph.before(node.output, joined):
        if not inside.intersection(one.output):
            continue
        for name in reads(one) & tokens - inside - set(joined):
            queries[name] = one
    if len(queries) != 1:
        raise FailedPrecondition(
            f"{label(node)}: {len(queries)} values of new tokens meet keys and values where queries are one"
        )
    ((query, first),) = queries.items()
    by_keys = [name for name in joined if graph.behind([name]).intersection(first.output)]
    if len(by_keys) == 2:  # one operator does all of it: keys come before values
        after = {name: graph.behind([name]) for name in joined}
        by_keys = [name for one in first.input for name in joined if one in after[name]][:1]
    if len(by_keys) != 1:
        raise FailedPrecondition(f"{label(node)}: which of its pasts are keys is not known")
    keys = by_keys[0]
    values = next(name for name in joined if name != keys)
    along = tuple(2 if shapes is not None else inputs.along[joined[name][0]] for name in (keys, values))
    past_keys, past_values = (
        [
            size
            for axis, size in enumerate(graph.shape(joined[name][0]) if shapes is None else shapes[name])
            if axis not in (0, tokens_axis)
        ]
        for name, tokens_axis in zip((keys, values), along, strict=True)
    )
    (groups, key_width), (value_groups, value_width) = past_keys, past_values
    if not (groups and key_width and value_width) or groups != value_groups:
        past = joined[keys][0][:80]
        raise FailedPrecondition(f"the past {past!r} does not say its heads and their width")
    return AttentionCore(
        query, joined[keys][1], joined[values][1], keys, values, node, groups, (key_width, value_width),
        along=(along[0], along[1]),
    )  # fmt: skip
