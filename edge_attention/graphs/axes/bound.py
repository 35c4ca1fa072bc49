"""A model bound to sizes: every shape known, what follows from shapes alone computed, weights used once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from onnx import NodeProto

from edge_attention.core.schedule.extents import WHOLE, Extent
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.reading.needed import reads

__all__ = ["BoundGraph"]


@dataclass(frozen=True, eq=False)
class BoundGraph:
    """What of a model computes on data, for inputs of fixed shapes.

    Attributes:
        nodes: in topological order; functions are inlined, decided branches taken, operators of other
            domains that have no rule lowered. A node none of whose outputs is needed is gone. One with graphs
            inside (an If on data, a Loop) reads names of the outside beside its inputs: `reads`.
        specs: of every tensor: inputs, weights, constants and what nodes make; but those in `unknown`.
        weights: name of a tensor that nodes read -> the initializer of the model's file that it is. Exporters
            merge initializers of equal value: each use has a name here, so that its axes are its own.
        pieces: of a weight that is a piece of its initializer (a packed product of queries, keys and values
            that is taken apart): where it is in it. One span, of which `outer` is 1.
        literals: constants that are the same whatever the sizes: in the file, and small. Each use has a name.
        derived: constants that follow from the sizes: folded away shape arithmetic, positions, masks.
        unknown: tensor -> in words, why its shape is not known. What reads or makes one cannot be cut; the
            model can be replicated, or cut by layers where none is alive.
        inputs, outputs: the model's.
        opsets: domain -> version.
        ir_version: of the file.
        loosened: of a model that rounds to 8 bits the first fused operator that was taken apart and rounds
            otherwise than what stands in its place. Empty: there is none.
    """

    nodes: tuple[NodeProto, ...]
    specs: Mapping[str, TensorForm]
    weights: Mapping[str, str]
    literals: Mapping[str, Array]
    derived: Mapping[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opsets: Mapping[str, int]
    ir_version: int
    pieces: Mapping[str, Extent] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    loosened: str = ""

    def shape(self, name: str) -> tuple[int, ...]:
        return self.specs[name].shape

    def constant(self, name: str) -> Array | None:
        """Its value, of a literal or a derived constant; a weight's is not read here."""
        found = self.literals.get(name)
        return self.derived.get(name) if found is None else found

    def is_constant(self, name: str) -> bool:
        """Whether it is a weight, a literal or derived: there before any request."""
        return name in self.weights or name in self.literals or name in self.derived

    def piece(self, name: str) -> Extent:
        """Where a weight is in its initializer."""
        return self.pieces.get(name, WHOLE)

    @cached_property
    def makers(self) -> Mapping[str, int]:
        """Tensor -> number of the node that makes it."""
        return {name: number for number, node in enumerate(self.nodes) for name in node.output if name}

    @cached_property
    def readers(self) -> Mapping[str, tuple[int, ...]]:
        """Tensor -> numbers of the nodes that read it, in order."""
        found: dict[str, list[int]] = {}
        for number, node in enumerate(self.nodes):
            for name in reads(node):
                found.setdefault(name, []).append(number)
        return {name: tuple(numbers) for name, numbers in found.items()}
