"""Models that nobody cuts: results of sizes that depend on data, branches and loops, trees, open ranks."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]


def model(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=8)


def value(name, kind=TensorProto.FLOAT, shape=("n", 3)):
    return helper.make_tensor_value_info(name, kind, shape)


def weights(name, *shape):
    array = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(array, name)


def positive_rows():
    """Rows whose product with a large weight is above 0 in its first column: as many as there are."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Gather", ["y", "zero"], ["first"], axis=1),
        helper.make_node("Greater", ["first", "none"], ["mask"]),
        helper.make_node("Compress", ["y", "mask"], ["rows"], axis=0),
    ]
    zero = numpy_helper.from_array(np.array(0), "zero")
    none = numpy_helper.from_array(np.array(0, np.float32), "none")
    return model(nodes, [value("x")], [value("rows", shape=("k", 400))], [weights("w", 3, 400), zero, none])


def branches():
    """Another product, and another size, by whether the sum of the input is above 0."""

    def branch(name):
        node = helper.make_node("MatMul", ["x", name], [f"y{name}"])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"y{name}", 1, None)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "none"], ["above"]),
        helper.make_node("If", ["above"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    none = numpy_helper.from_array(np.array(0, np.float32), "none")
    return model(
        nodes,
        [value("x")],
        [value("y", shape=("n", "m"))],
        [weights("a", 3, 300), weights("b", 3, 500), none],
    )


def counted():
    """As many rows as the input says, each the double of the one before: a loop on data."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes"]),
            helper.make_node("Add", ["v", "v"], ["twice"]),
            helper.make_node("Identity", ["twice"], ["row"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [3]),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("twice", TensorProto.FLOAT, [3]),
            helper.make_tensor_value_info("row", TensorProto.FLOAT, [3]),
        ],
    )
    nodes = [helper.make_node("Loop", ["times", "", "x"], ["last", "rows"], body=body)]
    inputs = [helper.make_tensor_value_info("times", TensorProto.INT64, []), value("x", shape=(3,))]
    return model(nodes, inputs, [value("last", shape=(3,)), value("rows", shape=("times", 3))])


def trees():
    """A tree of one split, as scikit-learn's converters write it."""
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2], nodes_featureids=[1, 0, 0], nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.5, 0.0, 0.0], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        nodes_hitrates=[1.0, 1.0, 1.0], nodes_missing_value_tracks_true=[0, 0, 0], target_treeids=[0, 0],
        target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[-1.0, 2.0],
    )  # fmt: skip
    return model([node], [value("x")], [value("y", shape=("n", 1))])


def any_rank():
    """Inputs and results of any number of dimensions."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    return model([helper.make_node("Softplus", ["x"], ["y"])], ends[:1], ends[1:])


def texts():
    ends = [value("x", TensorProto.STRING), value("y", TensorProto.STRING)]
    return model([helper.make_node("Identity", ["x"], ["y"])], ends[:1], ends[1:])


def sequence():
    """Its result is a sequence of tensors."""
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    made = onnx.ValueInfoProto(name="y", type=kind)
    return model([helper.make_node("SplitToSequence", ["x"], ["y"], axis=0)], [value("x")], [made])
