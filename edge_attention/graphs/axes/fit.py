"""Whether a model holds together at the sizes that are asked: rows that a table has, shapes that can become
others. onnx says so of some operators, and of these nobody but ONNX Runtime, as it runs."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from onnx import NodeProto, TypeProto

from edge_attention.core.errors import InvalidArgument
from edge_attention.graphs.axes.infer import form_of
from edge_attention.graphs.axes.known_values import KnownValues

__all__ = ["label", "misfit", "require_fit", "require_reshaped"]


def label(node: NodeProto) -> str:
    """A node, for a person."""
    return f"{node.op_type} '{node.name or node.output[0]}'"


def misfit(dimensions: Mapping[str, int], what: str) -> InvalidArgument:
    """The error of a model that does not hold together; `what`: which node is given what."""
    asked = ", ".join(f"{name} = {size}" for name, size in dimensions.items()) or "its own sizes"
    return InvalidArgument(
        f"at {asked} the model does not hold together: {what}; ask for other sizes: a text may be longer "
        "than the model has positions, some sizes belong together, or the graph has fixed one that the "
        "file says is open"
    )


def require_fit(node: NodeProto, known: KnownValues, dimensions: Mapping[str, int]) -> None:
    """Refuse a Gather of rows that the table does not have, an Expand to what a shape cannot become.

    Raises InvalidArgument.
    """
    if node.domain or node.op_type not in ("Gather", "Expand"):
        return
    form, given = known.form(node.input[0]), known.values.get(node.input[1])
    if form is None or given is None or not given.size:
        return
    if node.op_type == "Gather" and form.shape:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0) % len(form.shape)
        rows = form.shape[axis]
        if not -rows <= int(given.min()) <= int(given.max()) < rows:
            raise misfit(dimensions, f"{label(node)} takes row {int(given.max())} of {rows}")
    if node.op_type == "Expand":
        wanted = [int(size) for size in given.reshape(-1)]
        pairs = zip(reversed(form.shape), reversed(wanted), strict=False)
        if any(1 not in (have, want) and have != want for have, want in pairs):
            raise misfit(dimensions, f"{label(node)} makes {wanted} of {list(form.shape)}")


def require_reshaped(
    node: NodeProto, made: Mapping[str, TypeProto], known: KnownValues, dimensions: Mapping[str, int]
) -> None:
    """Refuse a Reshape to a shape of another number of elements, as a size that an exporter took for fixed
    makes of all others. `made`: the types of what it makes.

    Raises InvalidArgument.
    """
    if node.domain or node.op_type != "Reshape":
        return
    before = known.form(node.input[0])
    after = form_of(made[node.output[0]]) if node.output[0] in made else None
    if before is not None and after is not None and prod(before.shape) != prod(after.shape):
        raise misfit(dimensions, f"{label(node)} makes {list(after.shape)} of {list(before.shape)}")
