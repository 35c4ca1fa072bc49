"""What lowerings are written with: nodes that stand in the place of another, and their constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array

__all__ = ["Lowered", "Lowering", "Rewrite", "Unlowerable"]


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

    def has(self, node: NodeProto, position: int) -> bool:
        return position < len(node.input) and bool(node.input[position])

    def wants(self, node: NodeProto, position: int) -> str:
        """The name of an output, empty where nobody wants it."""
        return node.output[position] if position < len(node.output) else ""

    def form(self, name: str) -> TensorForm:
        found = self.form_of(name)
        if found is None:
            raise Unlowerable(name)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        return self.form(name).shape

    def __call__(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Write a node of one output, called `out` where that is said."""
        return self.several(kind, 1, *inputs, out=(out,), **attributes)[0]

    def several(
        self, kind: str, outputs: int, *inputs: str, out: tuple[str, ...] = (), **attributes: Any
    ) -> list[str]:
        names = [*out, *[""] * (outputs - len(out))]
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

    def reshape(self, value: str, *sizes: int, out: str = "") -> str:
        return self("Reshape", value, self.sized(sizes, np.int64), out=out)

    def refuse(self, node: NodeProto, *positions: int) -> None:
        """Leave the node as it is where it has one of these inputs."""
        if any(self.has(node, position) for position in positions):
            raise Unlowerable


Rewrite = Callable[[NodeProto, Mapping[str, Any], Lowering], None]
"""Writes what stands in the place of a node with these attributes. Raises Unlowerable where it cannot."""
