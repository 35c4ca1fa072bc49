"""Operators that join a past inside: it is joined before them, by a Concat, as others write it.

com.microsoft.MultiHeadAttention   past_key, past_value [batch, heads, tokens, width]
Attention (opset 23)               the same

A row has one token, which sees all that is joined: what hides later tokens from earlier ones is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from edge_attention.core.tensors import Array

__all__ = ["joined_before"]

_CAUSAL = ("is_causal", "unidirectional")
_HEADS = ("q_num_heads", "kv_num_heads")


def joined_before(
    node: NodeProto, inputs: Collection[str], constant: Callable[[Array], str], name: Callable[[str], str]
) -> Sequence[NodeProto]:
    """What stands in the node's place; itself, where it is no such operator, or does more.

    Args:
        inputs: of the model.
        constant: adds one, and gives its name.
        name: a new one.
    """
    own = node.op_type == "Attention" and node.domain == ""
    fused = node.op_type == "MultiHeadAttention" and node.domain == "com.microsoft"
    past_at = 4 if own else 6
    given = [*node.input, *[""] * 16][:16]
    pasts = given[past_at : past_at + 2]
    does_more = (
        any(given[past_at + 2 :]) or any(node.output[3:]) or (fused and given[3]) or not all(given[1:3])
    )
    if not (own or fused) or does_more or not set(pasts) <= set(inputs):
        return [node]
    at = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    made: list[NodeProto] = []

    def add(op: str, *given: str, out: str = "", **attributes: Any) -> str:
        out = out or name(op)
        made.append(helper.make_node(op, list(given), [out], name=out, **attributes))
        return out

    def by_head(value: str, heads: int) -> str:
        shape = constant(np.array([0, 0, heads, -1], np.int64))
        return add("Transpose", add("Reshape", value, shape), perm=[0, 2, 1, 3])

    query, *new = given[:3]
    flat = fused or "q_num_heads" in at
    if flat:
        heads = int(at["num_heads"] if fused else at["kv_num_heads"])
        new = [by_head(value, heads) for value in new]
    presents = [*node.output[1:], "", ""][:2]
    joined = [
        add("Concat", past, value, out=out, axis=2)
        for past, value, out in zip(pasts, new, presents, strict=True)
    ]
    kept = {key: value for key, value in at.items() if key not in _CAUSAL and (fused or key not in _HEADS)}
    if fused:
        rest = ["", *given[4:6]]
        out = node.output[0]
        made.append(
            helper.make_node(
                node.op_type, [query, *joined, *rest], [out], name=out, domain=node.domain, **kept
            )
        )
        return made
    if flat:
        query = by_head(query, int(at["q_num_heads"]))
    out = name("Attention") if flat else node.output[0]
    made.append(helper.make_node("Attention", [query, *joined, given[3]], [out], name=out, **kept))
    if flat:
        turned = add("Transpose", out, perm=[0, 2, 1, 3])
        add("Reshape", turned, constant(np.array([0, 0, -1], np.int64)), out=node.output[0])
    return made
