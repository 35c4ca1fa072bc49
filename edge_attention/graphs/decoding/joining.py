"""Files of a decoder beside an encoder, as exporters write them, made one: a step, with its memory's side.

    decoder_model.onnx             ids, states -> logits, keys and values of ids and of states
    decoder_with_past_model.onnx   ids, keys and values of both -> logits, new keys and values
    decoder_model_merged.onnx      both in one file, which an If chooses between

Of the first one only what makes keys and values of the states is of use: it is put in front of the other one,
which took them as inputs. What comes of it is a decoder with a past that takes the states themselves:

    model.onnx      the graph
    weights.bin     the weights of both, once each, copied from file to file
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from edge_attention.core.errors import FailedPrecondition, InvalidGraph
from edge_attention.graphs.axes.model_reading import OpenModel, mapped, open_model
from edge_attention.graphs.decoding.input_sizes import read_sizes_off
from edge_attention.graphs.decoding.step_graph import ONE_GRAPH, StepGraph, both_in_one
from edge_attention.graphs.onnx_file import serialize
from edge_attention.graphs.reading.needed import reads

__all__ = ["branches_of", "joined_decoder", "pasts_of"]

_FIRST = "first/"


def joined_decoder(files: Sequence[Path], into: Path) -> OpenModel:
    """The decoder of these files, one or two, as one that takes the encoder's states and its own past.

    Args:
        into: a folder for what is made of several files, if any is.

    Raises:
        FailedPrecondition: the files are not of these kinds, or do not go together, with the remedy.
        InvalidGraph: one is no model.
    """
    opened = [open_model(file) for file in files]
    if len(opened) == 1:
        branches = branches_of(opened[0])
        if branches is None and not _lacking(opened[0]) and pasts_of(opened[0]):
            return opened[0]  # it makes keys and values of the states itself
        opened = list(branches or opened)
    steps = [one for one in opened if pasts_of(one)]
    firsts = [one for one in opened if not pasts_of(one)]
    if any(both_in_one(_given(one)) for one in opened):
        raise FailedPrecondition(f"the decoder's file is no decoder alone: {ONE_GRAPH}")
    if len(steps) != 1 or len(firsts) != 1:
        has = "keys and values of earlier tokens as inputs" if steps else "no past"
        raise FailedPrecondition(
            f"the decoder's {'files have' if len(opened) > 1 else 'file has'} {has}: bring two, without and "
            "with a past (decoder_model.onnx and decoder_with_past_model.onnx, as `optimum-cli export onnx "
            "--task ...-with-past` writes them), or the merged one"
        )
    return _write(_joined(firsts[0], steps[0]), into)


@dataclass(frozen=True, eq=False)
class _Joined:
    """A graph whose weights are in other files, by name: the model, and the weight's name there."""

    model: ModelProto
    weights: Mapping[str, tuple[OpenModel, str]]


def _given(opened: OpenModel) -> dict[str, int]:
    """Inputs that are no weights, by name: how many dimensions they have."""
    held = {tensor.name for tensor in opened.model.graph.initializer}
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in opened.model.graph.input
        if value.name not in held
    }


def pasts_of(opened: OpenModel) -> list[str]:
    """The inputs of four dimensions: keys and values of earlier tokens, or of what an encoder made."""
    return [name for name, rank in _given(opened).items() if rank == 4]


def _lacking(opened: OpenModel) -> list[str]:
    """Pasts that nothing new is joined to: keys and values of the states."""
    pasts, grown = pasts_of(opened), set()
    for node in opened.model.graph.node:
        if node.op_type == "Concat" and node.input[0] in pasts:
            grown.add(node.input[0])
        if node.op_type == "GroupQueryAttention":
            grown.update(pasts)
    return [name for name in pasts if name not in grown]


# --- two graphs in one file -------------------------------------------------------------------------


def branches_of(opened: OpenModel) -> tuple[OpenModel, OpenModel] | None:
    """The two models that an If on an input chooses between; None: it is not of that kind."""
    nodes = list(opened.model.graph.node)
    chooses = [node for node in nodes if node.op_type == "If"]
    outputs = [value.name for value in opened.model.graph.output]
    if len(chooses) != 1 or not set(outputs) <= set(chooses[0].output):
        return None
    inner = {a.name: a.g for a in chooses[0].attribute if a.type == AttributeProto.GRAPH}
    if set(inner) != {"then_branch", "else_branch"}:
        return None
    found = []
    for branch in inner.values():
        model = ModelProto()
        model.CopyFrom(opened.model)
        graph = model.graph
        before = [node for node in nodes if node is not chooses[0]]
        called = dict(zip((value.name for value in branch.output), chooses[0].output, strict=True))
        # What a branch gives is called as the file's output: by a node, as it may be an input passed on.
        ends = [
            helper.make_node("Identity", [name], [outer], name=outer)
            for name, outer in called.items()
            if outer in outputs and name != outer
        ]
        clash = {name for node in branch.node for name in node.output} & {
            *outputs, *(name for node in before for name in node.output)
        } - {name for name, outer in called.items() if name == outer}  # fmt: skip
        if clash:
            raise FailedPrecondition(
                f"{sorted(clash)[0][:80]!r} is the name of two values of the merged file: bring the two "
                "files that it was merged of"
            )
        del graph.node[:]
        graph.node.extend([*before, *branch.node, *ends])
        graph.initializer.extend(branch.initializer)
        read = {name for node in graph.node for name in reads(node)} | set(called)
        kept = [value for value in graph.input if value.name in read]
        del graph.input[:]
        graph.input.extend(kept)
        del graph.value_info[:]
        found.append(OpenModel(opened.path, model, opened.places))
    return found[0], found[1]


