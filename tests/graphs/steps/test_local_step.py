"""Local steps as graphs against core/optimizers.py, term by term, and names that get in each other's way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edge_attention.core.encodings import from_config
from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.optimizers import SGD, Adagrad, Adam, AdamW, Momentum, Optimizer
from edge_attention.graphs.gradients.gradients import Runner, differentiate, graph_inputs, graph_outputs
from edge_attention.graphs.onnx_builder import FLOAT, Builder
from edge_attention.graphs.steps.local_step import local_step, start_graph, step_and_update
from edge_attention.graphs.steps.update import update_graph

EVERY = [
    SGD(lr=0.05),
    SGD(lr=0.05, weight_decay=0.1),
    Momentum(lr=0.02, momentum=0.8, weight_decay=0.1),
    Momentum(lr=0.02, momentum=0.8, nesterov=True),
    Adagrad(lr=0.1, lr_decay=0.3, weight_decay=0.1),
    Adam(lr=0.02),
    Adam(lr=0.02, beta1=0.5, beta2=0.9, eps=0.5, weight_decay=0.1),
    AdamW(lr=0.02, weight_decay=0.3),
]
every = pytest.mark.parametrize("optimizer", EVERY, ids=repr)

SHAPES = [(3, 4), (4,), ()]
BATCH = 6
Arrays = dict[str, np.ndarray]


def model(rename: dict[str, str] | None = None) -> onnx.ModelProto:
    """mean((tanh(data @ x/0 + x/1) * x/2 - target)^2); a body of an `If` on the way, for names."""
    b = Builder("model")
    data = b.input("data", FLOAT, ["batch", 3])
    target = b.input("target", FLOAT, ["batch", 4])
    x = [b.input(f"x/{i}", FLOAT, shape) for i, shape in enumerate(SHAPES)]
    hidden = b("Tanh", b("Add", b("MatMul", data, x[0]), x[1]))
    error = b("Sub", b("Mul", hidden, x[2]), target)
    b.output("loss", b("ReduceMean", b("Mul", error, error), keepdims=0), FLOAT, [])
    made = b.model()
    for node in made.graph.node:
        for field in (node.input, node.output):
            field[:] = [(rename or {}).get(name, name) for name in field]
    for value in made.graph.input:
        value.name = (rename or {}).get(value.name, value.name)
    return made


def gradient(rename: dict[str, str] | None = None) -> onnx.ModelProto:
    wrt = {f"x/{i}": f"grad/{i}" for i in range(len(SHAPES))}
    graph = differentiate(model(rename), BATCH, wrt=wrt, seeds={"loss": None}, keep=["loss"])
    return onnx.load_model_from_string(graph)


def make(name: str, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        f"{name}/{i}": np.asarray(rng.standard_normal(shape), np.float32) for i, shape in enumerate(SHAPES)
    }


def batch(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "data": rng.standard_normal((BATCH, 3)).astype(np.float32),
        "target": rng.standard_normal((BATCH, 4)).astype(np.float32),
    }


def start(optimizer: Optimizer, p: Arrays) -> Arrays:
    graph = start_graph(SHAPES, optimizer.slots)
    names = list(graph_outputs(graph))
    return dict(zip(names, Runner(graph, "start")(names, p), strict=True))


def test_a_start_is_copies_and_zeros():
    p = make("p", 0)
    begun = start(EVERY[-1], p)
    assert set(begun) == {"count", "loss_sum"} | {
        f"{kind}/{i}" for kind in ("x", "slot/m", "slot/v") for i in range(3)
    }
    assert (begun["count"].dtype, begun["count"].shape, begun["count"]) == (np.int64, (), 0)
    assert (begun["loss_sum"].dtype, begun["loss_sum"].shape, begun["loss_sum"]) == (np.float32, (), 0)
    for i, shape in enumerate(SHAPES):
        np.testing.assert_array_equal(begun[f"x/{i}"], p[f"p/{i}"])
        for slot in "mv":
            assert begun[f"slot/{slot}/{i}"].tobytes() == np.zeros(shape, np.float32).tobytes()
    assert len(start_graph([(4096, 4096)], ["m", "v"])) < 2_000  # zeros are computed, not stored


@every
@pytest.mark.parametrize("terms", [(), ("proximal", "control", "penalty")], ids=["plain", "terms"])
def test_steps_follow_the_optimizer_in_numpy(optimizer: Optimizer, terms):
    gradients = gradient()
    runner = Runner(gradients.SerializeToString(), "gradient")
    graph = local_step(gradients, SHAPES, optimizer, **dict.fromkeys(terms, True))
    step = Runner(graph, "step")
    names = list(graph_outputs(graph))
    anchor = make("anchor", 1)
    extra = {
        **anchor,
        **make("control", 2),
        **make("extra", 3),
        "mu": np.array(0.3, np.float32),
        "penalty_weight": np.array(0.2, np.float32),
        "lr": np.array(optimizer.lr, np.float32),
    }

    given = make("p", 0)
    held = start(optimizer, given)
    # The state is passed on by name: every output `next/n` is the input `n`.
    assert {name.removeprefix("next/") for name in names} == {
        name for name in held if name != "count" or "count" in graph_inputs(graph)
    }
    parameters = {f"x/{i}": given[f"p/{i}"] for i in range(len(SHAPES))}
    state = optimizer.init(parameters)
    losses = []
    for turn in range(6):
        feeds = {**batch(turn), **parameters}
        loss, *g = runner(["loss", *(f"grad/{i}" for i in range(len(SHAPES)))], feeds)
        losses.append(loss)
        if terms:
            g = [
                g[i]
                + np.float32(0.3) * (parameters[f"x/{i}"] - anchor[f"anchor/{i}"])
                + extra[f"control/{i}"]
                + np.float32(0.2) * extra[f"extra/{i}"]
                for i in range(len(SHAPES))
            ]
        gradients_ = {f"x/{i}": np.asarray(array, np.float32) for i, array in enumerate(g)}
        parameters, state = optimizer.step(parameters, gradients_, state)

        results = step(names, {**batch(turn), **extra, **held})
        held |= {name.removeprefix("next/"): array for name, array in zip(names, results, strict=True)}
        for name, expected in parameters.items():
            assert held[name].shape == expected.shape
            # The runs are apart by rounding; a step of Adam is as long as lr however small the gradient.
            np.testing.assert_allclose(held[name], expected, rtol=1e-6, atol=1e-6)
        for slot in optimizer.slots:
            for i in range(len(SHAPES)):
                expected = state[f"{slot}/x/{i}"]
                np.testing.assert_allclose(held[f"slot/{slot}/{i}"], expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(held["loss_sum"], np.sum(losses), rtol=1e-6)
    if "count" in graph_inputs(graph):
        assert held["count"] == 6


def test_only_what_is_asked_for_is_an_input():
    plain = set(graph_inputs(local_step(gradient(), SHAPES, SGD())))
    assert plain == {"data", "target", "x/0", "x/1", "x/2", "lr", "loss_sum"}
    more = set(graph_inputs(local_step(gradient(), SHAPES, Momentum(), proximal=True)))
    assert more - plain == {"mu", *(f"{kind}/{i}" for kind in ("anchor", "slot/m") for i in range(3))}
    assert set(graph_inputs(local_step(gradient(), SHAPES, AdamW()))) - plain == {
        "count", *(f"slot/{slot}/{i}" for slot in "mv" for i in range(3)),
    }  # fmt: skip


def test_lr_is_read_at_every_step():
    step = Runner(local_step(gradient(), SHAPES, SGD(lr=123.0)), "step")
    feeds = {**make("x", 0), **batch(0), "loss_sum": np.array(0, np.float32)}
    moved = [step(["next/x/0"], {**feeds, "lr": np.array(lr, np.float32)})[0] for lr in (0.0, 0.5, 1.0)]
    np.testing.assert_array_equal(moved[0], feeds["x/0"])
    np.testing.assert_allclose(moved[2] - moved[0], 2 * (moved[1] - moved[0]), rtol=1e-4, atol=1e-6)


def test_a_parameter_the_gradient_does_not_read_is_still_one():
    """d/dx of sum(x * data) does not depend on x."""
    b = Builder("linear")
    data, x = b.input("data", FLOAT, ["batch"]), b.input("x/0", FLOAT, [])
    b.output("grad/0", b("ReduceSum", data, keepdims=0), FLOAT, [])
    b.output("loss", b("Mul", b.const(np.float32(1)), b.const(np.float32(2))), FLOAT, [])
    made = b.model()
    del made.graph.input[[v.name for v in made.graph.input].index(x)]
    step = Runner(local_step(made, [()], SGD()), "step")
    feeds = {"data": np.ones(3), "x/0": np.array(10), "lr": np.array(0.5), "loss_sum": np.array(1)}
    results = step(["next/x/0", "next/loss_sum"], {n: np.asarray(v, np.float32) for n, v in feeds.items()})
    assert results == [8.5, 3]


def test_names_a_model_made_up_do_not_get_in_the_way():
    """Values inside a model may be called like an input of the step, or like values the step makes up."""
    plain = model().graph.node
    taken = ["lr", "loss_sum", "step/Add_1", "step/constant_1", "next/x/0"]
    renamed = {node.output[0]: name for node, name in zip(plain, taken, strict=False)}
    feeds = {
        **make("x", 0),
        **batch(0),
        "lr": np.array(0.5, np.float32),
        "loss_sum": np.array(0, np.float32),
    }
    both = []
    for rename in ({}, renamed):
        graph = local_step(gradient(rename), SHAPES, SGD())
        onnx.checker.check_model(graph, full_check=True)
        both.append(Runner(graph, "step")(["next/x/0", "next/loss_sum"], feeds))
    for expected, found in zip(*both, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_values_in_bodies_are_renamed_with_the_rest():
    b = Builder("conditional")
    data, x = b.input("data", FLOAT, [3]), b.input("x/0", FLOAT, [3])
    scaled = b("Mul", data, x)
    positive = b("Greater", b("ReduceSum", scaled, keepdims=0), b.const(np.float32(0)))
    (g,) = b.either(
        positive, lambda s: [s("Neg", scaled)], lambda s: [s("Add", scaled, b.const(np.float32(7)))], [[3]]
    )
    b.output("grad/0", g, FLOAT, [3])
    b.output("loss", b("ReduceSum", scaled, keepdims=0), FLOAT, [])
    made = b.model()
    text = made.SerializeToString()
    for inner in (scaled, made.graph.initializer[-1].name):
        # The value from outside, in the body too, is now called as an input of the step.
        text = text.replace(inner.encode(), b"lr".ljust(len(inner), b"_"))
    clashing = onnx.load_model_from_string(text)
    feeds = {"data": np.ones(3), "x/0": np.arange(3), "lr": np.array(1), "loss_sum": np.array(0)}
    feeds = {name: np.asarray(array, np.float32) for name, array in feeds.items()}
    (moved,) = Runner(local_step(clashing, [(3,)], SGD()), "step")(["next/x/0"], feeds)
    np.testing.assert_array_equal(moved, np.arange(3) + np.arange(3))


def test_a_data_input_with_a_name_of_the_step_is_refused():
    graph = gradient({"data": "lr"})
    with pytest.raises(InvalidGraph, match="the model's input 'lr' has a name that local steps use"):
        local_step(graph, SHAPES, SGD())


def test_a_missing_gradient_is_named():
    graph = gradient()
    del graph.graph.output[-1]
    with pytest.raises(InvalidGraph, match="lacks the output grad/2"):
        local_step(graph, SHAPES, SGD())


def test_an_optimizer_without_a_graph_is_refused():
    class Other(Optimizer):
        name = "other-of-this-test"
        slots = ()

        def update(self, step, p, g, *slots):
            return (p,)

    with pytest.raises(InvalidArgument, match="optimizer other-of-this-test has no graph"):
        local_step(gradient(), SHAPES, Other())


def test_the_same_arguments_give_the_same_bytes():
    assert local_step(gradient(), SHAPES, Adam()) == local_step(gradient(), SHAPES, Adam())


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8", "topk"])
@pytest.mark.parametrize("terms", [(), ("proximal", "control")], ids=["plain", "terms"])
def test_a_step_and_its_update_are_one_graph_with_the_same_bits(encoding, terms):
    step = local_step(gradient(), SHAPES, SGD(weight_decay=0.1), **dict.fromkeys(terms, True))
    update = update_graph(SHAPES, source="difference", clip=True, encoding=from_config(encoding))
    both = step_and_update(step, update)
    onnx.checker.check_model(both, full_check=True)
    assert step_and_update(step, update) == both
    p = {f"x/{i}": array for i, array in enumerate(make("p", 0).values())}
    given = {
        **p,
        **{name.replace("x/", "anchor/"): array for name, array in p.items()},
        **make("control", 2),
        **make("residual", 4),
        **batch(5),
        **{n: np.array(v, np.float32) for n, v in {"mu": 0.3, "lr": 0.05, "loss_sum": 0, "steps": 1}.items()},
        "max_norm": np.array(0.01, np.float32),
    }

    def run(graph: bytes, feeds: Arrays) -> Arrays:
        names = list(graph_outputs(graph))
        wanted = graph_inputs(graph)
        found = Runner(graph, "both")(names, {n: a for n, a in feeds.items() if n in wanted})
        return dict(zip(names, found, strict=True))

    stepped = run(step, given)
    moved = {name.removeprefix("next/"): array for name, array in stepped.items()}
    expected = run(update, {**given, **moved})
    assert any(np.any(array) for name, array in expected.items() if name.startswith("update/"))
    found = run(both, given)
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_an_input_called_like_one_of_the_update_cannot_be_joined():
    step = local_step(gradient({"data": "steps"}), SHAPES, SGD())
    update = update_graph(SHAPES, source="difference", clip=False, encoding=from_config("float32"))
    with pytest.raises(InvalidGraph, match="the model's input 'steps' has a name"):
        step_and_update(step, update)
