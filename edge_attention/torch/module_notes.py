"""What a module does in PyTorch's training that its file does not, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from edge_attention.graphs.models.module_note import ModuleNote
from edge_attention.graphs.onnx_file import all_nodes
from edge_attention.torch.report import some
from edge_attention.torch.trying import GradientsFound, InTraining

__all__ = ["SaidOfModule", "notes_of", "notes_of_training"]

_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


@dataclass(frozen=True)
class SaidOfModule:
    """A sentence. `loud`: what trains is otherwise than in PyTorch, so that it is worth a warning."""

    text: str
    loud: bool = False


def notes_of(
    module: nn.Module, note: ModuleNote, model: Any, inputs: Sequence[str]
) -> Iterator[SaidOfModule]:
    """What is to be said of `module`, whose file is `model` (an onnx.ModelProto)."""
    named = dict(module.named_modules())
    if note.unused:
        yield SaidOfModule(
            f"no output depends on {some(note.unused)}: not in the file, and will not train", loud=True
        )
    held = dict(module.named_parameters())
    still = [name for name in note.frozen if held[name].requires_grad]
    if frozen := [name for name in note.frozen if name not in still]:
        yield SaidOfModule(f"{some(frozen)} have requires_grad=False: in the file, and do not train")
    if still:
        yield SaidOfModule(
            f"{some(still)} have no gradient in PyTorch (forward detaches what they make, or has no_grad): "
            "in the file, and do not train",
            loud=True,
        )
    for other, name in note.tied.items():
        yield SaidOfModule(f"{other} is {name}: one weight in the file, trained by all its uses")
    dropouts = [f"{name} ({one.p:g})" for name, one in named.items() if isinstance(one, _DropoutNd) and one.p]
    dropouts += [
        f"{name} ({one.dropout:g})"
        for name, one in named.items()
        if isinstance(one, nn.MultiheadAttention | nn.RNNBase) and one.dropout
    ]
    if dropouts:
        yield SaidOfModule(
            f"dropout is off in the file, also while it trains: {some(dropouts)}; if the run overfits, use "
            "weight decay (adamw) or fewer epochs",
            loud=True,
        )
    norms = {name: one for name, one in named.items() if isinstance(one, _BatchNorm)}
    if kept := [name for name, one in norms.items() if one.running_mean is not None]:
        yield SaidOfModule(
            f"batch norms {some(kept)} use their running statistics, which stay as they are while weight and "
            "bias train; bring statistics of your data in the module, or use LayerNorm or GroupNorm",
            loud=True,
        )
    if own := [name for name, one in norms.items() if one.running_mean is None]:
        yield SaidOfModule(f"batch norms {some(own)} have no running statistics: rows of a batch meet there")
    if gone := [name for name in inputs if name not in {value.name for value in model.graph.input}]:
        yield SaidOfModule(f"no output depends on the input {some(gone)}: it is not in the file", loud=True)
    random = sorted({n.op_type for n in all_nodes(model.graph) if n.op_type in _RANDOM})
    if random:
        yield SaidOfModule(f"{some(random)} is random, which cannot train: remove it from forward", loud=True)
    types = {held[name].dtype for name in note.trained if name in held} - {torch.float32}
    if types:
        said = ", ".join(sorted(str(one).removeprefix("torch.") for one in types))
        yield SaidOfModule(f"parameters in {said} train in float32, and come back as {said}")
    whole = [name for name, one in module.named_buffers() if one.is_floating_point()]
    state = module.state_dict()
    if folded := [name for name in whole if name in state and name not in (*note.buffers, *note.tied)]:
        yield SaidOfModule(f"buffers {some(folded)} are not in the file: nothing reads them")


def notes_of_training(
    module: nn.Module, note: ModuleNote, gradients: GradientsFound | None, training: InTraining | None
) -> Iterator[SaidOfModule]:
    """What trying `module` has shown."""
    for table, row in note.padding.items():
        yield SaidOfModule(f"row {row} of {table} is padding: lookups do not train it, as in PyTorch")
    if gradients is not None and gradients.otherwise:
        yield SaidOfModule(
            f"PyTorch's gradients of {some(gradients.otherwise)} are not those of what forward computes (a "
            "detach or no_grad, a backward pass of its own): in the file they are, so they train "
            "otherwise; to train as there bring a step graph (docs/federated.md)",
            loud=True,
        )
    tables = {n: one for n, one in module.named_modules() if isinstance(one, nn.Embedding | nn.EmbeddingBag)}
    if scaled := [name for name, one in tables.items() if one.scale_grad_by_freq]:
        yield SaidOfModule(f"scale_grad_by_freq of {some(scaled)} does nothing in the file", loud=True)
    if limited := [name for name, one in tables.items() if one.max_norm is not None]:
        yield SaidOfModule(
            f"max_norm of {some(limited)}, which forward shortens rows to, does nothing in the file: rows "
            "are as the example left them",
            loud=True,
        )
    if training is None:
        return
    if training.random:
        yield SaidOfModule(
            "forward is random in training mode, besides by the dropouts that are modules "
            "(functional.dropout, noise, paths left out): off in the file, also while it trains",
            loud=True,
        )
    if training.changed:
        yield SaidOfModule(
            f"forward changes {some(training.changed)} in training mode (running statistics, power "
            "iterations): in the file they stay as they are, also while it trains",
            loud=True,
        )
    if training.otherwise:
        yield SaidOfModule(
            "forward computes something else in training mode (it reads self.training): what the file has, "
            "and what trains, is evaluation mode",
            loud=True,
        )
    if training.failed:
        yield SaidOfModule(
            f"what forward does in training mode is not known: called so it fails ({training.failed})"
        )
