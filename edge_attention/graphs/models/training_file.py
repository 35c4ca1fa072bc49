"""A loaded model as a file again, with its loss in it: what is cut into parts that train."""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.models.model import pruned
from edge_attention.graphs.models.model_form import LOSS_WEIGHT, METRIC, Model
from edge_attention.graphs.onnx_file import all_nodes, keep, rename_values, values_of

__all__ = ["tied_weights", "training_file"]

_SHOWN = 4
"""Weights, and readers of one, that a note names."""


def training_file(model: Model) -> ModelProto:
    """The forward graph of `model`, its parameters initializers again under `model.names`.

    Inputs: data and labels, dimension 0 symbolic. Outputs: `loss` float32 [], and LOSS_WEIGHT and
    `metric/<name>` where the model has them. Two parameters that the file's exporter had merged are two
    initializers here; one that is read in several places is really one. It takes the memory of the model once
    more: whoever writes it may have to put its weights beside it.

    Raises InvalidGraph for a step graph, and for a parameter called as some other value here is.
    """
    if model.step:
        raise InvalidGraph(
            f"{model.place}: it computes its own gradients, all at once: bring the model without, to cut it"
        )
    weight = [LOSS_WEIGHT] if model.weighted else []
    file = pruned(model, ["loss", *weight, *(METRIC + name for name in model.metrics)])
    graph = file.graph
    held = {f"x/{number}": name for number, name in enumerate(model.names)}
    if taken := sorted((values_of(graph) - held.keys()) & set(model.names)):
        raise InvalidGraph(
            f"{model.place}: parameter '{taken[0]}' is called as a value of the job's own; rename it"
        )
    keep(graph.input, {value.name for value in graph.input} - held.keys())
    rename_values(graph, held)
    graph.initializer.extend(numpy_helper.from_array(model.parameters[name], name) for name in model.names)
    return file


def tied_weights(file: ModelProto, names: Collection[str]) -> tuple[str, ...]:
    """Sentences on those of `names` that several operators read: one weight, whose gradient is the sum."""
    readers: dict[str, list[str]] = {}
    for node in all_nodes(file.graph):
        for name in set(node.input) & set(names):
            readers.setdefault(name, []).append(f"{node.op_type} '{node.name or node.output[0]}'")
    tied = {name: nodes for name, nodes in readers.items() if len(nodes) > 1}
    notes = [
        f"'{name}' is one weight that {_listed(nodes)} read: it trains by all of them"
        for name, nodes in list(tied.items())[:_SHOWN]
    ]
    if len(tied) > _SHOWN:
        notes.append(f"{len(tied) - _SHOWN} more weights are read in several places, and are one each")
    return tuple(notes)


def _listed(words: list[str]) -> str:
    if len(words) > _SHOWN:
        return f"{', '.join(words[:_SHOWN])} and {len(words) - _SHOWN} more"
    return f"{', '.join(words[:-1])} and {words[-1]}"
