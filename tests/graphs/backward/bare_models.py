"""Any ONNX model with a squared difference behind an output, and what its gradients are as one graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.gradients.gradients import differentiate
from edge_attention.graphs.onnx_file import keep, prune, raise_opset, strip
from tests.graphs.backward.training_cases import TrainingCase, session

__all__ = ["bare_case", "with_loss"]


def with_loss(
    model: ModelProto, feeds: Mapping[str, Array], output: str
) -> tuple[ModelProto, dict[str, Array]]:
    """The model for inputs of these shapes, with the mean of squared differences from made-up labels."""
    made = ModelProto()
    made.CopyFrom(model)
    strip(made)
    made = raise_opset(made, "model")
    graph = made.graph
    sizes = {}
    for value in graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True):
            if dim.dim_param:
                sizes[dim.dim_param] = size
            dim.dim_value = size
    (found,) = (value for value in graph.output if value.name == output)
    shape = [dim.dim_value or sizes[dim.dim_param] for dim in found.type.tensor_type.shape.dim]
    labels = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    graph.input.append(helper.make_tensor_value_info("labels", TensorProto.FLOAT, shape))
    graph.node.extend(
        [
            helper.make_node("Sub", [output, "labels"], ["loss/miss"]),
            helper.make_node("Mul", ["loss/miss", "loss/miss"], ["loss/square"]),
            helper.make_node("ReduceMean", ["loss/square"], ["loss"], keepdims=0),
        ]
    )
    graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))
    keep(graph.output, {"loss"})
    prune(graph)
    return made, {name: v for name, v in {**feeds, "labels": labels}.items() if name in _inputs(graph)}


def bare_case(
    model: ModelProto, feeds: Mapping[str, Array], output: str, trained: Collection[str] | None = None
) -> TrainingCase:
    """A case of such a model; `trained`: of its initializers, else all weights that are no constants.

    Raises InvalidGraph where the whole cannot be differentiated.
    """
    file, given = with_loss(model, feeds, output)
    weights = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in file.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and (tensor.name in trained if trained is not None else not tensor.name.startswith("const_"))
    }
    lifted = ModelProto()
    lifted.CopyFrom(file)
    keep(lifted.graph.initializer, {t.name for t in file.graph.initializer} - weights.keys())
    for name, value in weights.items():
        lifted.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    gradient = session(
        differentiate(
            lifted, 1, wrt={name: f"grad/{name}" for name in weights}, seeds={"loss": None}, keep=["loss"]
        )
    )
    names = [one.name for one in gradient.get_outputs()]
    wanted = {one.name for one in gradient.get_inputs()}
    every = {name: value for name, value in {**weights, **given}.items() if name in wanted}
    found = dict(zip(names, gradient.run(names, every), strict=True))
    return TrainingCase(
        OpenModel(None, file, {}),  # type: ignore[arg-type]
        tuple(weights),
        given,
        float(found["loss"]),
        {name: found[f"grad/{name}"] for name in weights},
    )


def _inputs(graph: onnx.GraphProto) -> set[str]:
    return {value.name for value in graph.input}
