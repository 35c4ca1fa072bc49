"""A model with a graph inside an operator trains: names inside and outside do not meet."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge_attention.core.schedule.plan import CutPlan, Stage
from edge_attention.graphs.axes.narrow import narrow_places
from tests.graphs.backward.bare_models import bare_case
from tests.graphs.backward.training_cases import run_cut

FLOAT = TensorProto.FLOAT


def with_a_branch() -> ModelProto:
    """Two layers; the second scales by one of two weights, as the data say."""
    rng = np.random.default_rng(0)
    value = helper.make_tensor_value_info

    def branch(name: str, weight: str) -> object:
        made = helper.make_node("Mul", ["h1", weight], [name])
        return helper.make_graph([made], name, [], [value(name, FLOAT, [3, 8])])

    weights = {
        "w0": rng.standard_normal((8, 8)),
        "w1": rng.standard_normal((8, 8)),
        "w2": rng.standard_normal((8, 8)),
        "up": rng.standard_normal(8),
        "down": rng.standard_normal(8),
        "zero": np.zeros(()),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a0"]),
        helper.make_node("Tanh", ["a0"], ["h0"]),
        helper.make_node("MatMul", ["h0", "w1"], ["a1"]),
        helper.make_node("Tanh", ["a1"], ["h1"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["says"]),
        helper.make_node(
            "If", ["says"], ["h2"], then_branch=branch("t0", "up"), else_branch=branch("t1", "down")
        ),
        helper.make_node("MatMul", ["h2", "w2"], ["hidden"]),
    ]
    graph = helper.make_graph(
        nodes,
        "branches",
        [value("x", FLOAT, [3, 8])],
        [value("hidden", FLOAT, [3, 8])],
        [numpy_helper.from_array(np.asarray(one, np.float32), name) for name, one in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_branch_on_data_has_a_gradient() -> None:
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    for feeds in ({"x": np.abs(x)}, {"x": -np.abs(x)}):
        case = bare_case(with_a_branch(), feeds, "hidden", ["w0", "w1", "w2"])
        layers = len(narrow_places(case.axes())) + 1
        whole = CutPlan((Stage(range(layers), (0,)),))
        parted = CutPlan((Stage(range(1), (0,)), Stage(range(1, layers), (1,))))
        for plan in (whole, parted) if layers > 1 else (whole,):
            for recompute in (False, True):
                assert case.worst(run_cut(case, case.cut(plan, recompute=recompute)))[0] < 2e-6
