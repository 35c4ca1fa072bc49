"""A model's file made ready to be judged: what is needed of it, with what is open decided, in float32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from onnx import ModelProto, TensorProto, ValueInfoProto

from edge_attention.graphs.models.decided import decide
from edge_attention.graphs.models.dimensions import RowShapes, bind_dimensions
from edge_attention.graphs.models.floats import to_float32
from edge_attention.graphs.models.value_specs import no_value
from edge_attention.graphs.onnx_file import all_nodes, keep, parse_needed
from edge_attention.graphs.reading import Wanted
from edge_attention.graphs.reading.needed import CutOff, reads

__all__ = ["ReadModel", "frozen_weights", "read_model", "whole_number_weights"]

# Whole numbers that stand for weights: int8 and what is smaller; int32 and int64 are sizes and places.
_QUANTIZED: dict[int, str] = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "uint4",
    TensorProto.FLOAT8E4M3FN: "float8",
    TensorProto.FLOAT8E4M3FNUZ: "float8",
    TensorProto.FLOAT8E5M2: "float8",
    TensorProto.FLOAT8E5M2FNUZ: "float8",
}


@dataclass(frozen=True)
class ReadModel:
    """`cut`: what of the file was not wanted. `dimensions`: sizes by name, of what was open.

    `notes`: what was done to it, for a person.
    """

    model: ModelProto
    cut: CutOff
    dimensions: dict[str, int]
    notes: tuple[str, ...]


def read_model(
    data: bytes,
    place: str,
    wanted: Wanted,
    dimensions: Mapping[str, int] | None = None,
    rows: RowShapes | None = None,
    head_of: str = "",
) -> ReadModel:
    """Read the ONNX file `data` as far as the values that `wanted` names need it.

    Cut off is what they do not need; an `If` or `Dropout` that constants decide is decided, symbolic
    dimensions of the inputs are bound (`bind_dimensions`), other floating-point types become float32.
    A wanted value inside the file is an output afterwards, whose type nothing declares; a wanted input stays.
    `head_of`: that of them which has to be made in the file.

    Raises InvalidGraph for a file that cannot be used, saying what to change.
    """
    names: list[str] = []

    def chosen(outputs: tuple[str, ...]) -> Collection[str]:
        names.extend(wanted(outputs))
        return names

    model, cut = parse_needed(data, place, chosen)
    graph = model.graph
    have = {value.name for value in graph.output}
    made = {name for node in graph.node for name in node.output}
    graph.output.extend(ValueInfoProto(name=n) for n in dict.fromkeys(names) if n in made - have)
    if head_of and head_of not in made:
        raise no_value(head_of, [*have, *cut.outputs], cut.values, place)
    constants = {tensor.name for tensor in graph.initializer}
    keep(graph.input, {value.name for value in graph.input} - constants)
    decide(model, keep=names)
    bound = bind_dimensions(graph, dimensions or {}, rows or {}, place)
    notes = []
    if was := to_float32(model):
        notes.append(f"the file is in {was}; it trains in float32")
    decide(model, shapes=True, keep=names)
    return ReadModel(model, cut, bound, tuple(notes))


def whole_number_weights(model: ModelProto) -> dict[str, str]:
    """Weights of the main graph in int8 and the like, which have no gradient: name to type."""
    read = {name for node in all_nodes(model.graph) for name in reads(node)}
    return {
        tensor.name: _QUANTIZED[tensor.data_type]
        for tensor in model.graph.initializer
        if tensor.data_type in _QUANTIZED and tensor.name in read and tensor.dims
    }


def frozen_weights(model: ModelProto, trained: Collection[str], named: bool) -> dict[str, str]:
    """Weights of the main graph that do not train, and why. `named`: the job names those that do."""
    quantized = whole_number_weights(model)
    found = {}
    read = {name for node in all_nodes(model.graph) for name in reads(node)}
    for tensor in model.graph.initializer:
        if tensor.name in trained or tensor.name not in read or not tensor.dims:
            continue
        if tensor.name in quantized:
            found[tensor.name] = f"{quantized[tensor.name]}, which has no gradient"
        elif tensor.data_type == TensorProto.FLOAT and list(tensor.dims) != [1]:
            found[tensor.name] = (
                "not among the job's parameters" if named else "a constant, by its use or values"
            )
    return found
