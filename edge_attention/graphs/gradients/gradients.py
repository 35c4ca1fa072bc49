"""Gradient graphs of model parts, by source transformation (`onnx-ad`), at a fixed batch size.

The encoder's gradient takes what comes back from attention's backward pass (`dkeys`, `dvalues`) to its
parameters; the head's starts from the loss. Both recompute their forward pass from data and parameters,
so nothing has to be kept on a node between the two trips of a training step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_ad import reverse

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.gradients import convolutions, norms, padding, picks  # noqa: F401 -- their rules
from edge_attention.graphs.gradients.data_lengths import lengths_of_data
from edge_attention.graphs.gradients.frozen import declare, join, split
from edge_attention.graphs.gradients.guarded import mark_guarded
from edge_attention.graphs.gradients.runner import Runner, sample
from edge_attention.graphs.gradients.simplify import flatten_products, squeeze_ones
from edge_attention.graphs.gradients.windows import explicit_windows
from edge_attention.graphs.lookups import padding_rows
from edge_attention.graphs.onnx_file import TensorSpec, bind_batch, ints, prune, serialize, spec_of
from edge_attention.graphs.part import GraphPart

__all__ = [
    "Runner",
    "check_gradient",
    "compare_with_differences",
    "differentiate",
    "encoder_gradient",
    "graph_inputs",
    "graph_outputs",
    "head_gradient",
    "sample",
]

_WIDE = 1e-2
"""The first step of a difference: a curve bends over it, so its two sides say little of a kink."""
_ADJOINT = "adjoint/"
MAX_ELEMENTS = 1 << 28  # of one tensor: 1 GiB in float32


def encoder_gradient(part: GraphPart, batch: int) -> bytes:
    """The graph that carries `dkeys` and `dvalues` back to the encoder's parameters.

    Inputs, those of them that are needed: the data (dimension 0 = `batch`), the parameters, `dkeys`
    [batch, T, Hk, dk] and `dvalues` [batch, T, Hk, dv], float32. Outputs `grad/<parameter>`, float32, of
    the parameter's shape: the sum over batch and tokens of J^T d.

    Raises InvalidGraph where an operator cannot be differentiated, naming it and its node.
    """
    return differentiate(
        onnx.load_model_from_string(part.forward),
        batch,
        wrt={name: f"grad/{name}" for name in part.parameters},
        seeds={"keys": "dkeys", "values": "dvalues"},
        place=part.place,
    )


def head_gradient(part: GraphPart, batch: int) -> bytes:
    """The graph from `fused`, labels and parameters to the loss and its gradients.

    Inputs: `fused` [batch, N, Hq, dv] float32, labels (dimension 0 = `batch`), parameters. Outputs: `loss`
    (scalar), `dfused` of fused's shape, `grad/<parameter>`: derivatives of the mean loss, all float32.

    Raises InvalidGraph where an operator cannot be differentiated, naming it and its node.
    """
    return differentiate(
        onnx.load_model_from_string(part.forward),
        batch,
        wrt={"fused": "dfused", **{name: f"grad/{name}" for name in part.parameters}},
        seeds={"loss": None},
        keep=["loss"],
        place=part.place,
    )


def graph_inputs(graph: bytes) -> dict[str, TensorSpec]:
    """The inputs a serialized graph has to be given (not its initializers): name to (dtype, shape)."""
    model = onnx.load_model_from_string(graph)
    constant = {tensor.name for tensor in model.graph.initializer}
    return {value.name: spec_of(value) for value in model.graph.input if value.name not in constant}


def graph_outputs(graph: bytes) -> dict[str, TensorSpec]:
    """The outputs of a serialized graph: name to (dtype, shape)."""
    return {value.name: spec_of(value) for value in onnx.load_model_from_string(graph).graph.output}


def differentiate(
    model: ModelProto,
    batch: int,
    *,
    wrt: Mapping[str, str],
    seeds: Mapping[str, str | None],
    keep: Sequence[str] = (),
    place: str = "graph",
) -> bytes:
    """The graph of J^T seed, at a fixed batch, with no primal output but those in `keep`.

    `wrt` maps an input to the name of its gradient among the outputs; `seeds` maps an output to the name of
    the input that carries its upstream gradient, or None for a constant 1.

    Raises InvalidGraph where an operator cannot be differentiated, naming it and its node.
    """
    if batch < 1:
        raise InvalidGraph(f"{place}: a batch of {batch} has no gradient; choose 1 or more")
    halves = split(model, wrt)
    try:
        if halves is not None:
            declare(halves, model, batch, place)
            model = halves.back
        bound = bind_batch(model, batch)
        _check_sizes(bound, place)  # before onnx-ad evaluates what is constant
        explicit_windows(bound)
        flatten_products(bound)
        mark_guarded(bound)
        result = reverse(bound, list(wrt), list(seeds), prefix=_ADJOINT, dim="seeds", layout="onnx")
    except (InvalidGraph, MemoryError):
        raise
    except Exception as error:  # the library fails in many ways on graphs it has no rule for
        node = _node_of(error)
        where = (
            f", at {node.op_type} '{node.name or next(iter(node.output), '')}'" if node is not None else ""
        )
        remedy = lengths_of_data(model, node)
        raise InvalidGraph(f"{place}: cannot be differentiated{where}: {error}{remedy}") from error
    graph = result.graph
    primal_inputs = {value.name: value for value in bound.graph.input}
    primal_outputs = {value.name: value for value in bound.graph.output}

    # onnx-ad appends an axis of seed directions; there is one direction here, so reshape it away.
    opening, closing, outputs = [], [], [primal_outputs[name] for name in keep]
    for name, seed in seeds.items():
        dtype, shape = spec_of(primal_outputs[name])
        seeded = [dim or 0 for dim in shape] + [1]
        if seed is None:
            graph.initializer.append(numpy_helper.from_array(np.ones(seeded, dtype), _ADJOINT + name))
            continue
        graph.initializer.append(ints(f"{_ADJOINT}{seed}/shape", seeded))
        opening.append(helper.make_node("Reshape", [seed, f"{_ADJOINT}{seed}/shape"], [_ADJOINT + name]))
    for name, gradient in wrt.items():
        shape = spec_of(primal_inputs[name])[1]
        graph.initializer.append(ints(f"{_ADJOINT}{gradient}/shape", [dim or 0 for dim in shape]))
        closing.append(
            helper.make_node("Reshape", [_ADJOINT + name, f"{_ADJOINT}{gradient}/shape"], [gradient])
        )
        outputs.append(helper.make_tensor_value_info(gradient, TensorProto.FLOAT, shape))
    for node in graph.node:
        node.ClearField("doc_string")
    nodes = [*opening, *graph.node, *closing]
    inputs = [value for value in graph.input if value.name in primal_inputs]
    inputs += [
        helper.make_tensor_value_info(seed, TensorProto.FLOAT, spec_of(primal_outputs[name])[1])
        for name, seed in seeds.items()
        if seed is not None
    ]
    for field, items in (("node", nodes), ("input", inputs), ("output", outputs)):
        graph.ClearField(field)
        getattr(graph, field).extend(items)
    prune(graph)
    result = squeeze_ones(result)
    if halves is not None:
        result = join(halves, result)
    prune(result.graph)
    try:
        onnx.checker.check_model(result)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InvalidGraph(f"{place}: its gradient is not a valid graph: {error}") from error
    return serialize(result)


def check_gradient(
    part: GraphPart,
    batch: int = 4,
    *,
    feeds: Mapping[str, NDArray[np.generic]] | None = None,
    seed: int = 0,
    coordinates: int = 3,
    tolerance: float = 0.02,
) -> float:
    """Try the part on a small batch: finite results, and gradients that finite differences confirm.

    Integer inputs get 0 and 1 (valid labels and indices almost everywhere); pass `feeds` where the part
    needs other data. For each tensor the coordinate with the largest gradient and a few random ones are
    compared with central differences. Returns the largest deviation, relative to the tensor's largest
    gradient.

    Raises InvalidGraph if ONNX Runtime cannot run the part, a result is not finite, or the two disagree.
    """
    rng = np.random.default_rng(seed)
    given = feeds or {}
    data = {name: given.get(name, sample(spec, batch, rng)) for name, spec in part.inputs.items()}
    upstream: dict[str, NDArray[np.float32]] = {}
    if part.kind == "encoder":
        graph, tensors = encoder_gradient(part, batch), {name: f"grad/{name}" for name in part.parameters}
        for name in ("keys", "values"):
            upstream[name] = sample(part.outputs[name], batch, rng).astype(np.float32)
    else:
        graph, tensors = head_gradient(part, batch), {name: f"grad/{name}" for name in part.parameters}
        tensors["fused"] = "dfused"
        upstream["loss"] = np.ones((), np.float32)
    point = {**data, **part.parameters}
    forward = Runner(part.forward, part.place)

    def objective(at: Mapping[str, NDArray[np.generic]]) -> tuple[float, float]:
        """The value, and how much float32 rounding moves it."""
        terms = [
            (output.astype(np.float64) * upstream[name]).ravel()
            for name, output in zip(upstream, forward(list(upstream), at), strict=True)
        ]
        joined = np.concatenate(terms)
        return float(joined.sum()), 4 * float(np.finfo(np.float32).eps) * float(np.linalg.norm(joined))

    backward = Runner(graph, part.place)
    gradients = backward(list(tensors.values()), {**point, **{f"d{k}": v for k, v in upstream.items()}})
    value, _ = objective(point)
    if not np.isfinite(value) or not all(np.isfinite(gradient).all() for gradient in gradients):
        raise InvalidGraph(f"{part.place}: loss or gradient is not finite on a random batch; check its scale")
    return compare_with_differences(
        objective,
        point,
        dict(zip(tensors, gradients, strict=True)),
        dict.fromkeys(tensors, coordinates),
        rng=rng,
        tolerance=tolerance,
        place=part.place,
        still=padding_rows(onnx.load_model_from_string(part.forward).graph),
    )


def compare_with_differences(
    objective: Callable[[Mapping[str, NDArray[np.generic]]], tuple[float, float]],
    point: Mapping[str, NDArray[np.generic]],
    gradients: Mapping[str, NDArray[np.float32]],
    coordinates: Mapping[str, int],
    *,
    rng: np.random.Generator,
    tolerance: float,
    place: str,
    labels: Mapping[str, str] | None = None,
    still: Mapping[str, int] | None = None,
) -> float:
    """Hold gradients of `objective` at `point` against central differences.

    `objective` maps tensors to its value and to how much rounding moves it. For each tensor of `coordinates`
    the coordinate with the largest gradient and so many random ones are compared, at up to three step sizes
    and at what two of them point to (Richardson), the best one counting: a kink lies in one step's way more
    often than in all. Where one lies in every step's way (a maximum over thousands of places has them
    everywhere), a gradient between the slopes of the two sides of a small step is right. `labels`: tensors'
    names for people. `still`: rows that are not compared, as not all that reads them trains them
    (padding.py). Returns the largest deviation, relative to the tensor's largest gradient.

    Raises InvalidGraph where the two disagree by more than `tolerance`.
    """
    worst = 0.0
    for name, count in coordinates.items():
        flat, row = gradients[name].reshape(-1), (still or {}).get(name)
        if row is not None:
            flat = _without(gradients[name], row)
        # Without a copy of a large tensor.
        top = max(int(flat.argmax()), int(flat.argmin()), key=lambda index: (abs(flat[index]), -index))
        largest = abs(float(flat[top]))
        moved = np.array(point[name], np.float32)
        there = {**point, name: moved}
        for index in sorted({top, *rng.integers(flat.size, size=count).tolist()}):
            if row is not None and index // math.prod(gradients[name].shape[1:]) == row:
                continue
            gradient = float(flat[index])
            relative, miss = np.inf, np.inf
            narrow: list[tuple[float, float, float]] = []  # width, and the values on both sides
            slopes: list[float] = []
            for step in (_WIDE, 2e-3, 4e-4):
                start = float(point[name].flat[index])
                width = step * max(1.0, abs(start))
                sides, noise = [], 0.0
                for side in (width, -width):
                    moved.flat[index] = start + side
                    value, rounding = objective(there)
                    sides.append(value)
                    noise = max(noise, rounding / width)
                narrow += [(width, sides[0], sides[1])] if step < _WIDE else []
                if np.isfinite(relative) and noise > largest / 4:
                    break  # rounding hides the gradient: so small a step says nothing
                slopes.append((sides[0] - sides[1]) / (2 * width))
                error = abs(slopes[-1] - gradient)
                if len(slopes) > 1:  # where the curve bends within a step: what both steps point to
                    bend = (_WIDE / 2e-3) ** 2 - 1
                    error = min(error, abs(slopes[-1] + (slopes[-1] - slopes[-2]) / bend - gradient))
                if np.isfinite(error):
                    miss = min(miss, max(0.0, error - noise))
                relative = miss / max(largest, 1e-12)
                if relative <= tolerance:
                    break
            moved.flat[index] = start
            if not relative <= tolerance and _between(narrow, objective(there)[0], gradient):
                relative = 0.0
            worst = max(worst, relative)
            if not relative <= tolerance:
                label = (labels or {}).get(name, name)
                raise InvalidGraph(
                    f"{place}: the gradient of '{label}' at {index} is {gradient:.6g}, and finite "
                    f"differences miss it by {miss:.3g}; an operator after it is not differentiable"
                )
        del moved, there  # before the next one's copy
    return worst


def _without(gradient: NDArray[np.float32], row: int) -> NDArray[np.float32]:
    """Its elements, with 0 in that row."""
    copy = gradient.copy()
    copy[row] = 0
    return copy.reshape(-1)


def _between(sides: Sequence[tuple[float, float, float]], middle: float, gradient: float) -> bool:
    """Whether a gradient lies between the slopes to both sides, at one of some widths."""
    for width, above, below in sides:
        low, high = sorted([(above - middle) / width, (middle - below) / width])
        if low <= gradient <= high:
            return True
    return False


def _node_of(error: BaseException) -> NodeProto | None:
    """The node whose rule raised it, as far as can be told: the library does not say."""
    found, trace = None, error.__traceback__
    while trace:
        node = trace.tb_frame.f_locals.get("node")
        if isinstance(node, NodeProto):
            found = node
        trace = trace.tb_next
    return found


def _check_sizes(model: ModelProto, place: str) -> None:
    graph = model.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if math.prod(shape) > MAX_ELEMENTS:
            raise InvalidGraph(
                f"{place}: tensor '{value.name}' of shape {shape} has over {MAX_ELEMENTS} elements; "
                "choose a smaller batch or a smaller part"
            )
