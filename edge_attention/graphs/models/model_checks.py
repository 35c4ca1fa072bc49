"""A model tried out on a small batch before a fleet trains it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.gradients.gradients import Runner, compare_with_differences, sample
from edge_attention.graphs.lookups import padding_rows
from edge_attention.graphs.models.model import Model, gradient_graph, parameter_inputs
from edge_attention.graphs.onnx_file import serialize

__all__ = ["check_model"]

# Coordinates in all: every one costs two forward passes, six at worst.
_COORDINATES, _COORDINATES_OF_LARGE = 48, 16
_LARGE = 1 << 22  # elements


def check_model(
    model: Model,
    batch: int = 4,
    *,
    feeds: Mapping[str, NDArray[np.generic]] | None = None,
    seed: int = 0,
    tolerance: float = 0.05,
) -> float:
    """Try the model at its initial values: finite loss and gradients, which finite differences confirm.

    Float inputs are normal, integer inputs 0 and 1 (valid labels and tokens almost everywhere), or all 1
    where the loss of that is not finite; `feeds` gives other data where the model needs it, of `batch`
    rows. A step graph of a fixed batch is tried at that one.
    Returns the largest deviation found, relative to the tensor's largest gradient.

    Raises InvalidGraph if the model cannot be differentiated (naming the operator) or run, if a result is not
    finite, or if gradient and finite differences disagree.
    """
    rng = np.random.default_rng(seed)
    batch = next((shape[0] for _, shape in model.inputs.values() if shape and shape[0]), batch)
    given = feeds or {}
    if unknown := sorted(set(given) - set(model.inputs)):
        raise InvalidGraph(f"{model.place}: no input '{unknown[0]}'; there are {list(model.inputs)}")
    point: dict[str, NDArray[np.generic]] = {
        name: given.get(name, sample(spec, batch, rng)) for name, spec in model.inputs.items()
    }
    point |= {f"x/{i}": array for i, array in enumerate(model.parameters.values())}
    tensors = parameter_inputs(model)
    labels = dict(zip(tensors, model.names, strict=True))
    step = serialize(gradient_graph(model, batch))
    backward = Runner(step, model.place)
    loss, *found = backward(["loss", *tensors.values()], point)
    if not np.isfinite(loss):
        # Rows of nothing but 0, which is padding in many models, of which attention sees no token.
        drawn = {name: spec for name, spec in model.inputs.items() if name not in given}
        point |= {name: np.ones_like(point[name]) for name, (kind, _) in drawn.items() if kind.kind in "iu"}
        loss, *found = backward(["loss", *tensors.values()], point)
    if not np.isfinite(loss):
        raise InvalidGraph(
            f"{model.place}: the loss is {float(loss)} on a random batch; check its scale, or its masks"
        )
    gradients = dict(zip(tensors, found, strict=True))
    for name, gradient in gradients.items():
        if not np.isfinite(gradient).all():
            raise InvalidGraph(
                f"{model.place}: the gradient of '{labels[name]}' is not finite on a random batch; look for "
                "a square root, logarithm or division of zero before the loss"
            )
    forward = Runner(model.forward or step, model.place)

    def objective(at: Mapping[str, NDArray[np.generic]]) -> tuple[float, float]:
        value = float(forward(["loss"], at)[0])
        return value, 4 * float(np.finfo(np.float32).eps) * abs(value)

    return compare_with_differences(
        objective,
        point,
        gradients,
        _spread(model),
        rng=rng,
        tolerance=tolerance,
        place=model.place,
        labels=labels,
        still=padding_rows(onnx.load_model_from_string(model.forward).graph) if model.forward else None,
    )


def _spread(model: Model) -> dict[str, int]:
    """How many random coordinates of which tensors, besides the one with the largest gradient."""
    names = list(parameter_inputs(model))
    large = sum(array.size for array in model.parameters.values()) > _LARGE
    total = _COORDINATES_OF_LARGE if large else _COORDINATES
    if len(names) > total:
        picked = np.linspace(0, len(names) - 1, total).round().astype(int)
        return {names[i]: 0 for i in picked}
    return dict.fromkeys(names, min(3, total // len(names) - 1))
