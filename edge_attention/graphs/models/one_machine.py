"""A fusion model on one machine: the yardstick that a run over many nodes is measured against.

It shares with the distributed run only the users' parts. Attention is the plain formula over all tokens at
once, and every gradient, attention's included, comes from differentiating the one whole graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, compose, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.gradients.gradients import Runner, differentiate
from edge_attention.graphs.models.parts import GraphPart, load_part, serialize

__all__ = ["OneMachine", "one_machine_model"]

_INNER = "/attention/"  # no node has an empty name


def one_machine_model(
    encoders: Mapping[str, bytes | GraphPart],
    head: bytes | GraphPart,
    queries: NDArray[np.floating],
    scale: float,
) -> bytes:
    """Compose encoders (by node name), attention of `queries` [N, Hq, dk] to all their tokens, and the head.

    Inputs: `<node>/<column>` of each encoder, the head's labels, and the parameters `<node>/<name>`,
    `head/<name>` and `queries`, which are inputs with an initializer as default. Outputs: the head's.
    Tokens are joined in the order of `encoders`; query head h reads key head h // (Hq // Hk).

    Raises InvalidGraph if a part cannot be used or the parts do not fit together.
    """
    parts = {
        node: part if isinstance(part, GraphPart) else load_part(part, "encoder", where=node)
        for node, part in encoders.items()
    }
    top = head if isinstance(head, GraphPart) else load_part(head, "head", where="head")
    named = {**parts, "head": top}
    if not parts or len(named) == len(parts):
        raise InvalidGraph("one machine: give at least one encoder, and no node the name 'head'")
    count, query_heads, key_dim = queries.shape
    shapes = {node: (part.outputs["keys"][1], part.outputs["values"][1]) for node, part in parts.items()}
    _, values_shape = next(iter(shapes.values()))
    heads, value_dim = values_shape[2] or 0, values_shape[3] or 0
    for node, (keys, values) in shapes.items():
        if keys[2:] != (heads, key_dim) or values[2:] != (heads, value_dim):
            raise InvalidGraph(
                f"one machine: keys {keys} and values {values} of '{node}' do not fit queries of dimension "
                f"{key_dim} and the first node's {heads} heads of dimension {value_dim}"
            )
    if query_heads % heads or top.inputs["fused"][1][1:] != (count, query_heads, value_dim):
        raise InvalidGraph(
            f"one machine: {query_heads} query heads over {heads} key heads do not give the head's 'fused' "
            f"{top.inputs['fused'][1]}; change the queries or the head"
        )

    models = {node: onnx.load_model_from_string(part.forward) for node, part in named.items()}
    opsets = {node: model.opset_import[0].version for node, model in models.items()}
    if len(set(opsets.values())) > 1:
        raise InvalidGraph(f"one machine: parts of different opsets {opsets}; export them with one")
    whole = helper.make_model(
        helper.make_graph([], "one_machine", [], []),
        opset_imports=[helper.make_opsetid("", next(iter(opsets.values())))],
        ir_version=max(model.ir_version for model in models.values()),
    )
    graph = whole.graph
    bridged = {"head/fused", *(f"head/{name}" for name in top.labels)}
    for node, model in models.items():
        if node == "head":
            _add_attention(whole, list(parts), count, query_heads, heads, key_dim, value_dim, scale)
            graph.node.extend(helper.make_node("Identity", [name], [f"head/{name}"]) for name in top.labels)
        own = compose.add_prefix(model, f"{node}/").graph
        graph.node.extend(own.node)
        graph.initializer.extend(own.initializer)
        graph.input.extend(value for value in own.input if value.name not in bridged)
        graph.initializer.extend(
            numpy_helper.from_array(value, f"{node}/{name}") for name, value in named[node].parameters.items()
        )
    graph.input.append(helper.make_tensor_value_info("queries", TensorProto.FLOAT, queries.shape))
    graph.initializer.append(numpy_helper.from_array(queries.astype(np.float32), "queries"))
    # The head's labels and outputs keep their own names.
    head_graph = onnx.load_model_from_string(top.forward).graph
    graph.input.extend(value for value in head_graph.input if value.name in top.labels)
    graph.output.extend(head_graph.output)
    graph.node.extend(helper.make_node("Identity", [f"head/{name}"], [name]) for name in top.outputs)
    try:
        onnx.checker.check_model(whole)
    except onnx.checker.ValidationError as error:
        raise InvalidGraph(f"one machine: two tensors of the parts have one name: {error}") from error
    return serialize(whole)


class OneMachine:
    """A one-machine model that runs: its loss, its gradients at a fixed batch, its outputs at any.

    `parameters` holds the initial values by name. The caller applies the optimizer.
    """

    def __init__(self, model: bytes, batch: int) -> None:
        """Raises InvalidGraph if the model cannot be differentiated or ONNX Runtime cannot load it."""
        whole = onnx.load_model_from_string(model)
        inputs = {value.name for value in whole.graph.input}
        self.parameters: dict[str, NDArray[np.float32]] = {
            tensor.name: numpy_helper.to_array(tensor).astype(np.float32)
            for tensor in whole.graph.initializer
            if tensor.name in inputs
        }
        constants = [tensor for tensor in whole.graph.initializer if tensor.name not in inputs]
        del whole.graph.initializer[:]
        whole.graph.initializer.extend(constants)
        self._outputs = [value.name for value in whole.graph.output]
        gradient = differentiate(
            whole,
            batch,
            wrt={name: f"grad/{name}" for name in self.parameters},
            seeds={"loss": None},
            keep=["loss"],
            place="one machine",
        )
        self._gradient = Runner(gradient, "one machine")
        self._forward = Runner(serialize(whole), "one machine")

    def gradients(
        self, params: Mapping[str, NDArray[np.generic]], feeds: Mapping[str, NDArray[np.generic]]
    ) -> tuple[float, dict[str, NDArray[np.float32]]]:
        """The mean loss over one batch, and its gradient for every parameter, of the parameter's shape."""
        names = ["loss", *(f"grad/{name}" for name in self.parameters)]
        loss, *found = self._gradient(names, {**params, **feeds})
        return float(loss), dict(zip(self.parameters, found, strict=True))

    def evaluate(
        self, params: Mapping[str, NDArray[np.generic]], feeds: Mapping[str, NDArray[np.generic]]
    ) -> dict[str, NDArray[np.generic]]:
        """The head's outputs by name, for a batch of any size."""
        found = self._forward(self._outputs, {**params, **feeds})
        return dict(zip(self._outputs, found, strict=True))


