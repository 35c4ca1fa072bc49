"""Step graphs that bring their own gradients."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import FLOAT, close, model, node, normal, run

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.gradients.gradients import graph_inputs, graph_outputs
from edge_attention.graphs.models.model import gradient_graph, load_step_graph
from edge_attention.graphs.models.model_checks import check_model
from edge_attention.graphs.models.model_graphs import evaluation_graph
from edge_attention.graphs.onnx_file import serialize

GRADIENTS = {"w": "dw", "scale": "ds"}
SCALE = {"scale": normal(9, 2)}


def step_file(batch: str | int = "n", factor: float = 2.0) -> bytes:
    """loss = sum((x w * scale - y)^2) / 8: w is an initializer, scale an input."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Mul", ["h", "scale"], ["z"]),
        node("Sub", ["z", "y"], ["miss"]),
        node("Mul", ["miss", "miss"], ["square"]),
        node("ReduceSum", ["square"], ["total"], keepdims=0),
        node("Mul", ["total", "eighth"], ["objective"]),
        node("Mul", ["miss", "slope"], ["dz"]),
        node("Mul", ["dz", "scale"], ["dh"]),
        node("Transpose", ["x"], ["turned"]),
        node("MatMul", ["turned", "dh"], ["dw"]),
        node("Mul", ["dz", "h"], ["each"]),
        node("ReduceSum", ["each", "rows"], ["ds"], keepdims=0),
    ]
    return model(
        nodes,
        {"x": (FLOAT, [batch, 3]), "scale": (FLOAT, [2]), "y": (FLOAT, [batch, 2])},
        {"objective": (FLOAT, []), "dw": (FLOAT, [3, 2]), "ds": (FLOAT, [2]), "total": (FLOAT, [])},
        {
            "w": normal(1, 3, 2),
            "eighth": np.array(0.125, np.float32),
            "slope": np.array(factor / 8, np.float32),
            "rows": np.array([0], np.int64),
        },
    )


def test_a_step_graph_trains_as_one_of_ours() -> None:
    loaded, graph = load_step_graph(
        step_file(), gradients=GRADIENTS, loss="objective", initial=SCALE, metrics=["total"]
    )
    assert loaded.names == ("w", "scale")
    assert set(graph_inputs(serialize(graph))) == {"x", "y", "x/0", "x/1"}
    assert graph_outputs(serialize(gradient_graph(loaded, 4))) == {
        "loss": (np.dtype(np.float32), ()),
        "grad/0": (np.dtype(np.float32), (3, 2)),
        "grad/1": (np.dtype(np.float32), (2,)),
    }
    x, y = normal(2, 4, 3), normal(3, 4, 2)
    feeds = {"x": x, "y": y, "x/0": loaded.parameters["w"], "x/1": loaded.parameters["scale"]}
    w, scale = (value.astype(np.float64) for value in loaded.parameters.values())
    miss = x.astype(np.float64) @ w * scale - y
    for made in (graph, gradient_graph(loaded, 4)):
        found = run(made, feeds)
        close(found["loss"], (miss**2).sum() / 8)
        close(found["grad/0"], x.T.astype(np.float64) @ (miss * scale) / 4)
        close(found["grad/1"], (miss * (x.astype(np.float64) @ w)).sum(axis=0) / 4)
    zero = np.zeros((), np.float32)
    summed = run(evaluation_graph(loaded), {**feeds, "sum/loss": zero, "sum/total": zero})
    close(summed["next/loss"], (miss**2).sum() / 2)
    close(summed["next/total"], (miss**2).sum())
    assert check_model(loaded) < 0.01


def test_gradients_that_are_wrong_are_found_out() -> None:
    loaded, _ = load_step_graph(step_file(factor=1.0), gradients=GRADIENTS, loss="objective", initial=SCALE)
    with pytest.raises(InvalidGraph, match=r"gradient of 'w' at .* finite differences miss it"):
        check_model(loaded)


def test_a_fixed_batch_stays_fixed() -> None:
    loaded, graph = load_step_graph(step_file(5), gradients=GRADIENTS, loss="objective", initial=SCALE)
    assert graph_inputs(serialize(graph))["x"][1] == (5, 3)
    assert loaded.forward == b""
    assert check_model(loaded) < 0.01
    with pytest.raises(InvalidGraph, match="exported for a batch of 5, not 4"):
        gradient_graph(loaded, 4)
    with pytest.raises(InvalidGraph, match="fixed batch cannot be evaluated"):
        evaluation_graph(loaded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "cost"}, "no output 'cost' among"),
        ({"gradients": {"w": "dv"}}, "no output 'dv' among"),
        ({"gradients": {"v": "dw"}}, "'v' is no initializer and no input"),
        ({"gradients": {"w": "ds", "scale": "dw"}}, r"'ds' has shape \[2\]; as grad/0 it must be \[3, 2\]"),
        ({"initial": None}, "parameter 'scale' is an input; give it an initial value"),
        ({"initial": {"scale": np.ones(3, np.float32)}}, "must be float32 of one shape"),
        ({"gradients": {"w": "dw"}}, "an input that is no data must be named as a parameter"),
    ],
)
def test_a_step_graph_that_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    arguments = {"gradients": GRADIENTS, "loss": "objective", "initial": SCALE} | changes
    with pytest.raises(InvalidGraph, match=message):
        load_step_graph(step_file(), **arguments)
