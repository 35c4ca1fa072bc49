"""A deployed model, shown to a person."""

from __future__ import annotations

from edge_attention.cli.output import print_table, say, size
from edge_attention.core.messages.inference import DeployedModel, ModelTensor

__all__ = ["asked_by", "print_model"]

TOLD = 4
"""Inputs, or outputs, that are told one by one: decoders have two of each layer."""


def asked_by(model: DeployedModel, tokenizer: bool) -> str:
    """The command that asks it. `tokenizer`: it was deployed with one."""
    if model.sessions:
        return f"edge-attention generate {model.name} " + ('"PROMPT"' if tokenizer else "--ids 1,2,3")
    if len(model.inputs) > TOLD:
        return f"edge-attention infer {model.name} --input inputs.npz"
    inputs = " ".join(f"--input {one.name}={one.name}.npy" for one in model.inputs)
    return f"edge-attention infer {model.name} {inputs}"


def print_model(model: DeployedModel) -> None:
    """One model, for a person: the plan in words, and its parts."""
    state = model.state.value + (f" ({model.detail})" if model.detail else "")
    say(f"{model.name}, version {model.version}: {state}; {size(model.bytes)}, plan {model.plan}")
    if model.outputs:  # known once it is planned
        say(f"  takes   {_tensors(model.inputs)}", f"  gives   {_tensors(model.outputs)}")
    if model.plan_text:
        say(f"  plan    {model.plan_text}{'; activations pass in float16' if model.halves else ''}")
    if model.shapes:
        say(f"  ready for {'; '.join(model.shapes)}")
    if model.coverage < 1:
        say(f"  NOT WHOLE: the parts do {model.coverage:.1%} of the model; lacking: {model.lacking}")
    elif model.lacking:
        say(f"  NOT EXACT: {model.lacking}")
    if model.batching:
        say(f"  batches {model.batching}")
    for note in model.notes:
        say(f"  {note}")
    if model.parts:
        print_table(
            ("part", "layers", "share", "weights", "held by", "reachable"),
            (
                (
                    part.part,
                    f"{part.layers.start}-{part.layers.stop - 1}",
                    part.share,
                    size(part.bytes),
                    ", ".join(part.holders) or "-",
                    ", ".join(part.live) or "none",
                )
                for part in model.parts
            ),
        )
    if model.considered:
        print_table(
            ("plan not taken", "predicted ms", "why"),
            (
                (one.plan, f"{1000 * one.seconds:.1f}" if one.seconds else "-", one.reason or "slower")
                for one in model.considered
            ),
        )


def _tensors(tensors: tuple[ModelTensor, ...]) -> str:
    told = [f"{t.name} {t.data_type.value} [{', '.join(t.shape)}]" for t in tensors[:TOLD]]
    if len(tensors) > TOLD:
        told.append(f"and {len(tensors) - TOLD} more (--json)")
    return ", ".join(told) or "nothing"
