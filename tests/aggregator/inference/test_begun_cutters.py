"""What cuts a deployment for other shapes begins when it is asked nothing, and not of one that is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from aggregator.inference import shape_readiness
from aggregator.inference.life import Life
from aggregator.inference.shape_readiness import ShapeReadiness
from edge_attention.core.messages.inference import ModelTensor


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """Beginning it for a deployment, and those begun; the quiet that it waits for is the test's to give."""
    readiness = ShapeReadiness.__new__(ShapeReadiness)
    deployments, waits = [], []

    async def begin(deployment, model):
        deployments.append(deployment)

    async def sleep(seconds):
        waits.pop(0)()

    readiness._cutters = SimpleNamespace(begin=begin)
    monkeypatch.setattr(shape_readiness.asyncio, "sleep", sleep)

    def run(sizes, *during):
        life = Life("m")
        life.recalled(0.0, "")
        life.holders((), 0.0)
        waits[:] = [lambda one=one: one(life) for one in during]
        deployed = SimpleNamespace(
            id="d",
            life=life,
            folder=SimpleNamespace(model=Path(tmp_path)),
            planned=SimpleNamespace(whole=False, inputs=(ModelTensor("x", "float32", sizes),)),
        )
        asyncio.run(readiness.begin(deployed))
        return deployments, len(waits)

    return run


def asked(life):
    life.begin()
    life.end(True)


def test_after_a_time_without_a_request(begun):
    def nothing(life):
        pass

    def ended(life):
        life.end(True)

    assert begun(("rows",), asked, Life.begin, ended, nothing, asked) == (["d"], 1)


def test_in_the_end_also_of_one_that_is_asked_all_the_time(begun, monkeypatch):
    monkeypatch.setattr(shape_readiness, "BEGIN_LATEST", 0.0)
    assert begun(("rows",), asked) == (["d"], 1)


def test_not_of_one_that_is_gone_nor_where_there_are_no_other_shapes(begun):
    assert begun(("rows",), lambda life: life.leave(0.0, "undeployed")) == ([], 0)
    assert begun(("4",), asked) == ([], 1)
