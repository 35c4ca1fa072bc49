"""What outputs depend on, also by way of graphs inside of nodes."""

from __future__ import annotations

from onnx import TensorProto, helper

from edge_attention.graphs.axes.flows import flows_of, tables_of

FLOAT = TensorProto.FLOAT


def value(name, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, [2] if dtype == FLOAT else [])


def test_outputs_depend_on_what_they_are_computed_from():
    """`y` of x by a constant; `z` of c, and of y and k by a branch; `w` of nothing."""
    branches = [
        helper.make_graph([helper.make_node("Add", [one, one], [f"{one}2"])], one, [], [value(f"{one}2")])
        for one in "yk"
    ]
    nodes = [
        helper.make_node("Mul", ["x", "h"], ["y"]),
        helper.make_node("If", ["c"], ["z"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Neg", ["h"], ["w"]),
    ]
    half = helper.make_tensor("h", FLOAT, [2], [0.5, 0.5])
    ins = [value("x"), value("k"), value("c", TensorProto.BOOL)]
    graph = helper.make_graph(nodes, "g", ins, [value(name) for name in "yzw"], [half])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    flows = flows_of(data.SerializeToString())
    assert flows == {"y": {"x"}, "z": {"c", "x", "k"}, "w": frozenset()}


def test_a_table_is_what_rows_are_looked_up_in_and_nothing_else():
    """`t` by Gather alone; `u` also in a product; `i` are indices."""
    nodes = [
        helper.make_node("Gather", ["t", "i"], ["a"]),
        helper.make_node("Gather", ["u", "i"], ["b"]),
        helper.make_node("MatMul", ["b", "u"], ["y"]),
        helper.make_node("Neg", ["a"], ["z"]),
    ]
    ins = [helper.make_tensor_value_info(name, FLOAT, [3, 3]) for name in "tu"]
    ins.append(helper.make_tensor_value_info("i", TensorProto.INT64, [3]))
    outs = [helper.make_tensor_value_info(name, FLOAT, [3, 3]) for name in "yz"]
    graph = helper.make_graph(nodes, "g", ins, outs)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert tables_of(data.SerializeToString()) == {"t"}
