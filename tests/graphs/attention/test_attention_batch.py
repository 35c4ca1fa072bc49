"""The training graphs against attention and its gradient written out in float64."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attention.graphs.attention import library

Arrays = dict[str, np.ndarray]


@cache
def session(name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(library.load(name), options, providers=["CPUExecutionProvider"])


def run(name: str, feeds: Arrays) -> Arrays:
    outputs = [output.name for output in session(name).get_outputs()]
    return dict(zip(outputs, session(name).run(outputs, feeds), strict=True))


def make(seed: int, b: int, n: int, hk: int, group: int, t: int, dk: int, dv: int) -> Arrays:
    rng = np.random.default_rng(seed)
    arrays = {
        "q": rng.normal(size=(n, hk * group, dk)),
        "keys": rng.normal(size=(b, t, hk, dk)),
        "values": rng.normal(size=(b, t, hk, dv)),
        "present": rng.integers(0, 2, b),
        "scale": np.array(dk**-0.5),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


cases = st.builds(
    make,
    seed=st.integers(0, 2**32 - 1),
    b=st.integers(1, 5),
    n=st.integers(1, 4),
    hk=st.integers(1, 3),
    group=st.integers(1, 3),
    t=st.integers(1, 6),
    dk=st.integers(1, 6),
    dv=st.integers(1, 6),
)
many = settings(max_examples=60, deadline=None)


def heads(x: Arrays, name: str) -> np.ndarray:
    """keys or values by query head, float64 [B, T, Hq, d]."""
    return np.repeat(x[name].astype(np.float64), x["q"].shape[1] // x[name].shape[2], axis=2)


def scores(x: Arrays) -> np.ndarray:
    """float64 [B, N, Hq, T]"""
    q = x["q"].astype(np.float64) * float(x["scale"])
    return np.asarray(np.einsum("nhd,bthd->bnht", q, heads(x, "keys")))


def forward(x: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """out [B, N, Hq, dv] and lse [B, N, Hq] in float64, the identity where not present."""
    s = scores(x)
    lse = np.logaddexp.reduce(s, axis=-1)
    out = np.einsum("bnht,bthd->bnhd", np.exp(s - lse[..., None]), heads(x, "values"))
    here = x["present"] > 0
    return out * here[:, None, None, None], np.where(here[:, None, None], lse, -np.inf)


def merge(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    lse = np.logaddexp.reduce([part[1] for part in parts], axis=0)
    known = np.where(np.isneginf(lse), 0.0, lse)
    return sum(np.exp(part[1] - known)[..., None] * part[0] for part in parts), lse


def loss(shards: list[Arrays], dout: np.ndarray) -> float:
    return float((merge([forward(x) for x in shards])[0] * dout).sum())


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@many
@given(cases)
def test_forward_equals_attention_in_float64(x: Arrays) -> None:
    out, lse = forward(x)
    actual = run("attention_batch_forward", x)
    close(actual["out"], out)
    close(actual["lse"], lse)
    absent = x["present"] == 0
    assert (actual["out"][absent] == 0).all()
    assert np.isneginf(actual["lse"][absent]).all()


def upstream(shards: list[Arrays], seed: int) -> Arrays:
    """What the aggregator sends down: the merged lse, dout and delta."""
    out, lse = merge([forward(x) for x in shards])
    dout = np.random.default_rng(seed).normal(size=out.shape)
    return {
        name: array.astype(np.float32)
        for name, array in {"lse": lse, "dout": dout, "delta": (dout * out).sum(-1)}.items()
    }


@many
@given(cases, st.integers(0, 2**32 - 1))
def test_backward_over_two_shards_is_the_gradient_of_the_whole(x: Arrays, seed: int) -> None:
    b, t, hk, _ = x["keys"].shape
    n, hq, dk = x["q"].shape
    other = make(seed, b, n, hk, hq // hk, t + 1, dk, x["values"].shape[3]) | {"q": x["q"]}
    shards = [x, other]
    down = upstream(shards, seed)
    grads = [run("attention_batch_backward", shard | down) for shard in shards]
    assert all(np.isfinite(g).all() for grad in grads for g in grad.values())

    # Directional derivatives of the float64 loss, by central differences.
    rng = np.random.default_rng(seed)
    wide = [{name: array.astype(np.float64) for name, array in shard.items()} for shard in shards]
    dout = down["dout"].astype(np.float64)
    for name, gradient in (("keys", "dkeys"), ("values", "dvalues"), ("q", "dq")):
        steps = [rng.normal(size=shard[name].shape) for shard in shards]
        steps = [steps[0], steps[0]] if name == "q" else steps
        eps = 1e-5
        ends = [
            loss([w | {name: w[name] + sign * eps * step} for w, step in zip(wide, steps, strict=True)], dout)
            for sign in (1, -1)
        ]
        expected = (ends[0] - ends[1]) / (2 * eps)
        actual = sum(float((g[gradient] * step).sum()) for g, step in zip(grads, steps, strict=True))
        size = sum(float(np.abs(g[gradient] * step).sum()) for g, step in zip(grads, steps, strict=True))
        assert abs(actual - expected) <= 1e-4 * (1 + size)


@many
@given(cases, st.integers(0, 2**32 - 1))
def test_backward_equals_the_formulas_in_float64(x: Arrays, seed: int) -> None:
    down = upstream([x], seed)
    lse, dout, delta = (down[name].astype(np.float64) for name in ("lse", "dout", "delta"))
    counts = ~np.isneginf(lse)
    p = np.exp(scores(x) - np.where(counts, lse, 0.0)[..., None]) * counts[..., None]
    ds = p * (np.einsum("bnhd,bthd->bnht", dout, heads(x, "values")) - delta[..., None])
    hk, group = x["keys"].shape[2], x["q"].shape[1] // x["keys"].shape[2]

    def per_key_head(of_query_heads: np.ndarray) -> np.ndarray:
        b, t, _, d = of_query_heads.shape
        return np.asarray(of_query_heads.reshape(b, t, hk, group, d).sum(3))

    scale = float(x["scale"])
    actual = run("attention_batch_backward", x | down)
    close(actual["dvalues"], per_key_head(np.einsum("bnht,bnhd->bthd", p, dout)), 1e-4)
    close(actual["dkeys"], per_key_head(scale * np.einsum("bnht,nhd->bthd", ds, x["q"])), 1e-4)
    close(actual["dq"], scale * np.einsum("bnht,bthd->nhd", ds, heads(x, "keys")), 1e-4)


@many
@given(cases, st.integers(0, 2**32 - 1), st.booleans())
def test_an_absent_sample_adds_exactly_nothing(x: Arrays, seed: int, elsewhere: bool) -> None:
    """Whether another node holds it (its lse is finite) or none does (-inf)."""
    down = upstream([x], seed)
    absent = x["present"] == 0
    if elsewhere:
        down["lse"] = np.where(np.isneginf(down["lse"]), np.float32(0.5), down["lse"])
    junk = {
        name: np.where(absent[:, None, None, None], np.float32(1e4), x[name]) for name in ("keys", "values")
    }
    actual = run("attention_batch_backward", x | junk | down)
    assert (actual["dkeys"][absent] == 0).all()
    assert (actual["dvalues"][absent] == 0).all()
    clean = run("attention_batch_backward", x | down)
    for name, gradient in actual.items():
        np.testing.assert_array_equal(gradient, clean[name])


@many
@given(cases, st.integers(0, 2**32 - 1))
def test_rows_whose_lse_says_nobody_saw_anything_add_exactly_nothing(x: Arrays, seed: int) -> None:
    x |= {"present": np.ones_like(x["present"])}
    down = upstream([x], seed)
    down["lse"] = np.full_like(down["lse"], -np.inf)
    for gradient in run("attention_batch_backward", x | down).values():
        assert (gradient == 0).all()