# --- two files --------------------------------------------------------------------------------------


def _joined(first: OpenModel, step: OpenModel) -> _Joined:
    front, back = StepGraph.of(first), StepGraph.of(step)
    back.prune(back.outputs)
    back_model = OpenModel(step.path, back.model, step.places)
    lacking = {name for node in back.nodes for name in reads(node)} & set(_lacking(_with_nodes(back)))
    made = {name: _same(name, front.outputs) for name in sorted(lacking)}
    states = [name for name, value in front.inputs.items() if len(value.type.tensor_type.shape.dim) == 3]
    if len(states) == 1:
        read_sizes_off(front, states[0], made.values())
    nodes = front.before(made.values())
    inputs = dict(back.inputs)
    read = {name for node in nodes for name in reads(node)}
    if len(states) != 1 or states[0] not in read:
        raise FailedPrecondition(
            "the decoder's first file must make keys and values of one input [batch, tokens, width], what "
            f"the encoder made; it takes {', '.join(front.inputs)[:160]}"
        )
    for name, value in front.inputs.items():
        if name in read:
            inputs.setdefault(name, value)
    if unknown := sorted((read & set(front.inputs)) - {states[0], *back.inputs}):
        raise FailedPrecondition(
            f"keys and values of what the encoder made need {unknown[0][:80]!r}, too, which later steps lack"
        )
    _require_alike(first.model, step.model)
    local = {name for node in nodes for name in node.output if name}
    names = {name: _FIRST + name for name in (*local, *front.initializers)}
    model = ModelProto()
    model.CopyFrom(back.model)
    graph = model.graph
    del graph.node[:]
    graph.node.extend(_renamed(node, names) for node in nodes)
    for past, name in made.items():
        graph.node.append(helper.make_node("Identity", [names[name]], [past], name=past))
    graph.node.extend(back.nodes)
    del graph.input[:]
    graph.input.extend(value for name, value in inputs.items() if name not in made)
    tensors = [tensor for tensor in front.model.graph.initializer if tensor.name in read]
    weights = {name: (back_model, name) for name in step.places}
    weights |= {_FIRST + name: (first, name) for name in first.places if name in read}
    for tensor in tensors:
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = _FIRST + tensor.name
    del graph.value_info[:]
    needed = {name for node in graph.node for name in reads(node)}
    kept = [tensor for tensor in graph.initializer if tensor.name in needed]
    copies = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)
    return _Joined(model, {name: place for name, place in weights.items() if name in needed})


def _with_nodes(graph: StepGraph) -> OpenModel:
    model = ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:]
    model.graph.node.extend(graph.nodes)
    return OpenModel(graph.opened.path, model, graph.opened.places)


def _same(past: str, outputs: list[str]) -> str:
    """What the first step calls it."""
    for name in (past.replace("past_key_values", "present"), past.replace("past", "present"), past):
        if name in outputs:
            return name
    raise FailedPrecondition(
        f"the decoder takes {past[:80]!r}, keys or values of what the encoder made, and its first file does "
        f"not give it: its outputs are {', '.join(outputs)[:160]}"
    )


def _require_alike(first: ModelProto, step: ModelProto) -> None:
    one, two = ({o.domain: o.version for o in model.opset_import} for model in (first, step))
    for domain in sorted(one.keys() & two.keys()):
        if one[domain] != two[domain]:
            raise FailedPrecondition(
                f"the decoder's files are of opsets {one[domain]} and {two[domain]}: export them together"
            )


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        raise FailedPrecondition(
            f"{node.op_type} {node.name[:80]!r} has graphs inside, and makes keys or values of what the "
            "encoder made: export the decoder without"
        )
    copy = NodeProto()
    copy.CopyFrom(node)
    for field in (copy.input, copy.output):
        for position, name in enumerate(field):
            field[position] = names.get(name, name)
    copy.name = _FIRST + node.name if node.name else ""
    return copy


def _write(joined: _Joined, into: Path) -> OpenModel:
    """The graph and its weights as files; weights are copied one at a time, through the system's cache."""
    into.mkdir(parents=True, exist_ok=True)
    at = 0
    with (into / "weights.bin").open("wb") as file:
        for tensor in joined.model.graph.initializer:
            source = joined.weights.get(tensor.name)
            if source is None:
                continue
            opened, name = source
            place = opened.places[name]
            file.seek(at)
            mapped(opened.path, place).tofile(file)
            tensor.data_location = TensorProto.EXTERNAL
            del tensor.external_data[:]
            said = {"location": "weights.bin", "offset": at, "length": place.nbytes}
            for key, value in said.items():
                tensor.external_data.add(key=key, value=str(value))
            at = -(-(at + place.nbytes) // 64) * 64
        # Nobody has a digest of these: what a power cut left half written would be taken for weights.
        file.flush()
        os.fsync(file.fileno())
    path = into / "model.onnx"
    try:
        path.write_bytes(serialize(joined.model))
    except ValueError as error:
        raise InvalidGraph(f"the decoder's two files do not make one: {error}") from None
    return open_model(path)
