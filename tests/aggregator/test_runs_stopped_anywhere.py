"""Runs that are stopped again and again, wherever they are, and go on: the bits of one that never was."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import small_split
import test_federated
from house import House

from edge_attention.core.messages.training import EncodingSpec, PushSpec, RunState

STOPS = 8


async def stopped(house, run, seed):
    """Stop the run after some turns of the loop, more from time to time, and have it go on, until it ends."""
    random, stops = np.random.default_rng(seed), 0
    for most in np.geomspace(2, 600, STOPS).astype(int):
        for _ in range(int(random.integers(1, most + 1))):
            await asyncio.sleep(0)
        if (await house.runs.stop(run)).state is RunState.STOPPED:
            stops += 1
            assert (await house.runs.resume_run(run)).state is RunState.RUNNING
    _, info = await test_federated.ended(house, run)
    assert info.state is RunState.FINISHED, info.detail
    assert stops > 2, "or the test shows nothing"


def bits(start, file, seed=None):
    """The last parameters. `seed`: of the stops; None: there are none."""

    async def scenario(house):
        run = await start(house)
        if seed is None:
            await test_federated.ended(house, run)
        else:
            await stopped(house, run, seed)
        return file(house, run)

    with House() as house:
        return asyncio.run(scenario(house))


@pytest.mark.parametrize("split", ["layers", "heads"])
def test_through_the_split(split):
    """Pieces keep what they made on nodes, which add it: of a step that was dropped nothing is added."""

    async def start(house):
        return await small_split.started(house, split=split, rounds=6, micro_batches=4)

    def file(house, run):
        return b"".join(house.runs.parameters(run, None).pieces)[-2000:]

    assert bits(start, file, 1) == bits(start, file)


@pytest.mark.parametrize("push", [False, True])
def test_federated_with_residuals(push):
    """Nodes keep what an update lost, and with `push` their parameters, from round to round."""

    async def start(house):
        run, _ = await test_federated.started(
            house, rounds=8, update=EncodingSpec("int8"), push=PushSpec(push, EncodingSpec("int8"))
        )
        return run

    def file(house, run):
        return [array.tobytes() for array in test_federated.parameters(house, run)]

    assert bits(start, file, 2) == bits(start, file)
