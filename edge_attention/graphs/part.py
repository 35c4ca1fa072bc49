"""A part of a model: its graph, its parameters, and what it takes and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_attention.graphs.onnx_file import TensorSpec

__all__ = ["GraphPart", "PartKind"]

PartKind = Literal["encoder", "head"]


@dataclass(frozen=True, eq=False)
class GraphPart:
    """A checked part. `forward` is its graph with parameters as inputs and dimension 0 of data symbolic.

    `parameters` are the initial values (float32, read-only), in the file's order. `inputs` are the data
    inputs (of a head: `fused` and the labels), `outputs` what the graph returns. `frozen`, `cut`,
    `dimensions` and `notes` are as those of a federated model (model_form.py).
    """

    kind: PartKind
    place: str
    forward: bytes
    parameters: dict[str, NDArray[np.float32]]
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    frozen: dict[str, str] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    dimensions: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[str, TensorSpec]:
        """The inputs that a node's data must provide: all of an encoder's, all but `fused` of a head's."""
        return {name: spec for name, spec in self.inputs.items() if (self.kind, name) != ("head", "fused")}
