"""What else a job asks of a model: its loss and metrics on other rows, its attention, and a penalty on it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.gradients.gradients import differentiate
from edge_attention.graphs.models.model import Model, parameter_inputs, pruned
from edge_attention.graphs.models.model_form import LOSS_WEIGHT, METRIC
from edge_attention.graphs.onnx_file import ints, prune, rename_values, serialize, values_of

__all__ = ["attention_graph", "evaluation_graph", "penalty_graph"]


def evaluation_graph(model: Model) -> bytes:
    """The graph that adds a batch's loss and metrics to sums.

    Inputs: data (dimension 0 symbolic), `x/<i>`, and float32 scalars `sum/loss` and `sum/<metric>`. Outputs,
    float32 scalars: `next/loss` = sum + loss * rows, `next/<metric>` = sum + metric. Of a weighted model the
    former is sum + loss * LOSS_WEIGHT, and there is a sum of LOSS_WEIGHT, too.

    Raises InvalidGraph for a step graph of one fixed batch.
    """
    _check_forward(model)
    weighted = [LOSS_WEIGHT] if model.weighted else []
    forward = pruned(model, ["loss", *weighted, *(METRIC + name for name in model.metrics)])
    graph = forward.graph
    data = next(value.name for value in graph.input if value.name in model.inputs)
    graph.initializer.append(ints("next/axes", []))
    graph.node.extend(
        [
            helper.make_node("Shape", [data], ["next/shape"], start=0, end=1),
            helper.make_node("Cast", ["next/shape"], ["next/row"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["next/row", "next/axes"], ["next/rows"]),
            helper.make_node("Mul", ["loss", LOSS_WEIGHT if weighted else "next/rows"], ["next/batch"]),
        ]
    )
    del graph.output[:]
    terms = {"loss": "next/batch", **{name: METRIC + name for name in model.metrics}}
    if weighted:
        terms[LOSS_WEIGHT] = LOSS_WEIGHT
    for name, term in terms.items():
        graph.input.append(helper.make_tensor_value_info(f"sum/{name}", TensorProto.FLOAT, []))
        graph.node.append(helper.make_node("Add", [f"sum/{name}", term], [f"next/{name}"]))
        graph.output.append(helper.make_tensor_value_info(f"next/{name}", TensorProto.FLOAT, []))
    return _finished(forward, model.place)


def attention_graph(model: Model, output: str) -> bytes:
    """The graph of the model's output `output`, under the name `attention`.

    Inputs: data (dimension 0 symbolic) and `x/<i>`, those that are needed. Output `attention`, float32.

    Raises InvalidGraph if there is no such output or it is not float32.
    """
    return _finished(_attention(model, output), model.place)


def penalty_graph(model: Model, output: str, batch: int) -> bytes:
    """The graph of how far the model's attention on a probe batch is from `alpha`, and the gradients of that.

    Inputs: `probe/<input>` (dimension 0 = `batch`), `x/<i>`, `alpha` of attention's shape, float32. Outputs:
    `penalty` [] = sum((attention - alpha)^2), and `grad/<i>`, zero for parameters it does not depend on.

    Raises InvalidGraph as `attention_graph`, and where an operator cannot be differentiated.
    """
    forward = _attention(model, output)
    graph = forward.graph
    rename_values(graph, {name: f"probe/{name}" for name in model.inputs})
    alpha = onnx.ValueInfoProto()
    alpha.CopyFrom(graph.output[0])
    alpha.name = "alpha"
    graph.input.append(alpha)
    graph.node.extend(
        [
            helper.make_node("Sub", ["attention", "alpha"], ["penalty/miss"]),
            helper.make_node("Mul", ["penalty/miss", "penalty/miss"], ["penalty/square"]),
            helper.make_node("ReduceSum", ["penalty/square"], ["penalty"], keepdims=0),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("penalty", TensorProto.FLOAT, []))
    present = {value.name for value in graph.input}
    data = differentiate(
        forward,
        batch,
        wrt={x: gradient for x, gradient in parameter_inputs(model).items() if x in present},
        seeds={"penalty": None},
        keep=["penalty"],
        place=model.place,
    )
    result = onnx.load_model_from_string(data)
    for i, array in enumerate(model.parameters.values()):
        if f"x/{i}" not in present:
            _add_zeros(result, f"grad/{i}", array.shape)
    return _finished(result, model.place)


def _attention(model: Model, output: str) -> ModelProto:
    _check_forward(model)
    floats = [name for name, (dtype, _) in model.outputs.items() if dtype == np.float32]
    if output not in floats or output == "loss" or output.startswith(METRIC):
        others = [name for name in floats if name != "loss" and not name.startswith(METRIC)]
        raise InvalidGraph(
            f"{model.place}: no float32 output '{output}'; the outputs are {others}: export the attention "
            "weights as an output of the model"
        )
    forward = pruned(model, [output])
    graph = forward.graph
    if output != "attention":
        if "attention" in values_of(graph):
            rename_values(graph, {"attention": "model/attention"})
        graph.node.append(helper.make_node("Identity", [output], ["attention"]))
        graph.output[0].name = "attention"
    return forward


def _check_forward(model: Model) -> None:
    if not model.forward:
        raise InvalidGraph(
            f"{model.place}: a step graph of a fixed batch cannot be evaluated; export it with a dynamic one"
        )


def _add_zeros(model: ModelProto, name: str, shape: tuple[int, ...]) -> None:
    graph = model.graph
    graph.initializer.append(ints(f"{name}/shape", shape))
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "value")
    graph.node.append(helper.make_node("ConstantOfShape", [f"{name}/shape"], [name], value=zero))
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def _finished(model: ModelProto, place: str) -> bytes:
    prune(model.graph)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InvalidGraph(f"{place}: not a valid graph: {error}") from error
    return serialize(model)
