"""Fused operators as plain ones, so that each axis of theirs is seen: tokens of queries and of keys, heads.

What is given is exact to the rounding of float32. A lowering is a function of a node that writes nodes with a
`Lowering`; what it writes is bound like any other node, and may be lowered again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array

__all__ = ["Lowered", "Lowering", "lowered"]


@dataclass
class Lowered:
    """What stands in a node's place: nodes in order, and their constants."""

    nodes: list[NodeProto] = field(default_factory=list)
    literals: dict[str, Array] = field(default_factory=dict)
    derived: dict[str, Array] = field(default_factory=dict)


class Unlowerable(Exception):
    """The node has something that no lowering here knows: it stays as it is."""


@dataclass
class Lowering:
    """What a lowering is told of its surroundings, and what it writes with.

    Attributes:
        form_of: dtype and shape of a value; None where they are not known.
        value_of: of a constant; None of what is none.
        fresh: a new name, like the given one.
        opsets: domain -> version.
    """

    form_of: Callable[[str], TensorForm | None]
    value_of: Callable[[str], Array | None]
    fresh: Callable[[str], str]
    opsets: Mapping[str, int]
    made: Lowered = field(default_factory=Lowered)
    forms: dict[str, TensorForm] = field(default_factory=dict)

    def form(self, name: str) -> TensorForm:
        found = self.form_of(name)
        if found is None:
            raise Unlowerable(name)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        return self.form(name).shape

    def __call__(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Write a node of one output, called `to` where that is said."""
        return self.several(kind, 1, *inputs, to=(to,), **attributes)[0]

    def several(
        self, kind: str, outputs: int, *inputs: str, to: tuple[str, ...] = (), **attributes: Any
    ) -> list[str]:
        names = [*to, *[""] * (outputs - len(to))]
        names = [name or self.fresh(kind) for name in names]
        self.made.nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names

    def const(self, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        """A constant that is the same whatever the sizes."""
        name = self.fresh("literal")
        self.made.literals[name] = np.asarray(value, dtype)
        return name

    def sized(self, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        """A constant that follows from the sizes."""
        name = self.fresh("derived")
        self.made.derived[name] = np.asarray(value, dtype)
        return name

    def reshape(self, value: str, *sizes: int, to: str = "") -> str:
        return self("Reshape", value, self.sized(sizes, np.int64), to=to)


_Rewrite = Callable[[NodeProto, Mapping[str, Any], Lowering], None]


def lowered(node: NodeProto, write: Lowering) -> Lowered | None:
    """What stands in the node's place; None where it stays as it is."""
    rewrite = _LOWERED.get((node.domain, node.op_type))
    if rewrite is None:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    try:
        rewrite(node, attributes, write)
    except Unlowerable:
        return None
    return write.made


def _gemm(node: NodeProto, at: Mapping[str, Any], write: Lowering) -> None:
    """Its bias is added behind it: of parts that each have a range of k, each would add it."""
    if len(node.input) < 3:
        raise Unlowerable
    plain = {name: value for name, value in at.items() if name != "beta"}
    beta = at.get("beta", 1.0)
    bias = node.input[2]
    if beta != 1.0:
        bias = write("Mul", bias, write.const(beta, write.form(bias).dtype))
    write("Add", write("Gemm", *node.input[:2], **plain), bias, to=node.output[0])


_LOWERED: Mapping[tuple[str, str], _Rewrite] = {
    ("", "Gemm"): _gemm,
}
