"""What a model is once it is loaded, and the names its tensors have then."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.onnx_file import TensorSpec, keep, rename_values, values_of

__all__ = [
    "LOSS_WEIGHT",
    "METRIC",
    "LabelKind",
    "Model",
    "ParameterArrays",
    "check_input",
    "lift",
    "set_aside",
    "take_out",
]

METRIC = "metric/"
"""Prefix of the outputs that count something over the batch."""
LOSS_WEIGHT = "loss/weight"
"""The output that says what a batch counts, in rows, where its rows or labels do not all count alike."""
_TAKEN_OUT = 1 << 16  # bytes of an initializer; what is smaller costs nothing
ParameterArrays = dict[str, NDArray[np.float32]]

# What the graphs of a job add to a model; a tensor of the file so named is renamed, a data input refused.
_RESERVED = (
    *("x/", "p/", "grad/", "sum/", "next/", "slot/", "anchor/", "control/", "extra/", "update/", "residual/"),
    *("probe/", "adjoint/", "loss/", "penalty/", METRIC),
)
_RESERVED_NAMES = {
    *("alpha", "count", "loss", "loss_sum", "lr", "max_norm", "mu", "norm", "penalty", "penalty_weight"),
    "steps",
}


@dataclass(frozen=True)
class LabelKind:
    """What the labels of a standard loss must be, for whoever checks them before a run.

    Attributes:
        labels, weights: the graph inputs; `weights` empty: there are none.
        classes: labels are int64, 0 to `classes` - 1; 0: they are float32.
        binary: they are between 0 and 1.
        ignore: the label that does not count, if there is one.
    """

    labels: str
    weights: str = ""
    classes: int = 0
    binary: bool = False
    ignore: int | None = None


@dataclass(frozen=True, eq=False)
class Model:
    """A checked model.

    `forward`: its graph. Inputs: data (dimension 0 symbolic: "batch") and parameters `x/<i>`; outputs `loss`,
    `metric/<name>` and those outputs of the file that were wanted. Empty for a step graph of one fixed batch.
    `names`: the parameters, as the file calls them, in its order; `<i>` counts them. `parameters`: their
    initial values (float32, read-only). `inputs`: the data inputs, labels included. `metrics`: what is
    summed over the batch. `untied`: parameters that the file's exporter had merged into another one.
    `dropped`: parameters of the exporter's model that the file does not have (all zero, mostly).
    `step`: of a step graph, the user's own gradient graph, with the names of `gradient_graph`.
    `weighted`: `forward` has the output LOSS_WEIGHT. `label`: of a standard loss, what its labels must be.
    `frozen`: weights that the loss depends on and that do not train, and why. `cut`: outputs of the file that
    nothing here needs. `dimensions`: sizes of what the file leaves open. `notes`:
    sentences that whoever trains it should read.
    """

    place: str
    forward: bytes
    names: tuple[str, ...]
    parameters: ParameterArrays
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    metrics: tuple[str, ...]
    untied: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    step: bytes = b""
    weighted: bool = False
    label: LabelKind | None = None
    frozen: dict[str, str] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    dimensions: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_input(name: str, place: str) -> None:
    """Raises InvalidGraph for a data input whose name the graphs of a job need."""
    if name.startswith(_RESERVED) or name in _RESERVED_NAMES:
        raise InvalidGraph(f"{place}: the input name '{name}' is reserved for training; rename the input")


def set_aside(graph: GraphProto, wanted: Collection[str]) -> dict[str, str]:
    """Rename values whose names the graphs of a job need, and drop outputs so named that no one wants.

    Returns the new names by the old.
    """
    names = values_of(graph)
    renamed = {}
    for name in sorted(names - set(wanted)):
        if name.startswith(_RESERVED) or name in _RESERVED_NAMES:
            renamed[name] = f"model/{name}"
            while renamed[name] in names:
                renamed[name] += "'"
    keep(graph.output, {value.name for value in graph.output} - set(renamed))
    rename_values(graph, renamed)
    return renamed


def take_out(graph: GraphProto, names: Collection[str]) -> dict[str, TensorProto]:
    """Take the values of these initializers out of the graph, where only dtype and shape stay.

    What is done to the graph then copies no weights: a model is in memory once.
    """
    taken = {}
    for tensor in graph.initializer:
        if tensor.name in names and len(tensor.raw_data) > _TAKEN_OUT:
            taken[tensor.name] = kept = TensorProto()
            kept.CopyFrom(tensor)
            tensor.ClearField("raw_data")
    return taken


def lift(
    graph: GraphProto, held: Mapping[str, str], place: str, weights: Mapping[str, TensorProto] | None = None
) -> ParameterArrays:
    """Turn initializers into inputs `x/<i>`. `held`: the parameters' names, and what they are called here.

    `weights`: by parameter, what `take_out` has taken.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    taken = weights or {}
    parameters = {name: _value(taken.get(name, tensors[inner]), place) for name, inner in held.items()}
    keep(graph.initializer, set(tensors) - set(held.values()))
    rename_values(graph, {inner: f"x/{i}" for i, inner in enumerate(held.values())})
    graph.input.extend(
        helper.make_tensor_value_info(f"x/{i}", TensorProto.FLOAT, array.shape)
        for i, array in enumerate(parameters.values())
    )
    return parameters


def _value(tensor: TensorProto, place: str) -> NDArray[np.float32]:
    array = np.array(numpy_helper.to_array(tensor), dtype=np.float32, order="C")
    if not np.isfinite(array).all():
        raise InvalidGraph(f"{place}: parameter '{tensor.name}' has NaN or Inf; export it again")
    array.flags.writeable = False
    return array
