"""Each optimizer against its papers' formulae in float64, and the contract they share."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Momentum,
    Optimizer,
    from_config,
    to_config,
)

Arrays = dict[str, np.ndarray]

EVERY = [
    SGD(lr=0.05),
    SGD(lr=0.05, weight_decay=0.1),
    Momentum(lr=0.02, momentum=0.8),
    Momentum(lr=0.02, momentum=0.8, weight_decay=0.1),
    Momentum(lr=0.02, momentum=0.8, nesterov=True, weight_decay=0.1),
    Adagrad(lr=0.1),
    Adagrad(lr=0.1, lr_decay=0.3, eps=0.5, weight_decay=0.1),
    Adam(lr=0.02),
    Adam(lr=0.02, beta1=0.5, beta2=0.9, eps=0.5, weight_decay=0.1),
    AdamW(lr=0.02),
    AdamW(lr=0.02, beta1=0.7, beta2=0.95, eps=0.3, weight_decay=2.0),
]
every = pytest.mark.parametrize("optimizer", EVERY, ids=repr)


def reference(o: Optimizer, p: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """One parameter after all the gradients, in float64."""
    p = p.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate((g.astype(np.float64) for g in gradients), start=1):
        if isinstance(o, SGD):
            p = p - o.lr * (g + o.weight_decay * p)
        elif isinstance(o, Momentum):
            g = g + o.weight_decay * p
            m = o.momentum * m + g
            p = p - o.lr * (g + o.momentum * m) if o.nesterov else p - o.lr * m
        elif isinstance(o, Adagrad):
            g = g + o.weight_decay * p
            v = v + g**2
            p = p - o.lr / (1 + (t - 1) * o.lr_decay) * g / (np.sqrt(v) + o.eps)
        elif isinstance(o, Adam):
            if isinstance(o, AdamW):
                p = p - o.lr * o.weight_decay * p
            else:
                g = g + o.weight_decay * p
            m = o.beta1 * m + (1 - o.beta1) * g
            v = o.beta2 * v + (1 - o.beta2) * g**2
            p = p - o.lr * (m / (1 - o.beta1**t)) / (np.sqrt(v / (1 - o.beta2**t)) + o.eps)
        else:
            raise AssertionError(f"no reference for {o}")
    return p


def make(seed: int, shapes: dict[str, tuple[int, ...]]) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}


def bits(tensors: Arrays) -> dict[str, tuple[object, ...]]:
    return {name: (t.dtype, t.shape, t.tobytes()) for name, t in tensors.items()}


SHAPES = {"scale": (), "bias": (5,), "layer/weight": (3, 7), "none": (0, 4)}


@every
def test_a_hundred_steps_follow_the_formula(optimizer: Optimizer) -> None:
    parameters = start = make(0, SHAPES)
    state = optimizer.init(parameters)
    gradients = [make(seed, SHAPES) for seed in range(1, 101)]
    for step in gradients:
        parameters, state = optimizer.step(parameters, step, state)
    assert state["step"] == 100
    assert set(state) == {"step"} | {f"{s}/{n}" for s in optimizer.slots for n in SHAPES}
    for name, value in parameters.items():
        expected = reference(optimizer, start[name], [step[name] for step in gradients])
        assert value.dtype == np.float32
        assert value.shape == SHAPES[name]
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5)


def test_every_optimizer_has_a_reference() -> None:
    with pytest.raises(InvalidArgument, match="adagrad, adam, adamw, momentum, sgd"):
        from_config("lion")
    assert {o.name for o in EVERY} == {"adagrad", "adam", "adamw", "momentum", "sgd"}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(EVERY), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 2**31))
def test_stepping_the_concatenation_is_stepping_the_pieces(
    optimizer: Optimizer, sizes: list[int], seed: int
) -> None:
    """Bit for bit: so a parameter may be split over holders, or fused for the wire."""
    shapes: dict[str, tuple[int, ...]] = {str(i): (size,) for i, size in enumerate(sizes)}
    join: Callable[[Arrays], Arrays] = lambda tensors: {"all": np.concatenate([tensors[n] for n in shapes])}  # noqa: E731
    pieces = make(seed, shapes)
    whole = join(pieces)
    piece_state, whole_state = optimizer.init(pieces), optimizer.init(whole)
    for step in range(1, 4):
        gradients = make(seed + step, shapes)
        pieces, piece_state = optimizer.step(pieces, gradients, piece_state)
        whole, whole_state = optimizer.step(whole, join(gradients), whole_state)
    assert bits(join(pieces)) == bits(whole)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(EVERY), st.integers(0, 6), st.integers(0, 2**31))
def test_resuming_from_stored_bytes_is_not_stopping(optimizer: Optimizer, stop: int, seed: int) -> None:
    def run(parameters: Arrays, state: Arrays, steps: range, o: Optimizer) -> tuple[Arrays, Arrays]:
        for step in steps:
            parameters, state = o.step(parameters, make(seed + step, SHAPES), state)
        return parameters, state

    def stored(tensors: Arrays) -> Arrays:
        return {n: np.frombuffer(t.tobytes(), t.dtype).reshape(t.shape) for n, t in tensors.items()}

    start = make(seed, SHAPES)
    uninterrupted = run(start, optimizer.init(start), range(1, 7), optimizer)
    parameters, state = run(start, optimizer.init(start), range(1, stop + 1), optimizer)
    config = json.loads(json.dumps(to_config(optimizer)))
    again = from_config(config["name"], **config["options"])
    resumed = run(stored(parameters), stored(state), range(stop + 1, 7), again)
    assert [bits(t) for t in resumed] == [bits(t) for t in uninterrupted]


@every
def test_a_step_changes_and_shares_nothing_it_was_given(optimizer: Optimizer) -> None:
    parameters, gradients = make(0, SHAPES), make(1, SHAPES)
    _, state = optimizer.step(parameters, gradients, optimizer.init(parameters))
    given_ = [parameters, gradients, state]
    before = [bits(t) for t in given_]
    for tensors in given_:
        for tensor in tensors.values():
            tensor.flags.writeable = False
    made = optimizer.step(parameters, gradients, state)
    assert [bits(t) for t in given_] == before
    for result in made:
        for new in result.values():
            assert new.flags.writeable
            assert not any(np.shares_memory(new, old) for tensors in given_ for old in tensors.values())


def broken(which: str, name: str, value: object) -> Callable[[list[Arrays]], None]:
    def apply(tensors: list[Arrays]) -> None:
        target = tensors[["parameter", "gradient", "state"].index(which)]
        if value is None:
            del target[name]
        else:
            target[name] = value  # type: ignore[assignment]

    return apply


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (broken("gradient", "bias", None), "gradient bias is missing"),
        (broken("gradient", "extra", np.zeros(1, np.float32)), "gradient extra belongs to no parameter"),
        (broken("gradient", "bias", np.zeros(1, np.float32)), r"gradient bias has shape \[1\].* \[5\]"),
        (broken("gradient", "bias", np.zeros(5)), "gradient bias is float64"),
        (broken("gradient", "bias", np.zeros(5, ">f4")), "gradient bias is >f4"),
        (broken("gradient", "bias", [0.0] * 5), "gradient bias is list"),
        (broken("gradient", "bias", np.array([0, np.nan, 0, 0, 0], np.float32)), "gradient bias holds NaN"),
        (broken("gradient", "scale", np.array(-np.inf, np.float32)), "gradient scale holds NaN or Inf"),
        (broken("parameter", "bias", np.zeros(5, np.float16)), "parameter bias is float16"),
        (broken("state", "v/bias", None), "optimizer state v/bias is missing"),
        (broken("state", "u/bias", np.zeros(5, np.float32)), "optimizer state u/bias belongs to no"),
        (
            broken("state", "m/bias", np.zeros((5, 1), np.float32)),
            r"optimizer state m/bias has shape \[5, 1\]",
        ),
        (broken("state", "step", None), "optimizer state step is missing"),
        (broken("state", "step", np.array(0.0)), "optimizer state step is float64"),
        (broken("state", "step", np.array(-1)), "optimizer state step is -1"),
        (broken("gradient", "bias", np.full(5, 3e38, np.float32)), "makes v/bias overflow"),
        (broken("parameter", "bias", np.full(5, np.inf, np.float32)), "makes bias overflow"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(break_it: Callable[[list[Arrays]], None], message: str) -> None:
    parameters = make(0, SHAPES)
    tensors = [parameters, make(1, SHAPES), Adam().init(parameters)]
    Adam().step(*tensors)
    break_it(tensors)
    with pytest.raises(InvalidTensor, match=message):
        Adam().step(*tensors)


def test_init_refuses_what_is_not_float32() -> None:
    with pytest.raises(InvalidTensor, match="parameter w is float64"):
        SGD().init({"w": np.zeros(3)})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Adam", {}, "no optimizer 'Adam'; there are adagrad, adam, adamw"),
        ("sgd", {"momentum": 0.9}, "sgd has no option 'momentum'; it has lr, weight_decay"),
        ("sgd", {"name": 1.0}, "has no option 'name'"),
        ("sgd", {"slots": 1.0}, "has no option 'slots'"),
        ("sgd", {"lr": 0}, "lr of optimizer sgd is 0; it must be above 0"),
        ("sgd", {"lr": float("nan")}, "lr .* nan"),
        ("sgd", {"lr": float("inf")}, "lr .* inf"),
        ("sgd", {"lr": "0.1"}, "lr .* '0.1'"),
        ("sgd", {"lr": True}, "lr .* True"),
        ("sgd", {"weight_decay": -1e-9}, "0 or above"),
        ("momentum", {"momentum": 1.0}, r"in \[0, 1\)"),
        ("momentum", {"nesterov": 0.5}, "nesterov .* true or false"),
        ("adam", {"beta1": -0.1}, r"beta1 .* in \[0, 1\)"),
        ("adamw", {"beta2": 1}, r"beta2 of optimizer adamw .* in \[0, 1\)"),
        ("adagrad", {"eps": 1e-60}, "eps .* 1e-30 or above"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(
    name: str, options: dict[str, float], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        from_config(name, **options)


def test_a_configuration_as_the_wire_carries_it() -> None:
    assert from_config("momentum", nesterov=1.0, lr=1) == Momentum(lr=1.0, nesterov=True)
    assert from_config("adamw") == AdamW(1e-3, 0.9, 0.999, 1e-8, 1e-2)
    assert to_config(SGD(lr=0.5)) == {"name": "sgd", "options": {"lr": 0.5, "weight_decay": 0.0}}
