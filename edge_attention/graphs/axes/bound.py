"""A model bound to sizes: every shape known, what follows from shapes alone computed, weights used once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import NodeProto

from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array

__all__ = ["BoundGraph"]


@dataclass(frozen=True, eq=False)
class BoundGraph:
    """What of a model computes on data, for inputs of fixed shapes.

    Attributes:
        nodes: in topological order; functions are inlined, decided branches taken, operators of other
            domains that have no rule lowered. A node none of whose outputs is needed is gone.
        specs: of every tensor: inputs, weights, constants and what nodes make.
        weights: name of a tensor that nodes read -> the initializer of the model's file that it is. Exporters
            merge initializers of equal value: each use has a name here, so that its axes are its own.
        literals: constants that are the same whatever the sizes: in the file, and small.
        derived: constants that follow from the sizes: folded away shape arithmetic, positions, masks.
        inputs, outputs: the model's.
        opsets: domain -> version.
        ir_version: of the file.
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

    def shape(self, name: str) -> tuple[int, ...]:
        return self.specs[name].shape

    def constant(self, name: str) -> Array | None:
        """Its value, of a literal or a derived constant; a weight's is not read here."""
        found = self.literals.get(name)
        return self.derived.get(name) if found is None else found
