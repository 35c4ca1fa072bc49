"""Ensembles: their files, and how members' outputs meet, against float64 written plainly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.ensembles import meeting_outputs
from edge_attention.core.ensembles.ensemble import Absent, EnsembleMember, EnsembleSpec, How
from edge_attention.core.ensembles.ensemble_file import MAX_MEMBERS, read_ensemble
from edge_attention.core.ensembles.meeting_outputs import attended, attention_of, met
from edge_attention.core.errors import InvalidArgument, InvalidTensor

FILE = """
how = "concatenate"
output = "both"
axis = 1
absent = "zeros"
seconds = 0.5
needs = ["camera"]

[[member]]
name = "camera"
model = "vit"
inputs = { pixels = "image" }
output = "pooled"

[[member]]
model = "whisper"
version = "3"
weight = 2
"""


def test_a_file_says_what_an_ensemble_is():
    found = read_ensemble(FILE)
    assert (found.how, found.output, found.axis, found.absent, found.seconds) == (
        How.CONCATENATE,
        "both",
        1,
        Absent.ZEROS,
        0.5,
    )
    assert found.needed == {"camera"}
    assert found.members == (
        EnsembleMember("camera", "vit", inputs={"pixels": "image"}, output="pooled"),
        EnsembleMember("whisper", "whisper", version="3", weight=2.0),
    )
    assert read_ensemble(FILE.replace('absent = "zeros"', "")).needed == {"camera", "whisper"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has members"),
        ("how = [", "no TOML"),
        ("x = 1\n" + FILE, "has no 'x'"),
        (FILE.replace('"concatenate"', '"sum"'), "mean, concatenate, attention"),
        (FILE.replace('"zeros"', '"nan"'), "refuse, zeros"),
        (FILE.replace("0.5", "0"), "above 0"),
        (FILE.replace("0.5", "nan"), "seconds is nan"),
        (FILE.replace("axis = 1", "axis = true"), "axis is a bool"),
        (FILE.replace('["camera"]', '["radar"]'), "needs names 'radar'"),
        (FILE.replace('name = "camera"', 'name = "whisper"'), "two members"),
        (FILE.replace('model = "vit"', ""), "member 1: model must be a name"),
        (FILE.replace('model = "vit"', 'model = "a\\u0007"'), "member 1: model must be a name"),
        (FILE.replace("weight = 2", "weight = -1"), "member 2: weight"),
        (FILE.replace("weight = 2", "weight = 1" + 400 * "0"), "more than 64 bits"),
        (FILE.replace("weight = 2", "weights = 1"), "member 2 has no 'weights'"),
        (FILE.replace('output = "both"', 'output = ""'), "output must be a name"),
        ('member = ["vit"]', "member 1 is no table"),
        ('how = "mean"\n[[member]]\nmodel = "m"\nweight = 0', "add up to nothing"),
        ('how = "attention"\n[[member]]\nmodel = "m"', "needs queries"),
        ('how = "attention"\nqueries = [[1, 2]]\n[[member]]\nmodel = "m"', "queries, heads, dim"),
        ('how = "attention"\nqueries = [[["a"]]]\n[[member]]\nmodel = "m"', "queries, heads, dim"),
        ('[[member]]\nmodel = "m"\n' * (MAX_MEMBERS + 1), "MAX_MEMBERS"),
        ("#" * (1 << 20) + "\n" + FILE, "ENSEMBLE_BYTES"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused(text, says):
    with pytest.raises(InvalidArgument, match=says):
        read_ensemble(text)


def members(*weights):
    return tuple(EnsembleMember(f"m{n}", "m", weight=weight) for n, weight in enumerate(weights))


def test_a_mean_is_weighted_and_of_those_that_answered():
    spec = EnsembleSpec(members(1.0, 3.0, 4.0), How.MEAN)
    one, two = np.float32([[1, 2]]), np.float32([[5, 6]])
    np.testing.assert_array_equal(met(spec, {"m0": one, "m1": two}, {}), [[4, 5]])
    assert met(spec, {"m1": two}, {}).dtype == np.float32
    with pytest.raises(InvalidTensor, match=r"'m0'.*'m1'"):
        met(spec, {"m0": one, "m1": two.T}, {})


def test_side_by_side_zeros_stand_for_whoever_is_absent():
    spec = EnsembleSpec(members(1, 1, 1), How.CONCATENATE, axis=1, absent=Absent.ZEROS)
    one, two = np.float32([[1, 2]]), np.float32([[5]])
    found = met(spec, {"m2": two, "m0": one}, {"m1": (1, 2)})
    np.testing.assert_array_equal(found, [[1, 2, 0, 0, 5]])
    with pytest.raises(InvalidTensor, match="do not go side by side"):
        met(spec, {"m0": one, "m1": np.zeros((2, 2), np.float32), "m2": two}, {})


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 1000))
def test_attention_over_members_is_attention_over_all_their_keys(tokens, seed):
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal((2, 3, 2, 4)).astype(np.float32)
    keys = [rng.standard_normal((2, n, 2, 4)).astype(np.float32) for n in tokens]
    values = [rng.standard_normal((2, n, 2, 5)).astype(np.float32) for n in tokens]
    partials = [attention_of(queries, k, v, None, "m") for k, v in zip(keys, values, strict=True)]
    out, shares = attended(partials)
    assert shares.shape == (2, len(tokens))
    if not sum(tokens):
        assert not out.any()
        return
    scores = np.einsum("bqhd,bthd->bqht", queries.astype(np.float64), np.concatenate(keys, 1)) / 2
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    wanted = np.einsum("bqht,bthd->bqhd", weights, np.concatenate(values, 1))
    np.testing.assert_allclose(out, wanted, atol=1e-5)
    at = 0
    for n, share in zip(tokens, shares.T, strict=True):
        np.testing.assert_allclose(share, weights[..., at : at + n].sum(-1).mean((1, 2)), atol=1e-5)
        at += n


def test_many_queries_are_done_a_block_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((2, 7, 2, 4)).astype(np.float32)
    keys, values = (rng.standard_normal((2, 5, 2, 4)).astype(np.float32) for _ in range(2))
    whole = attention_of(queries, keys, values, None, "m")
    monkeypatch.setattr(meeting_outputs, "SCORES_BYTES", 4 * 2 * 2 * 5 * 3)  # of three queries
    found = attention_of(queries, keys, values, None, "m")
    np.testing.assert_allclose(found.out, whole.out, atol=1e-6)
    np.testing.assert_allclose(found.lse, whole.lse, atol=1e-6)


def test_keys_that_do_not_fit_the_queries_name_the_member():
    queries, keys = np.zeros((1, 2, 2, 4), np.float32), np.zeros((1, 3, 2, 5), np.float32)
    with pytest.raises(InvalidTensor, match="member 'camera' answers keys"):
        attention_of(queries, keys, keys, None, "member 'camera'")
    fits = attention_of(queries, keys[..., :4], keys, None, "a")
    other = attention_of(queries, keys[..., :4], keys[..., :4], None, "b")
    with pytest.raises(InvalidTensor, match="the sizes 5, 4"):
        attended([fits, other])
