"""A model that is not cut, as nodes run it: its own graph, whose large constants come apart and are frozen.

Nothing of it is bound to sizes, and no operator is looked at: whatever the strict reader takes is served,
with the bits that ONNX Runtime gives for the file. What is frozen is an initializer again on the node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.schedule.whole import WHOLE_FILE, WholeModel
from edge_attention.core.tensors import DataType
from edge_attention.graphs.axes.folder import write_file, write_weights
from edge_attention.graphs.axes.model_reading import KEPT_BYTES, MAX_GRAPH, OpenModel
from edge_attention.graphs.onnx_file import serialize

__all__ = ["APART", "whole_graph", "write_whole"]

APART = 1024
"""Constants that are given apart, the largest: as many as one program freezes. Others stay in the graph."""
_IR = 4
"""The version from which on a constant need not be an input, too."""
_TRAVEL = frozenset(one.value for one in DataType)


def write_whole(model: OpenModel, folder: Path) -> WholeModel:
    """Write the graph and where its weights are into `folder`, which is made.

    Raises:
        InvalidGraph: as `whole_graph`.
        OSError: as the disk does.
    """
    data, weights = whole_graph(model)
    whole = WholeModel(hashlib.sha256(data).hexdigest(), weights)
    (folder / "graphs").mkdir(parents=True, exist_ok=True)
    write_file(folder / "graphs" / f"{whole.graph}.onnx", data)
    write_weights(model, frozenset(weights), folder)
    write_file(folder / WHOLE_FILE, whole.dumps().encode())
    return whole


def whole_graph(model: OpenModel) -> tuple[bytes, tuple[str, ...]]:
    """The graph's file, and the initializers that are its inputs.

    Raises:
        InvalidGraph: what cannot be given apart is more than a graph may have.
    """
    proto = ModelProto()
    proto.CopyFrom(model.model)
    proto.ir_version = max(proto.ir_version, _IR)
    apart = _apart(model)
    held = sum(place.nbytes for name, place in model.places.items() if name not in apart)
    if held > MAX_GRAPH:
        raise InvalidGraph(
            f"the model has {held:,} bytes of constants beside its {APART:,} largest, or of types that do "
            f"not travel, and {MAX_GRAPH:,} is the most (MAX_GRAPH): join them, or save them as "
            f"{', '.join(sorted(_TRAVEL))}"
        )
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    initializers = []
    for tensor in proto.graph.initializer:
        if tensor.name in apart:
            inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        elif tensor.name in model.places:
            initializers.append(numpy_helper.from_array(model.read(tensor.name), tensor.name))
        else:
            initializers.append(tensor)
    del proto.graph.input[:], proto.graph.initializer[:]
    proto.graph.input.extend(inputs)
    proto.graph.initializer.extend(initializers)
    return serialize(proto), tuple(sorted(apart))


def _apart(model: OpenModel) -> Mapping[str, int]:
    """The largest constants of types that travel, and their bytes."""
    sizes = {
        name: place.nbytes
        for name, place in model.places.items()
        if place.dtype in _TRAVEL and place.nbytes > KEPT_BYTES
    }
    return dict(sorted(sizes.items(), key=lambda item: -item[1])[:APART])
