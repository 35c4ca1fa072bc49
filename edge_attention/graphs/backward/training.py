"""A model with its loss, a plan and sizes in; a schedule that computes the loss and the gradients out."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import helper

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.plan import CutPlan
from edge_attention.core.schedule.schedule import TensorForm, Weight
from edge_attention.graphs.axes.cut import analyse, cut, sizes_of
from edge_attention.graphs.axes.emit import Emitted
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.backward.transpose import transposed

__all__ = ["training_axes", "training_cut"]


def training_axes(model: OpenModel, trained: Collection[str], feeds: Mapping[str, TensorForm]) -> Axes:
    """The axes of a model with its loss, whose layers a plan names. Raises as `analyse` and `sizes_of`."""
    return analyse(model, sizes_of(model, feeds), changing=trained)


def training_cut(
    model: OpenModel,
    trained: Collection[str],
    plan: CutPlan,
    feeds: Mapping[str, TensorForm],
    *,
    loss: str = "loss",
    recompute: bool = False,
    axes: Axes | None = None,
) -> Emitted:
    """Cut a model that has its loss (models/training_file.py) into parts that train it together.

    Args:
        trained: initializers that train, by name; all others are frozen, and have no gradient.
        plan: of the layers that `training_axes` finds.
        feeds: forms of the model's inputs, labels among them.
        loss: the output, a float32 scalar, that the gradients are of.
        recompute: see `transposed`.
        axes: what `training_axes` found, where it is at hand.

    The schedule's results are the model's outputs and, of each weight that trains, `grad:<initializer>`, of
    its shape. These weights must not be frozen into sessions.

    Raises:
        InvalidArgument: the plan is not of this model, or none to train by.
        InvalidGraph: an operator between a trained weight and the loss has no gradient, with its name.
    """
    if plan.halves or plan.mean:
        word = "halves" if plan.halves else "the plain mean"
        raise InvalidArgument(f"a plan with {word} is none to train by; take it without")
    if unknown := sorted(set(trained) - {tensor.name for tensor in model.model.graph.initializer}):
        raise InvalidArgument(f"the model has no weight '{unknown[0]}' that could train")
    emitted = cut(training_axes(model, trained, feeds) if axes is None else axes, plan)
    if emitted.schedule.coverage < 1:
        raise InvalidArgument(
            f"{emitted.schedule.lacking}: a model is trained as a whole; give all heads to some part"
        )
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.model.graph.initializer}
    kinds = _dtypes(model)

    def form(weight: Weight) -> TensorForm:
        return TensorForm(kinds[weight.name], extent_shape(shapes[weight.name], weight.extent))

    return transposed(emitted, trained, form, loss=loss, recompute=recompute)


def _dtypes(model: OpenModel) -> dict[str, str]:
    return {
        tensor.name: helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        for tensor in model.model.graph.initializer
    }
