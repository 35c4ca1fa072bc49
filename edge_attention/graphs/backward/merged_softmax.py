"""The backward pass of attention over a part's keys, merged with the other parts' (DESIGN section 4).

    P  = softmax(s) exp(lse - merged lse)      the share of the part's keys of all attention
    dV = P^T dO     dS = P * (dO V^T - delta)  delta = rowsum(dO * out), of the merged out

A segment's softmax over its keys is taken out of what is differentiated: its weights are an input `P` there,
and its scores an output that is given `dS`. What joins both is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.graphs.backward.fixed_graph import FixedGraph
from edge_attention.graphs.onnx_file import ints

__all__ = ["MergedSoftmax", "find_merged", "joined", "taken_out"]


@dataclass(frozen=True)
class MergedSoftmax:
    """A softmax over a part's keys, by names of its segment's values.

    Attributes:
        scores, weights: what it takes and gives, [..., queries, keys].
        lse: of its rows, [..., queries, 1], before it is put in another shape.
        outs: outputs of the segment that are partials of it, each with the output that has their lse.
        reader: output of the node that reads the weights for the lse, and stays.
    """

    scores: str
    weights: str
    lse: str
    outs: tuple[tuple[str, str], ...]
    reader: str

    @property
    def shares(self) -> str:
        """The name of P."""
        return f"merged/{self.weights}"


def find_merged(fixed: FixedGraph, partials: Mapping[str, str]) -> list[MergedSoftmax]:
    """The softmax behind each partial: `partials` maps an output `out` to its `lse`.

    As `axes/merging.py` writes it: lse = where(seen, base - log(max(softmax(s))), -inf).
    """
    found: dict[str, MergedSoftmax] = {}
    for out, lse in partials.items():
        node = fixed.makers[lse]
        while node.op_type in ("Reshape", "Identity"):
            node = fixed.makers[node.input[0]]
        rows = node.output[0]
        node = fixed.makers[fixed.makers[node.input[1]].input[1]]  # of the Sub in the Where
        peak = fixed.makers[node.input[0]]
        if peak.op_type == "Cast":
            peak = fixed.makers[peak.input[0]]
        softmax = fixed.makers[peak.input[0]]
        assert (node.op_type, peak.op_type, softmax.op_type) == ("Log", "ReduceMax", "Softmax")
        weights = softmax.output[0]
        before = found[weights].outs if weights in found else ()
        found[weights] = MergedSoftmax(softmax.input[0], weights, rows, (*before, (out, lse)), peak.output[0])
    return list(found.values())


def taken_out(fixed: FixedGraph, merged: Sequence[MergedSoftmax]) -> ModelProto:
    """A copy of the segment in which what becomes of the weights is of the inputs `P`.

    Its outputs are, beside its own, the scores, weights and lse.
    """
    model = ModelProto()
    model.CopyFrom(fixed.model)
    graph = model.graph
    shares = {one.weights: one for one in merged}
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in shares and shares[name].reader not in node.output:
                node.input[position] = shares[name].shares
    outputs = {value.name for value in graph.output}
    for one in merged:
        graph.input.append(_info(one.shares, fixed.forms[one.weights]))
        for name in (one.scores, one.weights, one.lse):
            if name not in outputs:
                outputs.add(name)
                graph.output.append(_info(name, fixed.forms[name]))
    return model


def joined(
    one: MergedSoftmax,
    fixed: FixedGraph,
    back: str | None,
    lse: str,
    deltas: Sequence[str],
    seed: str,
) -> tuple[list[NodeProto], list[TensorProto]]:
    """What makes P of the part's own weights, and dS of dP.

    Args:
        back: the value dP; None: no gradient comes to the scores.
        lse: the value of the merged lse, elements as the part's own; `deltas` the same, one a partial.
        seed: what dS is to be called.
    """
    mark = one.shares
    rows = fixed.forms[one.lse].shape
    made: list[NodeProto] = []

    def node(kind: str, inputs: Sequence[str], name: str) -> str:
        made.append(helper.make_node(kind, list(inputs), [name]))
        return name

    zero = f"{mark}/zero"
    tensors = [ints(f"{mark}/rows", rows), numpy_helper.from_array(np.array(0, np.float32), zero)]
    there = node("Reshape", [lse, f"{mark}/rows"], f"{mark}/lse")
    unseen = node("IsInf", [one.lse], f"{mark}/unseen")
    # Rows that see no key of the part: their weights are NaN, and their share is none.
    less = node("Sub", [one.lse, there], f"{mark}/less")
    share = node("Exp", [less], f"{mark}/share")
    scaled = node("Mul", [one.weights, share], f"{mark}/scaled")
    node("Where", [unseen, zero, scaled], mark)
    if back is not None:
        total = deltas[0] if len(deltas) == 1 else node("Sum", deltas, f"{mark}/deltas")
        delta = node("Reshape", [total, f"{mark}/rows"], f"{mark}/delta")
        node("Mul", [mark, node("Sub", [back, delta], f"{mark}/over")], seed)
    return made, tensors


def _info(name: str, form: TensorForm) -> ValueInfoProto:
    number = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
    return helper.make_tensor_value_info(name, number, form.shape)
