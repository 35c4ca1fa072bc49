"""Attentions as few write them: behind a choice, in a Loop over layers, with a sink, before a last layer of
all tokens. Right by every plan, or refused for an axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_attention.graphs.axes.cut import analyse, cut
from edge_attention.graphs.axes.model_reading import open_model
from tests.graphs.axes.model_plans import PLANS, plan_of, try_plan, whole_answer
from tests.graphs.axes.test_lower import check as check_lowered
from tests.graphs.axes.test_lower import floats, one_node
from tests.graphs.axes.test_odd_models import FLOAT, attention, behind, check, value

RNG = np.random.default_rng(0)


def end(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return [*nodes, helper.make_node("Add", ["y0", "x"], ["y"])]


def test_attention_behind_a_choice_by_data_is_cut_by_layers_and_heads(tmp_path: Path) -> None:
    """Of what an If makes the size is known where both branches make the same."""
    nodes, known = attention()
    for node in nodes:
        for at, name in enumerate(node.input):
            node.input[at] = "chosen" if name == "x" else name
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(kind, ["x"], [kind])], kind, [], [value(kind, FLOAT, None)]
        )
        for name, kind in (("then", "Relu"), ("else", "Tanh"))
    }
    first = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "scale"], ["large"]),
        helper.make_node("If", ["large"], ["chosen"], **branches),
    ]
    refused = check(tmp_path, [*first, *end(nodes)], known)
    assert [why.partition(":")[0].split()[-1] for why in refused] == ["batch", *["tokens"] * 3]
    assert all("If 'chosen' decides by data" in why for why in refused)


def test_attention_behind_what_has_no_known_size_is_no_fault(tmp_path: Path) -> None:
    """Branches that make unlike things: what one is given is of no size that anybody knows before."""
    nodes, known = attention()
    for node in nodes:
        for at, name in enumerate(node.input):
            node.input[at] = "chosen" if name == "x" else name
    joined = helper.make_graph(
        [helper.make_node("Concat", ["x", "x"], ["twice"], axis=1)],
        "joined",
        [],
        [value("twice", FLOAT, None)],
    )
    plain = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["once"])], "plain", [], [value("once", FLOAT, None)]
    )
    first = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "scale"], ["large"]),
        helper.make_node("If", ["large"], ["chosen"], then_branch=joined, else_branch=plain),
    ]
    pooled = helper.make_node("ReduceMean", ["y0"], ["pooled"], axes=[1], keepdims=1)
    nodes += [pooled, helper.make_node("Add", ["pooled", "x"], ["y"])]
    refused = check(tmp_path, [*first, *nodes], known)
    assert [why.partition(":")[0].split()[-1] for why in refused] == ["heads", *["tokens"] * 3]
    assert all("If 'chosen' is decided by data" in why for why in refused)


def looped(nodes: list[onnx.NodeProto], known: dict[str, np.ndarray], layers: int) -> list[onnx.NodeProto]:
    """The layer as a Loop's body, with weights of all layers in one."""
    own = [name for name in known if name.startswith("w")]
    for name in own:
        known[f"all.{name}"] = (RNG.standard_normal((layers, *known.pop(name).shape)) / 3).astype(np.float32)
    inner = [helper.make_node("Gather", [f"all.{name}", "layer"], [name]) for name in own]
    for node in nodes:
        for at, name in enumerate(node.input):
            node.input[at] = "state" if name == "x" else name
    body = helper.make_graph(
        [*inner, *nodes, helper.make_node("Add", ["y0", "state"], ["next"]),
         helper.make_node("Identity", ["goes"], ["still"])],
        "layer",
        [value("layer", TensorProto.INT64, []), value("goes", TensorProto.BOOL, []),
         value("state", FLOAT, None)],
        [value("still", TensorProto.BOOL, []), value("next", FLOAT, None), value("y0", FLOAT, None)],
    )  # fmt: skip
    known["layers"] = np.array(layers)
    return [
        helper.make_node("Loop", ["layers", "", "x"], ["last", "each"], body=body),
        helper.make_node("ReduceSum", ["each"], ["sum"], keepdims=1),
        helper.make_node("Squeeze", ["sum", "front"], ["one"]),
        helper.make_node("Add", ["last", "one"], ["y"]),
    ]


