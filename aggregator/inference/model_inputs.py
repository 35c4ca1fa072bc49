"""A model's inputs and outputs as clients see them, and the forms inputs have where nobody says all sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, helper

from aggregator.inference.cut_request import CutRequest
from aggregator.inference.deployed import DESCRIBED_BYTES, described_bytes
from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.messages.inference import ANY_RANK, ModelTensor
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import DataType
from edge_attention.graphs.axes.input_forms import batch_names, size_said
from edge_attention.graphs.axes.model_reading import OpenModel

__all__ = ["OTHERS", "feeds_of", "tensors_of", "with_masks_of_all"]

_TOKENS_RANK, _PAST_RANKS = 2, (3, 4, 5)
"""Dimensions of token ids, and of keys and values of earlier tokens."""
FIRST, OTHERS = 1, (128, 64, 32, 16, 8)
"""Sizes of open dimensions that nobody says: of the first of an input, and of others, the first that fits: a
model may have positions for fewer."""


def tensors_of(model: OpenModel) -> tuple[tuple[ModelTensor, ...], tuple[ModelTensor, ...]]:
    """The model's inputs and outputs.

    Raises:
        InvalidGraph: one is no tensor, or of elements that do not travel, or they are too long to describe.
    """
    weights = {tensor.name for tensor in model.model.graph.initializer}
    inputs = tuple(_tensor(value) for value in model.model.graph.input if value.name not in weights)
    outputs = tuple(map(_tensor, model.model.graph.output))
    if (size := described_bytes((*inputs, *outputs))) > DESCRIBED_BYTES:
        raise InvalidGraph(
            f"the names and dimensions of the model's inputs and outputs have {size:,} bytes, and "
            f"{DESCRIBED_BYTES:,} is the most (DESCRIBED_BYTES): export it with fewer, or shorter names"
        )
    return inputs, outputs


def feeds_of(inputs: Sequence[ModelTensor], request: CutRequest, others: int) -> dict[str, TensorForm]:
    """The inputs' forms: as a request has them, or of the sizes that were said, or by default.

    Raises:
        InvalidArgument: a size is said of a dimension that the model does not have.
    """
    if request.shapes:
        return {one.name: TensorForm(one.data_type.value, tuple(request.shapes[one.name])) for one in inputs}
    batches = batch_names([one.shape for one in inputs])
    known = {name for one in inputs for name in one.shape} | {
        f"{one.name}.{axis}" for one in inputs for axis in range(len(one.shape))
    }
    for name in request.dimensions:
        if name not in known or name.isdigit() or name in ("?", ANY_RANK):
            open_names = {n for one in inputs for n in one.shape if n not in ("?", ANY_RANK)}
            names = sorted(n for n in open_names if not n.isdigit())
            raise InvalidArgument(
                f"the model has no open dimension {name[:80]!r}; it has "
                f"{', '.join(names) or 'none by name'}: one without a name is called INPUT.AXIS"
            )

    def size(one: ModelTensor, axis: int) -> int:
        name = one.shape[axis]
        if name.isdigit():
            return int(name)
        own = request.dimensions.get(f"{one.name}.{axis}")
        said = request.dimensions.get(name) if own is None and name != "?" else own
        if said is not None:
            return said
        if axis == 0 and (name == "?" or name in batches):
            return FIRST

        def plain(name: str) -> int:
            return request.dimensions.get(name, FIRST if name in batches else others)

        return size_said(name, plain)

    return {
        one.name: TensorForm(
            one.data_type.value,
            () if one.shape == (ANY_RANK,) else tuple(size(one, a) for a in range(len(one.shape))),
        )
        for one in inputs
    }


def with_masks_of_all(
    inputs: Sequence[ModelTensor],
    feeds: Mapping[str, TensorForm],
    joined: Mapping[str, int],
    request: CutRequest,
) -> dict[str, TensorForm]:
    """The same, with masks of two dimensions as long as a past and what is new are together: they may be
    called as they like (`total_sequence_length`, `past_sequence_length + 1`, or as what is new alone).

    `joined`: by past the axis of its tokens. Sizes that somebody said are left alone.
    """
    found = dict(feeds)
    pasts = {
        feeds[name].shape[axis] for name, axis in joined.items() if len(feeds[name].shape) in _PAST_RANKS
    }
    flat = [one for one in inputs if len(one.shape) == _TOKENS_RANK]
    new = {feeds[one.name].shape[1] for one in flat if one.name.endswith("ids")}
    if request.shapes or len(pasts) != 1 or len(new) != 1:
        return found
    for one in flat:
        said = {one.shape[1], f"{one.name}.1"} & request.dimensions.keys()
        if "mask" in one.name and not one.shape[1].isdigit() and not said:
            form = feeds[one.name]
            found[one.name] = TensorForm(form.dtype, (form.shape[0], sum(pasts) + sum(new)))
    return found


def _tensor(value: ValueInfoProto) -> ModelTensor:
    kind = value.type.WhichOneof("value")
    if kind in _NO_TENSORS:
        raise InvalidGraph(
            f"{value.name!r} of the model is {_NO_TENSORS[kind]}; only tensors travel: export the model with "
            "its tensors as inputs and outputs of their own"
        )
    tensor = value.type.tensor_type
    if tensor.elem_type == TensorProto.STRING:
        raise InvalidGraph(
            f"{value.name!r} of the model is text; graphs compute with numbers here: put what makes numbers "
            "of text (a tokenizer, say) before the model"
        )
    try:
        data_type = DataType(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name)
    except (KeyError, ValueError, TypeError):
        raise InvalidGraph(
            f"{value.name!r} of the model is of a type that does not travel; use one of "
            f"{', '.join(one.value for one in DataType)}"
        ) from None
    return ModelTensor(value.name, data_type, _shape(tensor))


_NO_TENSORS = {
    "sequence_type": "a sequence",
    "optional_type": "optional",
    "map_type": "a map",
    "sparse_tensor_type": "a sparse tensor",
}


def _shape(tensor: TypeProto.Tensor) -> tuple[str, ...]:
    if not tensor.HasField("shape"):
        return (ANY_RANK,)
    return tuple(map(_dimension, tensor.shape.dim))


def _dimension(dim: TensorShapeProto.Dimension) -> str:
    """Its size, its name, or `?`: what is called as a number is (`²` is, too) would pass for a size."""
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return str(dim.dim_value)
    return "?" if dim.dim_param.isdigit() or dim.dim_param == ANY_RANK else dim.dim_param or "?"
