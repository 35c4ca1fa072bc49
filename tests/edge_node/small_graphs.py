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


def odd_outputs():
    """Outputs that are no plain results: of any size, an input, a constant, of two branches, one twice."""
    branch = {}
    for name, node in (
        ("then", helper.make_node("Concat", ["x", "x"], ["long"], axis=0)),
        ("else", helper.make_node("Identity", ["x"], ["short"])),
    ):
        branch[name] = helper.make_graph([node], name, [], [value(node.output[0], FLOAT, None)])
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["above"]),
        helper.make_node("NonZero", ["above"], ["where"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["any"]),
        helper.make_node("If", ["any"], ["either"], then_branch=branch["then"], else_branch=branch["else"]),
        helper.make_node("Add", ["x", "x"], ["sum"]),
        helper.make_node("Identity", ["sum"], ["again"]),
    ]
    outputs = [value("where", TensorProto.INT64, [1, "m"]), value("either", FLOAT, ["k"])]
    outputs += [value(name, FLOAT, ["n"]) for name in ("same", "sum", "again", "x")]
    constants = [
        helper.make_tensor("zero", FLOAT, [], [0.0]),
        helper.make_tensor("seven", FLOAT, [1], [7.0]),
    ]
    return named(model(nodes, [value("x", FLOAT, ["n"])], [*outputs, value("seven", FLOAT, [1])], constants))


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


def divided():
    """y = a / b of integers: the smallest by -1 ends a process with SIGFPE."""
    return named(
        model(
            [helper.make_node("Div", ["a", "b"], ["y"])],
            [value("a", TensorProto.INT32, ["n"]), value("b", TensorProto.INT32, ["n"])],
            [value("y", TensorProto.INT32, ["n"])],
        )
    )


def long(nodes):
    """y = x after so many negations: what takes a while to load."""
    chain = [helper.make_node("Neg", [f"n{k}"], [f"n{k + 1}"]) for k in range(nodes)]
    ends = [helper.make_node("Identity", ["x"], ["n0"]), helper.make_node("Identity", [f"n{nodes}"], ["y"])]
    return named(model([ends[0], *chain, ends[1]], [value("x", FLOAT, ["n"])], [value("y", FLOAT, ["n"])]))


def copied(data_type, count=1, rank=1):
    """y0 = x0, y1 = x1, ... of any sizes."""
    nodes = [helper.make_node("Identity", [f"x{n}"], [f"y{n}"]) for n in range(count)]
    dims = [f"d{n}" for n in range(rank)]
    ends = [[value(f"{end}{n}", data_type, dims) for n in range(count)] for end in "xy"]
    return named(model(nodes, *ends))


def doubled_strings():
    """y = the length of a text that doubles n times: memory that no arena counts."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("StringConcat", ["s", "s"], ["so"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("c", TensorProto.BOOL, []),
            value("s", TensorProto.STRING, [1]),
        ],
        [value("co", TensorProto.BOOL, []), value("so", TensorProto.STRING, [1])],
    )
    true = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("Cast", ["x"], ["s"], to=TensorProto.STRING),
        helper.make_node("Loop", ["n", "t", "s"], ["so"], body=body),
        helper.make_node("Shape", ["so"], ["y"]),
    ]
    ends = [value("x", FLOAT, [1]), value("n", TensorProto.INT64, [])], [value("y", TensorProto.INT64, [1])]
    return named(model(nodes, *ends, [true]))


def mixed():
    """y = x + i of two types: what ONNX Runtime refuses to load."""
    one = helper.make_tensor("i", TensorProto.INT64, [1], [1])
    node = helper.make_node("Add", ["x", "i"], ["y"])
    return named(model([node], [value("x", FLOAT, ["n"])], [value("y", FLOAT, ["n"])], [one]))


def sized():
    """y = zeros of a shape that is x's values."""
    return named(
        model(
            [
                helper.make_node("Cast", ["x"], ["shape"], to=TensorProto.INT64),
                helper.make_node("ConstantOfShape", ["shape"], ["y"]),
            ],
            [value("x", FLOAT, ["r"])],
            [value("y", FLOAT, None)],
        )
    )


def whole():
    """y = x as int64."""
    return named(
        model(
            [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64)],
            [value("x", FLOAT, ["n"])],
            [value("y", TensorProto.INT64, ["n"])],
        )
    )


def drawn():
    """y = as many random numbers as x says, from a generator that goes on from run to run."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["c2"]),
            helper.make_node("RandomUniform", [], ["r"], shape=[1], seed=3.0),
        ],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, [])],
        [value("c2", TensorProto.BOOL, []), value("r", FLOAT, [1])],
    )
    true = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    empty = helper.make_tensor("e", TensorProto.INT64, [0], [])
    nodes = [
        helper.make_node("Cast", ["x"], ["times"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["times", "e"], ["n"]),
        helper.make_node("Loop", ["n", "t"], ["y"], body=body),
    ]
    return named(model(nodes, [value("x", FLOAT, [1])], [value("y", FLOAT, None)], [true, empty]))


def product():
    """y = x w."""
    return named(
        model(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            [value("x", FLOAT, ["n", "k"]), value("w", FLOAT, ["k", "m"])],
            [value("y", FLOAT, ["n", "m"])],
        )
    )


def reshaped():
    """y = the rows of x, whatever its shape, in threes."""
    three = helper.make_tensor("s", TensorProto.INT64, [2], [-1, 3])
    return named(
        model(
            [helper.make_node("Reshape", ["x", "s"], ["y"])],
            [value("x", FLOAT, ["t", "h", "i", "d"])],
            [value("y", FLOAT, ["n", 3])],
            [three],
        )
    )
