"""Step graphs: a model whose loss and gradients the user's own framework has exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.models.model_form import METRIC, Model, check_input, lift, set_aside
from edge_attention.graphs.onnx_file import (
    first_line,
    infer_outputs,
    keep,
    make_batch_symbolic,
    parse,
    prune,
    raise_opset,
    serialize,
    spec_of,
    strip,
)

__all__ = ["load_step_graph"]

_FLOAT = np.dtype(np.float32)


def load_step_graph(
    data: bytes,
    *,
    gradients: Mapping[str, str],
    loss: str = "loss",
    initial: Mapping[str, NDArray[np.generic]] | None = None,
    metrics: Sequence[str] = (),
    place: str = "model",
) -> tuple[Model, ModelProto]:
    """A graph that computes its own gradients, exported by the user's framework.

    `gradients`: parameter (a float32 initializer or input of the file) to the output that is the derivative
    of output `loss`, a float32 scalar, by it. `initial`: values of the parameters that are inputs. Parameters
    are counted in the file's order, initializers first. Dimension 0 of the data is dynamic, or the one batch
    there is; then `forward` is empty, as there is no evaluating at another size.

    Returns the model and its gradient graph, with the names of `gradient_graph`, dimension 0 as in the file.

    Raises InvalidGraph for a file that cannot be used, saying what to change.
    """
    try:
        return _load(data, gradients, loss, initial or {}, metrics, place)
    except (InvalidGraph, MemoryError):
        raise
    except Exception as error:  # onnx and protobuf raise a dozen classes on damaged bytes
        raise InvalidGraph(f"{place}: not a usable ONNX file: {first_line(error)}") from error


def _load(
    data: bytes,
    gradients: Mapping[str, str],
    loss: str,
    initial: Mapping[str, NDArray[np.generic]],
    metrics: Sequence[str],
    place: str,
) -> tuple[Model, ModelProto]:
    file = parse(data, place)
    strip(file)
    file = raise_opset(file, place)
    graph = file.graph
    outputs = {value.name: spec_of(value) for value in graph.output}
    for name in (loss, *gradients.values(), *metrics):
        if name not in outputs:
            raise InvalidGraph(f"{place}: no output '{name}' among {list(outputs)}; name the graph's outputs")
    initialized = {tensor.name for tensor in graph.initializer}
    keep(graph.input, {value.name for value in graph.input} - initialized)
    for value in [value for value in graph.input if value.name in gradients]:
        graph.initializer.append(_initial(value, initial, place))
        graph.input.remove(value)
    held = [tensor.name for tensor in graph.initializer if tensor.name in gradients]
    if unknown := sorted(set(gradients) - set(held)):
        raise InvalidGraph(f"{place}: '{unknown[0]}' is no initializer and no input; name its parameters")
    dynamic = _check_batch(graph, place)
    aside = set_aside(graph, ())
    parameters = lift(graph, {name: aside.get(name, name) for name in held}, place)

    made: dict[str, tuple[str, tuple[int, ...]]] = {"loss": (loss, ())}
    for i, (name, array) in enumerate(parameters.items()):
        made[f"grad/{i}"] = gradients[name], array.shape
    made |= {METRIC + name: (name, ()) for name in metrics}
    del graph.output[:]
    for name, (source, _) in made.items():
        if outputs[source][0] != _FLOAT and not name.startswith(METRIC):
            raise InvalidGraph(f"{place}: output '{source}' is {outputs[source][0]}; it must be float32")
        inner = aside.get(source, source)
        graph.node.append(helper.make_node("Cast", [inner], [name], to=TensorProto.FLOAT))
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    prune(graph)
    found = infer_outputs(file, place)
    for name, (source, shape) in made.items():
        if found[name][1] != shape:
            raise InvalidGraph(
                f"{place}: output '{source}' has shape {list(found[name][1])}; as {name} it must be "
                f"{list(shape)}, the shape of what it is of"
            )
    forward = b""
    if dynamic:
        evaluated = ModelProto()
        evaluated.CopyFrom(file)
        keep(evaluated.graph.output, {"loss", *(METRIC + name for name in metrics)})
        prune(evaluated.graph)
        forward = serialize(evaluated)
    keep(graph.output, {name for name in made if not name.startswith(METRIC)})
    prune(graph)
    inputs = {value.name: spec_of(value) for value in graph.input if not value.name.startswith("x/")}
    step = serialize(file)
    model = Model(place, forward, tuple(parameters), parameters, inputs, found, tuple(metrics), step=step)
    return model, file


def _initial(value: ValueInfoProto, initial: Mapping[str, NDArray[np.generic]], place: str) -> TensorProto:
    """The initializer that takes the place of a parameter that is an input."""
    dtype, shape = spec_of(value)
    if value.name not in initial:
        raise InvalidGraph(f"{place}: parameter '{value.name}' is an input; give it an initial value")
    given = np.asarray(initial[value.name])
    if dtype != _FLOAT or given.dtype != _FLOAT or given.shape != shape:
        raise InvalidGraph(
            f"{place}: parameter '{value.name}' is {dtype} {list(shape)} and its initial value {given.dtype} "
            f"{list(given.shape)}; both must be float32 of one shape"
        )
    return numpy_helper.from_array(np.asarray(given, order="C"), value.name)


def _check_batch(graph: GraphProto, place: str) -> bool:
    """Whether dimension 0 of the data is dynamic; where it is fixed, it is one size for all."""
    for value in graph.input:
        check_input(value.name, place)
    sizes = [spec_of(value)[1][:1] for value in graph.input]
    if () in sizes or not sizes or len(set(sizes)) > 1:
        raise InvalidGraph(
            f"{place}: dimension 0 of every data input must be the batch, dynamic in all or of one size in "
            f"all; an input that is no data must be named as a parameter: {[v.name for v in graph.input]}"
        )
    dynamic = sizes[0] == (None,)
    if dynamic:
        for value in graph.input:
            make_batch_symbolic(value, place)
    return dynamic
