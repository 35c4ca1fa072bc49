"""A trained fusion model as one ONNX file: encoders, attention over all their tokens, and the head.

    a/x, b/x, ...  -> encoder a, encoder b, ... -> keys, values [B, T, Hk, d]
    queries [N, Hq, dk]                         -> fused [B, N, Hq, dv] -> the head -> logits, ...

Of the head there is what needs no labels: its loss, and metrics, are for training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, compose, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.onnx_builder import IR_VERSION, OPSET
from edge_attention.graphs.onnx_file import keep, opset_of, prune, raise_opset, serialize
from edge_attention.graphs.reading.needed import reads

__all__ = ["PRESENT", "TrainedPart", "fused_onnx", "head_onnx"]

PRESENT = "present"
"""`<node>/present`, float32 [B]: 0 where a sample lacks what the node has, where samples may."""
_LOWEST = np.float32(-3e38)
"""Added to scores of tokens that a sample has not: so far below others that their weights are 0."""
_INNER = "/attention/"
"""No node has an empty name."""


@dataclass(frozen=True, eq=False)
class TrainedPart:
    """A part of the model: its ONNX file, whose parameters are inputs, and their values. `labels`: of a head,
    the inputs that say what is right."""

    forward: bytes
    values: Mapping[str, NDArray[np.float32]]
    labels: tuple[str, ...] = ()


def fused_onnx(
    encoders: Mapping[str, TrainedPart],
    head: TrainedPart,
    queries: NDArray[np.float32],
    scale: float,
    absent: bool,
) -> bytes:
    """The model of `encoders` (by node), of attention of `queries` [N, Hq, dk] times `scale`, and of `head`.

    Inputs: `<node>/<input>`, float32 and so on [B, ...]; with `absent` `<node>/present` float32 [B], too.
    Outputs: the head's that need no labels, by their names in its file.

    Raises:
        InvalidGraph: the head has none; or parts cannot be one graph.
    """
    models = {node: _filled(part, f"encoder {node!r}") for node, part in encoders.items()}
    top = _answering(head)
    kinds = [*models.values(), top]
    whole = helper.make_model(
        helper.make_graph([], "fused_model", [], []),
        opset_imports=_imports(kinds),
        ir_version=max(IR_VERSION, *(model.ir_version for model in kinds)),
        producer_name="edge-attention",
    )
    graph = whole.graph
    shapes = {}
    for node, model in models.items():
        shapes[node] = _shapes(model)
        _join(graph, model, f"{node}/")
    if absent:
        graph.input.extend(
            helper.make_tensor_value_info(f"{node}/{PRESENT}", TensorProto.FLOAT, ["batch"])
            for node in models
        )
    _attend(graph, shapes, queries, scale, absent)
    _join(graph, top, "head/", bridged="fused")
    for value in top.graph.output:
        graph.output.append(value)
        graph.node.append(helper.make_node("Identity", [f"head/{value.name}"], [value.name]))
    try:
        onnx.checker.check_model(whole)
    except onnx.checker.ValidationError as error:
        raise InvalidGraph(f"the parts do not make one model: {error}") from error
    return serialize(whole)


def head_onnx(head: TrainedPart) -> bytes:
    """Of the head alone what needs no labels: input `fused` [B, N, Hq, dv].

    Raises:
        InvalidGraph: nothing does.
    """
    return serialize(_answering(head))


def _filled(part: TrainedPart, place: str) -> ModelProto:
    """With its parameters in it, in an opset that all parts may have."""
    model = onnx.load_model_from_string(part.forward)
    if opset_of(model) < OPSET:
        model = raise_opset(model, place)
    keep(model.graph.input, {value.name for value in model.graph.input} - part.values.keys())
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, order="C"), name) for name, value in part.values.items()
    )
    return model


def _answering(head: TrainedPart) -> ModelProto:
    """The head with its parameters in it, and of its outputs those that need no labels."""
    model = _filled(head, "head")
    told = set(head.labels)
    for node in model.graph.node:
        if reads(node) & told:
            told.update(node.output)
    free = {value.name for value in model.graph.output} - told
    if not free:
        raise InvalidGraph(
            "the head has no output that needs no labels, so it says nothing of samples without any: give it "
            "one, as the logits, beside its loss"
        )
    keep(model.graph.output, free)
    prune(model.graph)
    if [value.name for value in model.graph.input] != ["fused"]:
        raise InvalidGraph("the head's outputs without labels do not come from `fused`")
    return model


def _imports(models: list[ModelProto]) -> list[onnx.OperatorSetIdProto]:
    versions: dict[str, int] = {"": max(opset_of(model) for model in models)}
    for model in models:
        for opset in model.opset_import:
            if opset.domain not in ("", "ai.onnx"):
                versions[opset.domain] = max(opset.version, versions.get(opset.domain, 0))
    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]


def _shapes(model: ModelProto) -> tuple[int, int, int, int]:
    """Tokens, key heads, key dimension, value dimension: those of a part are fixed."""
    dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.output}
    return dims["keys"][1], dims["keys"][2], dims["keys"][3], dims["values"][3]


def _join(graph: GraphProto, model: ModelProto, prefix: str, bridged: str = "") -> None:
    """Add a part, all of whose names begin with `prefix`; its input `bridged` is made in the graph."""
    own = compose.add_prefix(model, prefix).graph
    graph.node.extend(own.node)
    graph.initializer.extend(own.initializer)
    graph.input.extend(value for value in own.input if value.name != prefix + bridged)


def _attend(
    graph: GraphProto,
    shapes: Mapping[str, tuple[int, int, int, int]],
    queries: NDArray[np.float32],
    scale: float,
    absent: bool,
) -> None:
    """Append softmax(scale q k^T) v over the tokens of all encoders, from `<node>/keys` to `head/fused`."""
    count, query_heads, key_dim = queries.shape
    _, heads, _, value_dim = next(iter(shapes.values()))
    group = query_heads // heads

    def op(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def const(value: object, name: str, dtype: type[np.generic] = np.int64) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), _INNER + name))
        return _INNER + name

    def inner(name: str) -> str:
        return _INNER + name

    keys = op("Concat", [f"{node}/keys" for node in shapes], inner("keys"), axis=1)
    values = op("Concat", [f"{node}/values" for node in shapes], inner("values"), axis=1)
    keys = op("Transpose", [keys], inner("keys_t"), perm=[0, 2, 3, 1])  # [B, Hk, dk, T]
    values = op("Transpose", [values], inner("values_t"), perm=[0, 2, 1, 3])  # [B, Hk, T, dv]
    # Query head h reads key head h // group: rows of a key head are its query heads', one after the other.
    rows = (queries * np.float32(scale)).transpose(1, 0, 2).reshape(1, heads, group * count, key_dim)
    scores = op("MatMul", [const(rows, "queries", np.float32), keys], inner("scores"))  # [B, Hk, G N, T]
    any_present = ""
    if absent:
        each = []
        for at, (node, (tokens, *_)) in enumerate(shapes.items()):
            column = op("Unsqueeze", [f"{node}/{PRESENT}", const([1], f"axis/{at}")], inner(f"column/{at}"))
            repeats = const([1, tokens], f"repeats/{at}")
            each.append(op("Tile", [column, repeats], inner(f"present/{at}")))
        present = op("Concat", each, inner("present"), axis=1)  # [B, T]
        there = op("Greater", [present, const(0, "zero", np.float32)], inner("there"))
        lowest, zero = const(_LOWEST, "lowest", np.float32), const(0, "none", np.float32)
        masked = op("Where", [there, zero, lowest], inner("masked"))
        masked = op("Unsqueeze", [masked, const([1, 2], "axes")], inner("mask"))  # [B, 1, 1, T]
        scores = op("Add", [scores, masked], inner("seen"))
        most = op("ReduceMax", [present, const([1], "tokens")], inner("most"), keepdims=1)  # [B, 1]
        any_there = op("Greater", [most, zero], inner("any_there"))
        any_present = op("Cast", [any_there], inner("any"), to=TensorProto.FLOAT)
        any_present = op("Unsqueeze", [any_present, const([1, 2], "any_axes")], inner("any_4"))
    weights = op("Softmax", [scores], inner("weights"), axis=-1)
    out = op("MatMul", [weights, values], inner("out"))  # [B, Hk, G N, dv]
    if any_present:  # who has no token at all has nothing, which is 0
        out = op("Mul", [out, any_present], inner("out_there"))
    shape = const([-1, query_heads, count, value_dim], "shape")
    out = op("Reshape", [out, shape], inner("by_head"))
    op("Transpose", [out], "head/fused", perm=[0, 2, 1, 3])
