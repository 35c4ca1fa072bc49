"""A model whose weights lie in other files: outside of its folder is refused, before anything is sent."""

import pytest
from onnx import TensorProto, helper

from edge_attention.client.models import _beside
from edge_attention.core.errors import InvalidGraph


def test_weights_outside_of_the_models_folder_are_refused(tmp_path):
    weight = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value="../../etc/passwd")
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4])] for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", *sides, [weight])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(InvalidGraph, match="etc/passwd"):
        _beside(path)
