"""What all segments of a cut share while they are written: names of graphs, constants and boundaries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.schedule.extents import Extent, extent_shape
from edge_attention.core.schedule.schedule import (
    Boundary,
    Collective,
    Constant,
    ConstantSpec,
    TensorForm,
)
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.axes.forms import Form, Partition, SplitBy, Unfolded
from edge_attention.graphs.axes.needs import find_needs, span_of
from edge_attention.graphs.axes.stock import size_depends
from edge_attention.graphs.axes.tables import shared_tables
from edge_attention.graphs.axes.ways import Dims

__all__ = ["MAX_OPSET", "Emission", "form_of"]

MAX_OPSET = 26
"""Of the standard operators: what ONNX Runtime reads."""


Length = tuple[tuple[int, ...], int | None]
"""A dimension whose size follows from inputs: the axes that it is made of, and by which of them it is cut."""

_NORMS = frozenset(
    {"LayerNormalization", "Pow", "RMSNormalization", "ReduceMean", "SimplifiedLayerNormalization"}
)


class Emission:
    def __init__(
        self,
        partition: Partition,
        bound: BoundGraph,
        specs: Mapping[str, TensorForm],
        literals: Mapping[str, Array],
        derived: Mapping[str, Array],
        dims: Mapping[str, Dims],
    ) -> None:
        self.partition, self.bound, self.specs = partition, bound, specs
        self.literals, self.derived, self.dims = literals, derived, dims
        self.needs = find_needs(partition, dims)
        self.shared_tables = shared_tables(bound)
        self.normed = frozenset(
            node.input[0] for node in bound.nodes if node.op_type in _NORMS and not node.domain and node.input
        )
        """Values that norms are of, or what looks like the beginning of one that is written out."""
        self.fixed_axes = _axes_in(dims, bound.weights) | (
            _axes_in(dims, bound.derived)
            - _axes_in(dims, {*bound.inputs, *(name for node in bound.nodes for name in node.output)})
        )
        """Axes that some weight has, or constants alone: no length of an input."""
        self.graphs: dict[str, bytes] = {}
        self.constants: dict[str, Array] = {}
        self.constant_names: dict[ConstantSpec, str] = {}
        self.graph_names: dict[str, str] = {}
        self.boundaries: dict[Form, str] = {}
        self.kept: dict[Form, str] = {}
        self.opsets = {domain or "": version for domain, version in bound.opsets.items()}
        if self.opsets.get("", 1) > MAX_OPSET:
            raise InvalidGraph(
                f"the model is of opset {self.opsets['']}; ONNX Runtime reads {MAX_OPSET} at most: "
                "export it with an earlier one"
            )

    def spec(self, tensor: str) -> TensorForm:
        """Of what leaves a segment.

        Raises:
            InvalidArgument: its size depends on data.
        """
        if tensor not in self.specs:
            raise size_depends(tensor, self.bound.unknown.get(tensor, ""))
        return self.specs[tensor]

    def boundary(self, form: Form) -> str:
        return self.boundaries.setdefault(form, f"b{len(self.boundaries)}")

    def all_boundaries(self) -> dict[str, Boundary]:
        found = {}
        for form, name in self.boundaries.items():
            collective = form.state.collective if isinstance(form.state, Unfolded) else Collective.GATHER
            lse = self.boundaries[form.lse[0]] if collective is Collective.MERGE and form.lse else ""
            found[name] = Boundary(self.specs[form.tensor], collective, lse)
        return found

    def constant(self, value: Array) -> Constant:
        # Not ascontiguousarray: that makes a scalar a vector.
        value = np.array(value, order="C")
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        self.constants.setdefault(digest, value)
        # Of the same bytes there may be arrays of several types and shapes.
        spec = ConstantSpec(digest, form_of(value))
        return Constant(self.constant_names.setdefault(spec, f"c{len(self.constant_names)}"))

    def literals_or_derived(self, name: str) -> Array | None:
        found = self.literals.get(name)
        return self.derived.get(name) if found is None else found

    def graph(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.graphs.setdefault(digest, data)
        return self.graph_names.setdefault(digest, f"g{len(self.graph_names)}")

    def extent(self, form: Form, part: int) -> Extent:
        """What of the tensor the part has in the form; all of it, of what is not cut."""
        if not isinstance(form.state, SplitBy):
            return ()
        start, stop = self.partition.stages[form.stage].range_of(form.state.axis, part)
        return (span_of(self.dims, form.tensor, form.state, start, stop),)

    def lengths(self, form: Form, part: int) -> list[int | Length | None]:
        """By dimension its size, where that is the same whatever the inputs' lengths; else what it is."""
        dims = self.dims.get(form.tensor)
        if dims is None or len(dims) != len(self.specs[form.tensor].shape):
            return [None] * len(self.specs[form.tensor].shape)
        split = form.state if isinstance(form.state, SplitBy) else None
        found: list[int | Length | None] = []
        for dim, (axes, size) in enumerate(zip(dims, self.shape(form, part), strict=True)):
            ids = tuple(axis for axis, _ in axes)
            by = split.axis if split is not None and split.dim == dim else None
            found.append(size if self.fixed_axes.issuperset(ids) else (ids, by))
        return found

    def shape(self, form: Form, part: int) -> tuple[int, ...]:
        return extent_shape(self.specs[form.tensor].shape, self.extent(form, part))


def form_of(value: Array) -> TensorForm:
    return TensorForm(value.dtype.name, value.shape)


def _axes_in(dims: Mapping[str, Dims], names: Iterable[str]) -> set[int]:
    return {axis for name in names for axes in dims.get(name, ()) for axis, _ in axes}
