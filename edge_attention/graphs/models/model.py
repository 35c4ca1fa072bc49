"""The model users bring: an ONNX file, checked, with its loss, its parameters lifted to numbered inputs.

    model = load_model(data, loss=LossSpec("cross_entropy", "logits"))
    gradient = gradient_graph(model, batch=32)      # inputs: data, x/0, x/1, ...; outputs: loss, grad/0, ...

Weights that train are graph inputs, because ONNX Runtime prepacks an initializer and silently ignores an
in-place update of it. Which initializers train, and what becomes of those that an exporter has merged, is
written in file_parameters.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import LossSpec, NewHead
from edge_attention.graphs.gradients.gradients import differentiate
from edge_attention.graphs.lookups import mark_padding
from edge_attention.graphs.models.dimensions import RowShapes
from edge_attention.graphs.models.file_parameters import find_parameters
from edge_attention.graphs.models.loss_front import find_front
from edge_attention.graphs.models.model_file import frozen_weights, read_model, whole_number_weights
from edge_attention.graphs.models.model_form import (
    LOSS_WEIGHT,
    METRIC,
    Model,
    check_input,
    lift,
    set_aside,
    take_out,
)
from edge_attention.graphs.models.model_losses import add_loss
from edge_attention.graphs.models.model_step import load_step_graph
from edge_attention.graphs.models.new_head import LOGITS, add_head, values_for
from edge_attention.graphs.models.value_specs import output_specs, value_spec
from edge_attention.graphs.onnx_file import (
    TensorSpec,
    bind_batch,
    check_operators,
    first_line,
    fixed_shapes,
    foreign_kinds,
    keep,
    make_batch_symbolic,
    opset_of,
    prune,
    raise_opset,
    serialize,
    spec_of,
    strip,
    values_of,
)
from edge_attention.graphs.reading.bounds import MIN_OPSET

__all__ = ["Model", "gradient_graph", "load_model", "load_step_graph", "parameter_inputs", "pruned"]

_FLOAT = np.dtype(np.float32)


def load_model(
    data: bytes,
    *,
    loss: LossSpec,
    parameters: Sequence[str] = (),
    metrics: Sequence[str] = (),
    others: Sequence[str] = (),
    dimensions: Mapping[str, int] | None = None,
    rows: RowShapes | None = None,
    head: NewHead | None = None,
    seed: int = 0,
    place: str = "model",
) -> Model:
    """Check the ONNX file `data`, add the loss and lift its parameters to inputs `x/<i>`.

    `loss.name` is "output" (the file computes its loss; `loss.output`, by default "loss", names it: a float32
    scalar, the mean over the batch) or a standard loss over output `loss.output` (by default the only one).
    `parameters` names the float32 initializers that train, or patterns of names; empty: all that are no
    constants and that the loss depends on. `metrics`: scalar outputs of the file, sums over the batch.
    `others`: outputs that are wanted besides; what none of these needs is cut off and not looked at.
    `dimensions`, `rows`: see `bind_dimensions`. `head`: a new one, drawn from `seed`, which is what trains
    besides what `parameters` names. `place` goes into messages. The same arguments give the same bytes.

    Raises InvalidGraph for a file that cannot be used, saying what to change.
    """
    asked = _Asked(
        loss,
        tuple(parameters),
        tuple(metrics),
        tuple(others),
        dimensions or {},
        rows or {},
        head,
        seed,
        place,
    )
    try:
        return _load_model(data, asked)
    except (InvalidGraph, MemoryError):
        raise
    except Exception as error:  # onnx and protobuf raise a dozen classes on damaged bytes
        raise InvalidGraph(f"{place}: not a usable ONNX file: {first_line(error)}") from error


@dataclass(frozen=True)
class _Asked:
    """The arguments of `load_model`."""

    loss: LossSpec
    parameters: tuple[str, ...]
    metrics: tuple[str, ...]
    others: tuple[str, ...]
    dimensions: Mapping[str, int]
    rows: RowShapes
    head: NewHead | None
    seed: int
    place: str

    def values(self, outputs: tuple[str, ...]) -> list[str]:
        """What is wanted of a file with these outputs."""
        for name in (*self.metrics, *self.others):
            if name not in outputs:
                what = (
                    f"metric '{name}' is no scalar output" if name in self.metrics else f"no output '{name}'"
                )
                raise InvalidGraph(f"{self.place}: {what}; the outputs are {list(outputs)}: export it as one")
        besides = [*self.metrics, *self.others]
        if self.head is None:
            return [_resolve(self.loss, outputs, self.place).output, *besides]
        if self.loss.name == "output":
            raise InvalidGraph(f"{self.place}: a new head needs a loss by name, such as cross_entropy")
        if not self.head.of and len(outputs) != 1:
            raise InvalidGraph(
                f"{self.place}: head.of must name what the head is on, one of the outputs {list(outputs)} or "
                "a value inside the file"
            )
        return [*values_for(self.head, outputs), *besides]


def gradient_graph(model: Model, batch: int) -> ModelProto:
    """The graph from data and parameters to the loss and its gradients, at a fixed batch.

    Inputs: data (dimension 0 = `batch`) and `x/<i>`, those that are needed. Outputs: `loss` [] and `grad/<i>`
    of the parameters' shapes, float32; of a weighted model LOSS_WEIGHT [], by which `loss` and gradients of
    batches fold.

    Raises InvalidGraph where an operator cannot be differentiated, naming it and its node.
    """
    if model.step:
        step = onnx.load_model_from_string(model.step)
        fixed = {shape[0] for _, shape in model.inputs.values()} - {None, batch}
        if fixed:
            raise InvalidGraph(
                f"{model.place}: it was exported for a batch of {fixed.pop()}, not {batch}; train with that "
                "batch or export it with a dynamic one"
            )
        return bind_batch(step, batch)
    kept = ["loss", *([LOSS_WEIGHT] if model.weighted else [])]
    graph = differentiate(
        pruned(model, kept),
        batch,
        wrt=parameter_inputs(model),
        seeds={"loss": None},
        keep=kept,
        place=model.place,
    )
    return onnx.load_model_from_string(graph)


def parameter_inputs(model: Model) -> dict[str, str]:
    """`x/<i>` to `grad/<i>`, for every parameter."""
    return {f"x/{i}": f"grad/{i}" for i in range(len(model.names))}


def pruned(model: Model, outputs: Sequence[str]) -> ModelProto:
    """The forward graph, with these outputs alone and what they need."""
    forward = onnx.load_model_from_string(model.forward)
    keep(forward.graph.output, set(outputs))
    prune(forward.graph)
    return forward


def _load_model(data: bytes, asked: _Asked) -> Model:
    place, loss, wanted, metrics = asked.place, asked.loss, list(asked.parameters), asked.metrics
    head_of = asked.head.of if asked.head is not None else ""
    ready = read_model(data, place, asked.values, asked.dimensions, asked.rows, head_of)
    file, notes, named = ready.model, list(ready.notes), bool(wanted)
    if lost := [name for name in wanted if name in ready.cut.constants]:
        raise InvalidGraph(f"{place}: the loss does not depend on parameters {lost}; leave them out")
    if asked.head is not None:
        if opset_of(file) < MIN_OPSET:
            file = raise_opset(file, place)
        head = replace(asked.head, of=asked.head.of or file.graph.output[0].name)
        _, shape = value_spec(file, head.of, place, ready.cut.outputs)
        if softmax := _squeezed(file, head.of, len(shape)):
            notes.append(softmax)
        made, said = add_head(file, head, asked.seed, place, ready.cut.outputs)
        notes.append(f"a new head, {', '.join(made)}, is on {said}")
        wanted, named = [*made, *wanted], True
        loss = replace(loss, output=loss.output or LOGITS)
    found = find_parameters(file, wanted, place)
    check_operators(file.graph, place, found.names)
    weights = take_out(file.graph, found.names)
    mark_padding(file.graph, found.padding, place)
    strip(file)
    file = raise_opset(file, place)
    graph = file.graph
    prune(graph)
    for value in graph.input:
        check_input(value.name, place)
        make_batch_symbolic(value, place)
    loss = _resolve(loss, [value.name for value in graph.output], place)
    aside = set_aside(graph, {loss.output, *metrics})
    if not found.names:
        _check_foreign(graph, place)  # whose shapes nothing tells, which is not what is wrong
    shapes = output_specs(file, [aside.get(name, name) for name in found.names], place)
    if loss.name == "output":
        _take_loss(graph, loss.output, shapes, place)
        added = None
    else:
        if loss.labels in values_of(graph):
            raise InvalidGraph(
                f"{place}: the labels' input '{loss.labels}' has the name of a tensor of the file; choose "
                "another as loss.labels"
            )
        check_input(loss.labels, place)
        if loss.weights:
            check_input(loss.weights, place)
            if loss.weights in values_of(graph):
                raise InvalidGraph(
                    f"{place}: the weights' input '{loss.weights}' has the name of a tensor of the file; "
                    "choose another as loss.weights"
                )
        added = add_loss(
            graph, loss, shapes[loss.output], place, lambda name: next(reversed(_shape(file, name)), None)
        )
    counted = added.metrics if added is not None else ()
    counted += _take_metrics(graph, metrics, shapes, place)

    needed = ModelProto()
    needed.CopyFrom(file)
    keep(needed.graph.output, {"loss"})
    prune(needed.graph)
    tensors = {tensor.name for tensor in needed.graph.initializer}
    reached = {name: held for name in found.names if (held := aside.get(name, name)) in tensors}
    if lost := [name for name in wanted if name in found.names and name not in reached]:
        raise InvalidGraph(f"{place}: the loss does not depend on parameters {lost}; leave them out")
    if not needed.graph.input:
        raise InvalidGraph(f"{place}: the loss depends on no data input; check loss.output")
    frozen = frozen_weights(needed, reached.values(), named)
    parameters = lift(graph, reached, place, weights)
    if not parameters:
        _check_foreign(needed.graph, place)
        raise InvalidGraph(
            f"{place}: no parameters that the loss depends on; a parameter is a float32 initializer, and "
            f"constants can be trained by naming them as parameters{_reasons(frozen)}"
        )
    if quantized := whole_number_weights(needed):
        notes.append(
            f"{len(parameters)} of {len(parameters) + len(quantized)} weights train ({_some(parameters)}); "
            f"{_some(quantized)} do not: {next(iter(quantized.values()))} has no gradient"
        )
    inputs = {value.name: spec_of(value) for value in graph.input if not value.name.startswith("x/")}
    outputs = output_specs(file, [value.name for value in graph.input if value.name.startswith("x/")], place)
    return Model(
        place,
        serialize(file),
        tuple(parameters),
        parameters,
        inputs,
        outputs,
        counted,
        untied={name: old for name, old in found.untied.items() if name in parameters},
        dropped=found.dropped,
        weighted=added is not None and added.weighted,
        label=added.label if added is not None else None,
        frozen=frozen,
        cut=ready.cut.outputs,
        dimensions=ready.dimensions,
        notes=(*notes, *(added.notes if added is not None else ())),
    )


def _resolve(loss: LossSpec, outputs: Sequence[str], place: str) -> LossSpec:
    """The loss with its defaults filled in."""
    output = loss.output or ("loss" if loss.name == "output" else outputs[0] if len(outputs) == 1 else "")
    if output not in outputs:
        what = f"no output '{output}' among" if output else "loss.output must name one of the outputs"
        raise InvalidGraph(f"{place}: {what} {list(outputs)}; say which one the loss is of")
    return replace(loss, output=output, labels=loss.labels or "labels")


def _check_foreign(graph: GraphProto, place: str) -> None:
    """Refuse, where nothing trains, a graph whose weights operators of others' domains hold."""
    if kinds := foreign_kinds(graph):
        raise InvalidGraph(
            f"{place}: what {kinds[0]} holds cannot train, and nothing else that the loss needs can; "
            "make the model of standard operators, or put a new head on it"
        )


