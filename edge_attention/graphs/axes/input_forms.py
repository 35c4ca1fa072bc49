"""The shapes of a model's inputs, from the sizes that somebody says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from onnx import GraphProto, helper

from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.graphs.axes.infer import form_of

__all__ = ["MAX_SIZE", "batch_names", "input_forms", "size_said"]

MAX_SIZE = 1 << 31
"""Of a dimension."""

_NUMBER = re.compile(r"[0-9]{1,9}")
_TOKENS = re.compile(r"seq|tok|len|time|frame|word|node|^[tsl]$", re.IGNORECASE)
_BATCH = re.compile(r"batch|^(b|n|bs|bsz)$", re.IGNORECASE)
"""What dimensions of tokens, and of batches, are called."""
_UNNAMED = re.compile(r"^\?$|^-?\d*$|\.\d+$")


def batch_names(shapes: Iterable[Sequence[str]]) -> frozenset[str]:
    """Names of dimensions that are of a batch: the first of each input, but for those that are called as
    tokens are, or that an input has twice; the second, where the first are tokens."""
    shapes = [shape for shape in shapes if shape]
    twice = {name for shape in shapes for name in shape if list(shape).count(name) > 1}
    unnamed = {shape[0] for shape in shapes if _UNNAMED.search(shape[0])}
    first = {shape[0] for shape in shapes} - twice - unnamed
    tokens = {name for name in first if _TOKENS.search(name) and not _BATCH.search(name)}
    second = {shape[1] for shape in shapes if len(shape) > 1 and shape[0] in tokens}
    return frozenset((first - tokens) | {name for name in second if _BATCH.search(name)})


def size_said(name: str, size: Callable[[str], int]) -> int:
    """The size of a dimension that is called so: of one that an exporter says is a sum, as optimum's
    `past_sequence_length + sequence_length`, of its terms; `size` tells that of a plain name, as
    which digits count that are no size."""
    terms = [term.strip() for term in name.split("+")]
    if len(terms) < 2 or not all(terms):
        return size(name)
    return sum(int(term) if _NUMBER.fullmatch(term) else size(term) for term in terms)


def input_forms(graph: GraphProto, dimensions: Mapping[str, int]) -> dict[str, TensorForm]:
    """Inputs with all their sizes.

    Args:
        dimensions: sizes of what is symbolic, by name; of one without a name `<input>.<axis>`, which is taken
            before the name where both are said.

    Raises:
        InvalidArgument: a dimension has no size, or is given one it cannot have; says which and what to say.
        InvalidGraph: an input is no tensor of numbers of a rank that the model says.
    """
    weights = {tensor.name for tensor in graph.initializer}
    found: dict[str, TensorForm] = {}
    said: set[str] = set()
    for value in graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise InvalidGraph(
                f"input '{value.name}' is no tensor of a rank that the model says; export it so"
            )
        shape = []
        for axis, dim in enumerate(kind.shape.dim):
            own = f"{value.name}.{axis}"
            said |= {own, dim.dim_param}
            name = own if own in dimensions or not dim.dim_param else dim.dim_param
            fixed = dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
            size = fixed if fixed is not None else dimensions.get(name)
            if size is None:
                raise InvalidArgument(
                    f"dimension {axis} of input '{value.name}' ({name}) has no fixed size; say one for "
                    f"'{name}', or give an input of the size you mean"
                )
            if not 0 <= size < MAX_SIZE or (fixed is not None and dimensions.get(own, fixed) != fixed):
                raise InvalidArgument(
                    f"dimension {axis} of input '{value.name}' ({name}) is to be "
                    f"{dimensions.get(own, size):,}; "
                    + (f"the model has it at {fixed:,}" if fixed is not None else "a size is below 2^31")
                )
            shape.append(size)
        form = form_of(helper.make_tensor_type_proto(kind.elem_type, shape))
        if form is None:
            raise InvalidGraph(f"input '{value.name}' is no tensor of numbers")
        found[value.name] = form
    if unknown := sorted(set(dimensions) - said):
        have = ", ".join(sorted(name for name in said if name)) or "none"
        raise InvalidArgument(f"no input has a dimension '{unknown[0]}'; there are {have}")
    return found
