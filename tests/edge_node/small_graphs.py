"""Small graphs for the tests of the node: digest and bytes."""

from __future__ import annotations

from hashlib import sha256

from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT
value = helper.make_tensor_value_info


def model(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def named(data):
    return sha256(data).hexdigest(), data


def doubled():
    """y = x + x, z = sum(x)."""
    return named(
        model(
            [
                helper.make_node("Add", ["x", "x"], ["y"]),
                helper.make_node("ReduceSum", ["x"], ["z"], keepdims=0),
            ],
            [value("x", FLOAT, ["n", 2])],
            [value("y", FLOAT, ["n", 2]), value("z", FLOAT, [])],
        )
    )


def endless():
    """A loop that never ends."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Add", ["v", "v"], ["v2"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v", FLOAT, [1])],
        [value("c2", TensorProto.BOOL, []), value("v2", FLOAT, [1])],
    )
    true = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    loop = helper.make_node("Loop", ["", "t", "x"], ["y"], body=body)
    return named(model([loop], [value("x", FLOAT, [1])], [value("y", FLOAT, [1])], [true]))


def filled():
    """y = zeros of shape x."""
    return named(
        model(
            [helper.make_node("ConstantOfShape", ["x"], ["y"])],
            [value("x", TensorProto.INT64, ["r"])],
            [value("y", FLOAT, None)],
        )
    )


def gathered():
    """y = x[i]: fails on an i past the end, and ONNX Runtime's message quotes it."""
    return named(
        model(
            [helper.make_node("Gather", ["x", "i"], ["y"])],
            [value("x", FLOAT, ["n"]), value("i", TensorProto.INT64, ["m"])],
            [value("y", FLOAT, ["m"])],
        )
    )


def external(key="location"):
    weights = TensorProto(name="w", data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key=key, value="secret.bin")
    return named(
        model(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            [value("x", FLOAT, [2])],
            [value("y", FLOAT, [2])],
            [weights],
        )
    )
