"""Runs what a model was bound to, as one graph, beside the model itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
from onnx import ModelProto, helper, numpy_helper

from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.axes.infer import dtype_number


def run_model(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    found = session.run(None, {name: array for name, array in feeds.items() if name in names})
    return dict(zip([value.name for value in model.graph.output], found, strict=True))


def run_bound(bound: BoundGraph, model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a bound graph, its weights taken from the model's initializers."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    values = {name: numpy_helper.to_array(tensors[of]) for name, of in bound.weights.items()}
    for name, span in bound.pieces.items():
        (one,) = span
        rows = (slice(None),) * one.axis + (slice(one.start * one.inner, one.stop * one.inner),)
        values[name] = np.ascontiguousarray(values[name][rows])
    graph = helper.make_graph(
        list(bound.nodes),
        "bound",
        [
            helper.make_tensor_value_info(n, dtype_number(bound.specs[n].dtype), bound.shape(n))
            for n in (*bound.inputs, *bound.derived)  # as a segment has them
        ],
        [helper.make_empty_tensor_value_info(name) for name in bound.outputs],
        [numpy_helper.from_array(array, name) for name, array in {**values, **bound.literals}.items()],
    )
    whole = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in bound.opsets.items()],
        ir_version=min(bound.ir_version, 11),
    )
    found = run_model(whole, {**{name: feeds[name] for name in bound.inputs}, **bound.derived})
    for name, array in found.items():
        if name in bound.specs:
            assert array.shape == bound.shape(name), name
    return found


def assert_close(found: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: float = 1e-5) -> None:
    """Every output to `tolerance` of its largest value; whole numbers alike."""
    assert set(found) == set(wanted)
    for name, right in wanted.items():
        got = found[name]
        assert (got.shape, got.dtype) == (right.shape, right.dtype), name
        if np.issubdtype(right.dtype, np.floating):
            worst = float(np.max(np.abs(got - right), initial=0))
            assert worst <= tolerance * max(float(np.max(np.abs(right), initial=0)), 1e-3), (name, worst)
        else:
            assert np.array_equal(got, right), name