def _shape(file: ModelProto, name: str) -> tuple[int, ...]:
    """The shape of a value at a batch of 2; empty where shapes do not tell it."""
    try:
        return fixed_shapes(bind_batch(file, 2, strict=False)).get(name, ())
    except Exception:  # whatever contradicts itself is said where the model is checked
        return ()


def _squeezed(file: ModelProto, of: str, rank: int) -> str:
    """That a head is on probabilities, which tell less than what they are made of."""
    front = find_front(file.graph, of, rank)
    if front is None:
        return ""
    return (
        f"the new head is on '{of}', which {front.kind} '{front.name}' makes: probabilities, most of them "
        f"near 0; what it takes tells more, head.of = '{front.logits}'"
    )


def _reasons(frozen: Mapping[str, str]) -> str:
    """Why what the loss depends on does not train."""
    shown = [f"'{name}' is {why}" for name, why in list(frozen.items())[:3]]
    more = f", and {len(frozen) - 3} more" if len(frozen) > 3 else ""
    return (
        f". {'; '.join(shown)}{more}: bring the file with float weights, or train a new head on it"
        if shown
        else ""
    )


def _some(names: Collection[str]) -> str:
    shown = list(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _take_loss(graph: GraphProto, output: str, shapes: Mapping[str, TensorSpec], place: str) -> None:
    if shapes[output] != (_FLOAT, ()):
        dtype, shape = shapes[output]
        raise InvalidGraph(
            f"{place}: the loss '{output}' is {dtype} {list(shape)}; it must be a float32 scalar of shape []"
        )
    if output != "loss":
        graph.node.append(helper.make_node("Identity", [output], ["loss"]))
        graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))


def _take_metrics(
    graph: GraphProto, metrics: Sequence[str], shapes: Mapping[str, TensorSpec], place: str
) -> tuple[str, ...]:
    """Outputs `metric/<name>` for the file's own metrics."""
    for name in metrics:
        if name not in shapes or shapes[name][1] != ():
            scalars = [output for output, (_, shape) in shapes.items() if shape == ()]
            raise InvalidGraph(
                f"{place}: metric '{name}' is no scalar output; the scalar outputs are {scalars}"
            )
        graph.node.append(helper.make_node("Cast", [name], [METRIC + name], to=TensorProto.FLOAT))
        graph.output.append(helper.make_tensor_value_info(METRIC + name, TensorProto.FLOAT, []))
    return tuple(metrics)
