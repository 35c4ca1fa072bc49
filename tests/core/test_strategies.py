"""Each strategy against its paper's formulae in float64, and the contract they share."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attention.core.combine import Mean
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.optimizers import Adam, Momentum
from edge_attention.core.strategies import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedProx,
    FedYogi,
    GradientAveraging,
    Scaffold,
    Strategy,
    from_config,
    to_config,
)
from edge_attention.core.strategies.scaffold import next_control, next_global_control

EVERY: list[Strategy] = [
    GradientAveraging(),
    GradientAveraging(Momentum(lr=0.1, momentum=0.8, nesterov=True)),
    GradientAveraging(Adam(lr=0.02, weight_decay=0.1)),
    FedAvg(),
    FedAvg(lr=0.5),
    FedAvgM(),
    FedAvgM(lr=0.3, momentum=0.5),
    FedAdam(),
    FedAdam(lr=0.02, beta1=0.5, beta2=0.9, tau=0.1),
    FedAdagrad(),
    FedAdagrad(lr=0.3, beta1=0.6, tau=0.5),
    FedYogi(),
    FedYogi(lr=0.02, beta1=0.5, beta2=0.8, tau=0.1),
    FedProx(lr=0.7, mu=0.3),
    Scaffold(lr=0.9),
    FedBuff(lr=0.8),
]
every = pytest.mark.parametrize("strategy", EVERY, ids=repr)

Array = np.ndarray


def draw(seed: int, size: int = 37) -> Array:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def begin(strategy: Strategy, size: int) -> list[Array]:
    return [np.full(size, strategy.initial(slot), np.float32) for slot in strategy.slots]


def run(strategy: Strategy, p: Array, updates: list[Array]) -> list[Array]:
    """The parameters and the slots after all updates."""
    held = begin(strategy, p.size)
    for count, u in enumerate(updates, start=1):
        p, *held = strategy.step(count, p, u, *held)
    return [p, *held]


def reference(s: Strategy, p: Array, updates: list[Array]) -> Array:
    """One parameter after all updates, in float64, as the papers write it (with delta = -u)."""
    p = p.astype(np.float64)
    m = np.zeros_like(p)
    v = np.full_like(p, s.tau**2) if isinstance(s, FedAdam | FedAdagrad | FedYogi) else np.zeros_like(p)
    for t, u in enumerate((u.astype(np.float64) for u in updates), start=1):
        delta = -u
        if isinstance(s, GradientAveraging):
            o = s.optimizer
            if isinstance(o, Adam):
                g = u + o.weight_decay * p
                m = o.beta1 * m + (1 - o.beta1) * g
                v = o.beta2 * v + (1 - o.beta2) * g**2
                p = p - o.lr * (m / (1 - o.beta1**t)) / (np.sqrt(v / (1 - o.beta2**t)) + o.eps)
            elif isinstance(o, Momentum):
                m = o.momentum * m + u
                p = p - o.lr * (u + o.momentum * m)
            else:
                p = p - 0.001 * u
        elif isinstance(s, FedAvg):  # FedProx, SCAFFOLD and FedBuff as well
            p = p + s.lr * delta
        elif isinstance(s, FedAvgM):
            m = s.momentum * m + u
            p = p - s.lr * m
        else:
            assert isinstance(s, FedAdam | FedAdagrad | FedYogi)
            m = s.beta1 * m + (1 - s.beta1) * delta
            if isinstance(s, FedAdam):
                v = s.beta2 * v + (1 - s.beta2) * delta**2
            elif isinstance(s, FedAdagrad):
                v = v + delta**2
            else:
                v = v - (1 - s.beta2) * delta**2 * np.sign(v - delta**2)
            p = p + s.lr * m / (np.sqrt(v) + s.tau)
    return p


@every
def test_many_rounds_follow_the_formula(strategy: Strategy) -> None:
    start, updates = draw(0), [draw(seed) * np.float32(0.1) for seed in range(1, 21)]
    p, *slots = run(strategy, start, updates)
    assert p.dtype == np.float32
    assert len(slots) == len(strategy.slots)
    assert all(slot.dtype == np.float32 and slot.shape == p.shape for slot in slots)
    np.testing.assert_allclose(p, reference(strategy, start, updates), rtol=2e-5, atol=2e-5)


def test_every_strategy_is_here_and_names_its_paper() -> None:
    names = {strategy.name for strategy in EVERY}
    with pytest.raises(InvalidArgument, match=", ".join(sorted(names))):
        from_config("fedsomething")
    assert all("arXiv:" in strategy.paper for strategy in EVERY)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EVERY), st.lists(st.integers(0, 60), max_size=4), st.integers(0, 2**31))
def test_a_parameter_in_pieces_gives_the_same_bits(strategy: Strategy, cuts: list[int], seed: int) -> None:
    size = 60
    edges = [0, *sorted(cuts), size]
    start, updates = draw(seed, size), [draw(seed + i, size) for i in range(1, 4)]
    whole = run(strategy, start, updates)
    pieces = [run(strategy, start[a:b], [u[a:b] for u in updates]) for a, b in pairwise(edges)]
    for i, tensor in enumerate(whole):
        assert np.concatenate([piece[i] for piece in pieces]).tobytes() == tensor.tobytes()


@every
def test_a_step_changes_and_shares_nothing_it_was_given(strategy: Strategy) -> None:
    tensors = [draw(1), draw(2), *begin(strategy, 37)]
    before = [t.tobytes() for t in tensors]
    for tensor in tensors:
        tensor.flags.writeable = False
    made = strategy.step(1, *tensors)
    assert [t.tobytes() for t in tensors] == before
    assert not any(np.shares_memory(new, old) for new in made for old in tensors)


@every
def test_a_configuration_survives_json(strategy: Strategy) -> None:
    config = json.loads(json.dumps(to_config(strategy)))
    assert from_config(config["name"], **config["options"]) == strategy


def test_numbers_as_the_wire_carries_them() -> None:
    made = from_config("fedbuff", buffer=4.0, max_staleness=3.0)
    assert made == FedBuff(buffer=4, max_staleness=3)
    assert isinstance(made, FedBuff)
    assert (type(made.buffer), type(made.max_staleness)) == (int, int)
    nesterov = from_config("gradient_averaging", optimizer="momentum", nesterov=1.0)
    assert nesterov == GradientAveraging(Momentum(nesterov=True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("FedAvg", {}, "no strategy 'FedAvg'; there are fedadagrad"),
        ("fedavg", {"momentum": 0.9}, "strategy fedavg has no option 'momentum'; it has lr"),
        ("fedavg", {"lr": 0}, "lr of strategy fedavg is 0; it must be above 0"),
        ("fedavg", {"slots": 1.0}, "has no option 'slots'"),
        ("fedavgm", {"momentum": 1.0}, r"momentum .* in \[0, 1\)"),
        ("fedadam", {"tau": 0}, "tau .* 1e-30 or above"),
        ("fedadam", {"beta2": math.nan}, "beta2 .* nan"),
        ("fedadagrad", {"beta2": 0.5}, "no option 'beta2'"),
        ("fedprox", {"mu": -1}, "mu of strategy fedprox is -1; it must be 0 or above"),
        ("fedbuff", {"buffer": 0}, "buffer .* a whole number, 1 or above"),
        ("fedbuff", {"buffer": 2.5}, "buffer .* 2.5; it must be a whole number"),
        ("fedbuff", {"buffer": True}, "buffer .* True"),
        ("fedbuff", {"max_staleness": math.inf}, "max_staleness .* inf"),
        ("gradient_averaging", {"optimizer": "lion"}, "no optimizer 'lion'; there are adagrad"),
        ("gradient_averaging", {"optimizer": 1.0}, "optimizer .* 1.0; it must be an optimizer's name"),
        ("gradient_averaging", {"optimizer": "sgd", "beta1": 0.9}, "optimizer sgd has no option 'beta1'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(
    name: str, options: dict[str, float], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        from_config(name, **options)


def test_what_nodes_are_asked_to_do() -> None:
    flags = {
        from_config(name).name: (s.gradients, s.asynchronous, s.controls, s.proximal)
        for name in {strategy.name for strategy in EVERY}
        for s in [from_config(name)]
    }
    different = {name: flag for name, flag in flags.items() if flag != (False, False, False, 0.0)}
    assert different == {
        "gradient_averaging": (True, False, False, 0.0),
        "fedprox": (False, False, False, 0.01),
        "scaffold": (False, False, True, 0.0),
        "fedbuff": (False, True, False, 0.0),
    }


def test_weights() -> None:
    assert FedAvg().weight(30, 0) == 30
    assert Scaffold().weight(30, 0) == Scaffold().weight(2, 0)
    assert FedBuff().weight(30, 0) == 30
    assert FedBuff().weight(30, 3) == pytest.approx(15)
    assert FedBuff(exponent=0).weight(30, 99) == 30
    assert FedAdam().damping([1, 2], [5, 5]) == 1


def test_a_buffer_of_stale_updates_steps_as_the_paper_says() -> None:
    """p - lr/K sum u_k / sqrt(1 + t_k): weights alone would cancel where all are equally stale."""
    strategy, p = FedBuff(lr=0.5, buffer=3), draw(0)
    for staleness in ([0, 3, 8], [8, 8, 8], [0, 0, 0]):
        updates = np.stack([draw(seed) for seed in (1, 2, 3)])
        weights = Mean().weights(np.array([strategy.weight(1, t) for t in staleness]), None, None)
        folded = Mean().fold(updates, weights) * np.float32(strategy.damping([1, 1, 1], staleness))
        expected = p - 0.5 / 3 * sum(
            u.astype(np.float64) / math.sqrt(1 + t) for u, t in zip(updates, staleness, strict=True)
        )
        np.testing.assert_allclose(strategy.step(1, p, folded)[0], expected, rtol=1e-5, atol=1e-6)


def test_proximal_is_mu() -> None:
    assert FedProx(mu=0.25).proximal == 0.25
    assert FedAvg().proximal == 0


def drift_free(strategy: Strategy, curvature: Array, centre: Array, rounds: int) -> Array:
    """Where `rounds` of 10 local steps lead nodes whose losses are curvature/2 (x - centre)^2."""
    nodes, steps, lr = len(centre), 10, 0.05
    p = np.zeros(1, np.float32)
    c, own = np.zeros(1, np.float32), np.zeros((nodes, 1), np.float32)
    for count in range(1, rounds + 1):
        local = np.repeat(p[None], nodes, axis=0)
        control = c - own if strategy.controls else np.zeros_like(own)
        for _ in range(steps):
            local -= np.float32(lr) * (curvature * (local - centre) + control)
        updates = p - local
        if strategy.controls:
            after = np.stack([next_control(o, c, u, steps, lr) for o, u in zip(own, updates, strict=True)])
            c = next_global_control(c, (after.astype(np.float64) - own).sum(axis=0), nodes)
            own = after
            np.testing.assert_allclose(c, own.mean(axis=0), atol=1e-4)
        (p,) = strategy.step(count, p, updates.mean(axis=0))
    return p


def test_scaffold_reaches_the_minimum_that_fedavg_drifts_away_from() -> None:
    curvature = np.array([[4.0], [0.1]], np.float32)
    centre = np.array([[1.0], [-3.0]], np.float32)
    minimum = float((curvature * centre).sum() / curvature.sum())
    assert abs(float(drift_free(FedAvg(), curvature, centre, 300)[0]) - minimum) > 0.1
    assert abs(float(drift_free(Scaffold(), curvature, centre, 300)[0]) - minimum) < 1e-3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 50), st.floats(1e-3, 1.0), st.integers(0, 40))
def test_controls_follow_the_formula_in_any_pieces(seed: int, steps: int, lr: float, cut: int) -> None:
    own, c, u, changes = (draw(seed + i, 40) for i in range(4))
    made = next_control(own, c, u, steps, lr)
    np.testing.assert_allclose(
        made, own.astype(np.float64) - c + u.astype(np.float64) / (steps * lr), rtol=1e-4, atol=1e-4
    )
    halves = [next_control(own[p], c[p], u[p], steps, lr) for p in (slice(cut), slice(cut, None))]
    assert np.concatenate(halves).tobytes() == made.tobytes()
    whole = next_global_control(c, changes.astype(np.float64), 7)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, c + changes / 7.0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("steps", "lr"), [(0, 0.1), (5, 0.0), (5, math.nan)])
def test_a_control_of_no_steps_is_refused(steps: int, lr: float) -> None:
    with pytest.raises(InvalidArgument, match=r"local\.steps"):
        next_control(draw(0), draw(1), draw(2), steps, lr)
