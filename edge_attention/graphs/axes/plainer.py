"""Nodes that do less than they seem to: what gives its input on, joins nothing, turns rows and back."""

from __future__ import annotations

from collections.abc import Container, Mapping

from onnx import NodeProto, helper

from edge_attention.graphs.axes.known_values import KnownValues

__all__ = ["leave_out_empty", "passes", "plain_softmax"]


def passes(node: NodeProto, known: KnownValues, unread: Container[str]) -> bool:
    """Whether it gives its first input on: an Identity, a Dropout that is off, a Concat of one.

    `unread`: results that nobody reads, as the mask that older exporters have a Dropout make.
    """
    if node.domain:
        return False
    if node.op_type == "Identity" or (node.op_type == "Concat" and len(node.input) == 1):
        return True
    if node.op_type != "Dropout" or any(name and name not in unread for name in node.output[1:]):
        return False
    ratio = known.value(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    training = known.value(node.input[2]) if len(node.input) > 2 else None
    off = len(node.input) < 3 or (training is not None and not training.any())
    return off or (ratio is not None and not ratio.any())


def leave_out_empty(node: NodeProto, known: KnownValues) -> None:
    """Leave out what adds nothing to a Concat: what of a head is not turned by its place, where all is; a
    past that has not begun."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    kept = []
    for name in node.input:
        form = known.form(name)
        if form is None or not -len(form.shape) <= axis < len(form.shape) or form.shape[axis]:
            kept.append(name)
    if kept:
        del node.input[:]
        node.input.extend(kept)


def plain_softmax(node: NodeProto, rows: Mapping[str, NodeProto], known: KnownValues) -> NodeProto:
    """A Softmax over the last axis, in place of a Reshape of one over rows that were flattened for it: so
    onnx's converter writes one of before opset 13 where it does not know its axis to be the last.

    `rows`: by what they make, the nodes Flatten and Softmax so far.
    """
    soft = rows.get(node.input[0])
    flat = rows.get(soft.input[0]) if soft is not None and soft.op_type == "Softmax" else None
    if soft is None or flat is None or flat.op_type != "Flatten":
        return node
    form, said = known.form(flat.input[0]), known.value(node.input[1])
    if form is None or said is None or tuple(int(size) for size in said.reshape(-1)) != form.shape:
        return node
    last = len(form.shape) - 1
    axes = [next((a.i for a in one.attribute if a.name == "axis"), 1) for one in (flat, soft)]
    if axes[0] not in (-1, last) or axes[1] not in (-1, 1):
        return node
    return helper.make_node("Softmax", flat.input[:1], node.output[:1], name=node.name, axis=-1)
