"""Contexts beyond the descriptors that a process may have: a node keeps none for what it stores."""

from __future__ import annotations

import asyncio
import os
import resource

import numpy as np
import pytest
import reference
from fleets import Fleet

from edge_attention import AsyncClient

CONTEXTS, DESCRIPTORS, AT_ONCE = 3_000, 1_024, 64
DIM = 4
TOKENS = np.random.default_rng(5).standard_normal((CONTEXTS, 2, 2, 1, DIM)).astype(np.float32)
"""Of each context keys and values of two tokens."""
QUERY = np.random.default_rng(6).standard_normal((1, 1, DIM)).astype(np.float32)
SHAPE = {"query_heads": 1, "key_heads": 1, "key_dim": DIM, "value_dim": DIM}


def limited(fleet, *flags):
    """A node that may have 1,024 descriptors from its registration on, and no more."""
    node = fleet.start_node("a", "--threads", "1", "--memory-limit", "1GB", *flags)
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    return node


async def each(work):
    """`work(number)` of every context, some at a time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number):
        async with gate:
            return await work(number)

    return await asyncio.gather(*map(one, range(CONTEXTS)))


async def ask_all(address):
    async with AsyncClient(address) as client:
        contexts = await each(lambda number: client.context(f"c{number}"))
        return await each(lambda number: contexts[number].attend(QUERY))


async def fill(address):
    async with AsyncClient(address) as client:

        async def one(number):
            context = await client.create_context(f"c{number}", **SHAPE)
            await context.append(*TOKENS[number])

        await each(one)


def check(answers):
    for number, answer in enumerate(answers):
        assert answer.exact, (number, answer.missing)
        keys, values = TOKENS[number]
        out, _ = reference.attend(reference.scores(QUERY, keys, DIM**-0.5), values, None)
        np.testing.assert_allclose(answer.out, out, atol=1e-5)


@pytest.mark.may_hold(
    "a node registers 6,000 sequences in one message, which each side reads in one step, and Python collects "
    "what came with 3,000 contexts: up to 40 ms of either on a busy machine"
)
@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "on disk"])
def test_three_thousand_contexts_answer_with_a_thousand_descriptors(tmp_path, kept):
    flags = ("--store", str(tmp_path / "store")) if kept else ()
    with Fleet(tmp_path) as fleet:
        node = limited(fleet, *flags)
        before = len(os.listdir(f"/proc/{node.pid}/fd"))
        asyncio.run(fill(fleet.address))
        check(asyncio.run(ask_all(fleet.address)))
        assert len(os.listdir(f"/proc/{node.pid}/fd")) < before + 100
        if kept:
            fleet.kill("a")
            limited(fleet, *flags)
            check(asyncio.run(ask_all(fleet.address)))