def _add_attention(
    model: ModelProto,
    nodes: list[str],
    count: int,
    query_heads: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    scale: float,
) -> None:
    """Append softmax(scale * q k^T) v over all nodes' tokens, from `<node>/keys` to `head/fused`."""
    group = query_heads // heads

    def op(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        model.graph.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def reshape(source: str, shape: list[int], output: str) -> str:
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"{output}/shape"))
        return op("Reshape", [source, f"{output}/shape"], output)

    def inner(name: str) -> str:
        return _INNER + name

    keys = op("Concat", [f"{node}/keys" for node in nodes], inner("keys"), axis=1)
    values = op("Concat", [f"{node}/values" for node in nodes], inner("values"), axis=1)
    keys = op("Transpose", [keys], inner("keys_t"), perm=[0, 2, 3, 1])  # [B, Hk, dk, T]
    values = op("Transpose", [values], inner("values_t"), perm=[0, 2, 1, 3])  # [B, Hk, T, dv]
    grouped = reshape("queries", [count, heads, group, key_dim], inner("grouped"))
    grouped = op("Transpose", [grouped], inner("grouped_t"), perm=[1, 2, 0, 3])
    grouped = reshape(grouped, [1, heads, group * count, key_dim], inner("rows"))
    scores = op("MatMul", [grouped, keys], inner("scores"))  # [B, Hk, group * N, T]
    model.graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), inner("scale")))
    weights = op("Softmax", [op("Mul", [scores, inner("scale")], inner("scaled"))], inner("weights"), axis=-1)
    out = op("MatMul", [weights, values], inner("out"))  # [B, Hk, group * N, dv]
    out = reshape(out, [-1, heads, group, count, value_dim], inner("out_grouped"))
    out = op("Transpose", [out], inner("out_t"), perm=[0, 3, 1, 2, 4])  # [B, N, Hk, group, dv]
    reshape(out, [-1, count, query_heads, value_dim], "head/fused")