def test_a_loop_over_layers_is_layers(tmp_path: Path) -> None:
    nodes, known = attention()
    loop = looped(nodes, known, 3)
    known["front"] = np.array([0])
    assert check(tmp_path, loop, known) == []
    axes = analyse(open_model(tmp_path / "model.onnx"), {"batch": 2, "tokens": 6})
    assert sum(name.startswith("heads") for name in axes.named) == 3
    schedule = cut(axes, plan_of("layers", axes, 3)).schedule
    taken = [{(w.name, w.extent) for w in schedule.weights_of(part)} for part in range(3)]
    assert all(taken)
    assert not taken[0] & taken[1]  # each has the matrices of its own layer, and no others


def test_a_loop_that_data_may_end_stays_one(tmp_path: Path) -> None:
    nodes, known = attention()
    body = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["t"], ["most"], keepdims=0),
            helper.make_node("Less", ["most", "bound"], ["again"]),
            helper.make_node("Add", ["t", "x"], ["more"]),
        ],
        "body",
        [value("n", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("t", FLOAT, None)],
        [value("again", TensorProto.BOOL, []), value("more", FLOAT, None)],
    )
    loop = helper.make_node("Loop", ["times", "", "y0"], ["z"], body=body)
    known |= {"times": np.array(5), "bound": np.array(4, np.float32)}
    refused = check(tmp_path, nodes + behind(loop), known)
    assert all("Loop 'z'" in why for why in refused)


def test_two_products_of_one_softmax_are_merged_each_by_itself(tmp_path: Path) -> None:
    """As differential attention has them: the same weights over two kinds of values."""
    nodes, known = attention()
    at = next(n for n, node in enumerate(nodes) if node.output[0] == "m0")
    nodes[at : at + 1] = [
        helper.make_node("MatMul", ["p", "v"], ["first"]),
        helper.make_node("Neg", ["v"], ["other"]),
        helper.make_node("MatMul", ["p", "other"], ["second"]),
        helper.make_node("Mul", ["second", "scale"], ["less"]),
        helper.make_node("Sub", ["first", "less"], ["m0"]),
    ]
    assert check(tmp_path, end(nodes), known) == []


@pytest.mark.parametrize("masked", [False, True])
def test_scores_with_a_sink_beside_them_are_attention(tmp_path: Path, masked: bool) -> None:
    """As gpt-oss writes it: a number a head joined to the scores, and left out behind the softmax."""
    nodes, known = attention()
    at = next(n for n, node in enumerate(nodes) if node.op_type == "Softmax")
    nodes[at : at + 1] = [
        helper.make_node("Shape", ["s"], ["rows"], start=0, end=3),
        helper.make_node("Concat", ["rows", "one"], ["shape"], axis=0),
        helper.make_node("Expand", ["sink", "shape"], ["sinks"]),
        helper.make_node("Concat", ["s", "sinks"], ["more"], axis=-1),
        helper.make_node("Softmax", ["more"], ["p0"]),
        helper.make_node("Slice", ["p0", "first", "last", "axis"], ["p"]),
    ]
    known |= {"one": np.array([1]), "first": np.array([0]), "last": np.array([-1]), "axis": np.array([3])}
    known["sink"] = RNG.standard_normal((1, 2, 1, 1)).astype(np.float32)
    if masked:
        nodes.insert(at, helper.make_node("Add", ["s1", "mask"], ["s"]))
        nodes[at - 1].output[0] = "s1"
        known["mask"] = np.where(np.tril(np.ones((6, 6))), 0, -1e9).astype(np.float32)
    assert check(tmp_path, end(nodes), known) == []


