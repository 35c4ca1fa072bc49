"""Odd jobs: whatever a field holds, the planner refuses it by an error of the catalogue, or can use it."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_job
import small_model
from house import House
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.training.federated import planner
from aggregator.training.federated.plan import asked_of
from aggregator.training.federated.samples import NodeSamples
from aggregator.training.fusion import planner as fusion_planner
from edge_attention.core.combine import from_config as combine_from
from edge_attention.core.errors import EdgeAttentionError, InvalidArgument
from edge_attention.core.messages.training import FederatedJob, FusionJob, StartRunRequest
from edge_attention.core.rounds.selection import select, share_of
from edge_attention.core.rounds.synchronous import RoundRules
from edge_attention.core.rounds.timings import Timings
from edge_attention.wire.services import START_RUN

FLOATS = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-320, 0.3, 1.0, 1.5, 1e9, 1e300])
INTS = st.sampled_from([-(2**63), -1, 0, 1, 3, 2**31, 2**63 - 1])
TEXTS = st.sampled_from(
    ["", "a", "é", "\x1b[31m", "nosuch", "x" * 10_000, "../..", "mean", "fedbuff", "adam", "sgd"]
)
NAMES = st.sampled_from(["lr", "fraction", "buffer", "f", "k", "nosuch", "", "momentum", "trim", "bits"])


def odd(kind, value):
    """Something of the same type as `value`, which the wire can carry and nobody would write."""
    if dataclasses.is_dataclass(value):
        return changed(value)
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return INTS
    if isinstance(value, float) or (value is None and "float" in kind):
        return FLOATS
    if isinstance(value, str):
        return TEXTS
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return st.lists(changed(value[0]), max_size=3).map(tuple)
    if isinstance(value, tuple):
        return st.lists(TEXTS, max_size=4).map(tuple)
    if isinstance(value, dict):
        values = FLOATS if "float" in kind else TEXTS
        return st.dictionaries(NAMES | TEXTS, values, max_size=3)
    return st.just(value)


@st.composite
def changed(draw, job):
    """`job` with some of its fields odd, however deep."""
    fields = dataclasses.fields(job)
    chosen = draw(st.lists(st.sampled_from([f.name for f in fields]), min_size=1, max_size=3, unique=True))
    kinds = {f.name: str(f.type) for f in fields}
    return replace(job, **{name: draw(odd(kinds[name], getattr(job, name))) for name in chosen})


with House() as _house:
    FEDERATED: FederatedJob = small_model.job(_house)
FUSION, FILES = small_job.job()
_folder = tempfile.TemporaryDirectory()
FOLDER = Path(_folder.name)


@settings(max_examples=400, deadline=None)
@given(changed(FEDERATED), st.integers(1, 9))
def test_a_federated_job_is_refused_by_name_or_can_be_counted_with(job, nodes):
    try:
        job = START_RUN.request.decode(START_RUN.request.encode(StartRunRequest(federated=job))).federated
        planner.check(job)
        strategy = planner.strategy_of(job)
        NodeSamples(job, strategy, "n", 100).check()
    except EdgeAttentionError:
        return
    there = [f"n{i}" for i in range(max(nodes, job.selection.minimum if job.selection.minimum < 50 else 0))]
    assert 0 <= asked_of(job, len(there)) <= len(there)
    RoundRules.of(job.selection, Timings(), job.patience_seconds or 60.0)
    if len(there) >= job.selection.minimum:
        assert 0 < len(select(there, job.selection, job.seed, 1)) <= len(there)
    time.localtime(time.time() + (job.patience_seconds or 0) + (job.selection.deadline_seconds or 0))
    combine_from(job.combine.name, **job.combine.options)
    jobs_due = [n for n in range(1, 5) if job.evaluate_every and n % job.evaluate_every == 0]
    assert all(n > 0 for n in jobs_due)


@settings(max_examples=60, deadline=None)
@given(changed(FUSION))
def test_a_fusion_job_is_refused_by_name_or_planned(job):
    try:
        job = START_RUN.request.decode(START_RUN.request.encode(StartRunRequest(job))).job
        assert isinstance(job, FusionJob)
        digests = {encoder.graph for encoder in job.encoders} | {job.head.graph}
        files = dict(zip(sorted(digests), map(str, range(len(digests))), strict=True))
        found = small_job.written({files[d]: FILES.get(d, b"no model") for d in digests}, FOLDER)
        planned = fusion_planner.plan(job, {digest: found[files[digest]] for digest in digests}, FOLDER)
    except EdgeAttentionError:
        return
    assert np.isfinite(planned.scale)
    assert planned.optimizer.init({"queries": job.queries}) is not None


@pytest.mark.parametrize("share", [math.nan, math.inf, -math.inf, -0.1, 1.1, 1e300])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(InvalidArgument, match="no share"):
        share_of(share, 3)


@pytest.mark.parametrize("digest", ["", "0" * 63, "G" * 64, "../../etc/passwd", "\x1b"])
def test_a_model_that_nobody_sent_is_said(digest):
    with pytest.raises(InvalidArgument, match=r"model\.graph"):
        planner.check(replace(FEDERATED, model=replace(FEDERATED.model, graph=digest)))


def test_initial_values_that_are_no_safetensors_are_said():
    for data in (b"", b"x" * 100, b"\x00" * 8, (2**62).to_bytes(8, "little")):
        with pytest.raises(InvalidArgument, match="no safetensors"):
            planner.given_values(data)


@pytest.mark.parametrize("value", [10**400, -(10**400), math.nan, "1", None])
def test_an_option_past_any_float_is_refused(value):
    with pytest.raises(InvalidArgument, match="lr"):
        planner.optimizer_from("sgd", lr=value)