def test_tokens_that_a_last_layer_sums_over_are_tokens(tmp_path: Path) -> None:
    """As a forecast is made of all patches of a series at once: the weight of its last layer has tokens."""
    nodes, known = attention()
    nodes = [
        *end(nodes),
        helper.make_node("Reshape", ["y", "flat"], ["all"]),
        helper.make_node("MatMul", ["all", "head"], ["z"]),
    ]
    known |= {"flat": np.array([0, 48]), "head": RNG.standard_normal((48, 5)).astype(np.float32)}
    graph = helper.make_graph(
        nodes,
        "series",
        [value("x", FLOAT, ["batch", 6, 8])],
        [value("z", FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array, name) for name, array in known.items()],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    model, feeds = open_model(path), {"x": RNG.standard_normal((2, 6, 8)).astype(np.float32)}
    axes, wanted = analyse(model, {"batch": 2}), whole_answer(path, feeds)
    for plan in PLANS:
        found = try_plan(model, axes, plan_of(plan, axes, 2), feeds, wanted)
        assert found.error is not None, found.why
        assert found.error < 1e-5


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("masked", [False, True])
def test_onnx_attention_caps_its_scores_before_it_masks_them(masked: bool, opset: int) -> None:
    inputs = [3 * floats(2, 4, 5, 8), 3 * floats(2, 4, 5, 8, seed=1), floats(2, 4, 5, 8, seed=2)]
    inputs += [3 * floats(5, 5, seed=3)] if masked else []
    check_lowered(*one_node("Attention", list(inputs), domain="", opset=opset, softcap=2.0))


def test_a_dropout_whose_mask_nobody_reads_is_none(tmp_path: Path) -> None:
    """As older exporters write it, with both results."""
    nodes, known = attention()
    nodes = [
        helper.make_node("Dropout", ["x", "ratio", "off"], ["dropped", "mask"]),
        *nodes,
    ]
    for node in nodes[1:]:
        for at, name in enumerate(node.input):
            node.input[at] = "dropped" if name == "x" else name
    known |= {"ratio": np.array(0.1, np.float32), "off": np.array(False)}
    assert check(tmp_path, end(nodes), known) == []
    bound = analyse(open_model(tmp_path / "model.onnx"), {"batch": 2, "tokens": 6}).bound
    assert "Dropout" not in {node.op_type for node in bound.nodes}


@pytest.mark.parametrize("grows", [False, True])
def test_what_a_loop_over_tokens_carries_has_a_size_if_it_stays_the_same(tmp_path: Path, grows: bool) -> None:
    """As the best path through a row of labels is found: one number a label, from token to token."""
    nodes, known = attention()
    last = "Concat" if grows else "Add"
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["goes"], ["still"]),
            helper.make_node("Gather", ["y0", "turn"], ["row"], axis=1),
            helper.make_node("Unsqueeze", ["row", "second"], ["one"]),
            helper.make_node(last, ["state", "one"], ["next"], **({"axis": 1} if grows else {})),
        ],
        "turn",
        [
            value("turn", TensorProto.INT64, []),
            value("goes", TensorProto.BOOL, []),
            value("state", FLOAT, None),
        ],
        [value("still", TensorProto.BOOL, []), value("next", FLOAT, None)],
    )
    known |= {"second": np.array([1]), "none": np.array([0]), "first": np.array([0]), "end": np.array([1])}
    more = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "second", "after"], ["length"]),
        helper.make_node("Squeeze", ["length", "none"], ["times"]),
        helper.make_node("Slice", ["y0", "first", "end", "second"], ["begin"]),
        helper.make_node("Loop", ["times", "", "begin"], ["z"], body=body),
        helper.make_node("ReduceMax", ["z"], ["most"], axes=[1], keepdims=1),
        helper.make_node("Add", ["most", "x"], ["y"]),
    ]
    known["after"] = np.array([2])
    refused = check(tmp_path, [*nodes, *more], known)
    bound = analyse(open_model(tmp_path / "model.onnx"), {"batch": 2, "tokens": 6}).bound
    assert ("z" in bound.unknown) is grows
    assert all("Loop" in why for why in refused)


def test_by_how_much_a_picture_grows_may_be_an_initializer(tmp_path: Path) -> None:
    nodes, known = attention()
    nodes += [
        helper.make_node("Transpose", ["y0"], ["t0"], perm=[0, 2, 1]),
        helper.make_node("Resize", ["t0", "", "grow"], ["t1"], mode="nearest"),
        helper.make_node("MaxPool", ["t1"], ["t2"], kernel_shape=[2], strides=[2]),
        helper.make_node("Transpose", ["t2"], ["y1"], perm=[0, 2, 1]),
        helper.make_node("Add", ["y1", "x"], ["y"]),
    ]
    known["grow"] = np.array([1, 1, 2], np.float32)
    assert check(tmp_path, nodes, known) == []
