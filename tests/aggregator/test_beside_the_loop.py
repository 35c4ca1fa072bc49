"""What hashes, reads whole files or waits for the disk is done by other threads than the event loop's."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import test_fusion
from house import House

from aggregator.bounds.budget import Budgets
from aggregator.training.service import TrainingApi
from edge_attention.core.errors import AlreadyExists, NotFound
from edge_attention.core.messages.attention import ContextSpec
from edge_attention.core.messages.training import GetParametersRequest

BLOCKING = (
    "put_segment", "put_append", "add_version", "add_record", "replace_record", "put_run", "put_blob",
    "get_blob", "blob_path", "take_numbers",
)  # fmt: skip


@pytest.fixture
def by_loop(monkeypatch):
    """Watches a state: the names of what the calling thread, the loop's, has called itself."""
    found = []

    def watch(state):
        loop = threading.get_ident()

        def watched(name, real):
            def call(*given, **options):
                if threading.get_ident() == loop:
                    found.append(name)
                return real(*given, **options)

            return call

        for name in BLOCKING:
            monkeypatch.setattr(state, name, watched(name, getattr(state, name)))
        return found

    return watch


def test_an_append_is_committed_by_a_thread(by_loop):
    async def scenario(house):
        house.node("a")
        house.contexts.create(ContextSpec("c", 4, 2, 8, 6))
        found = by_loop(house.state)
        keys, values = np.ones((9, 2, 8), np.float32), np.ones((9, 2, 6), np.float32)
        response = await house.appender.append("c", "", keys, values, "once")
        assert response.tokens == range(9)
        assert (await house.appender.append("c", "", keys, values, "once")).tokens == range(9)
        with pytest.raises(NotFound, match="was not made, and will not be"):
            await house.appender.outcome("c", "never")
        with pytest.raises(AlreadyExists, match="append under another id"):
            await house.appender.append("c", "", keys, values, "never")
        return found

    with House() as house:
        assert asyncio.run(scenario(house)) == []


def test_an_append_cancelled_while_it_is_committed_is_made(monkeypatch):
    """It is in the state: the nodes must not be told to forget its tokens."""

    async def scenario(house):
        box = house.node("a")
        context = house.contexts.create(ContextSpec("c", 4, 2, 8, 6))
        loop, committing, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        put = house.state.put_segment

        def slow(*given):
            loop.call_soon_threadsafe(committing.set)
            assert go_on.wait(60)
            put(*given)

        monkeypatch.setattr(house.state, "put_segment", slow)
        keys, values = np.ones((9, 2, 8), np.float32), np.ones((9, 2, 6), np.float32)
        append = asyncio.create_task(house.appender.append("c", "", keys, values))
        await committing.wait()
        append.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await append
        assert context.tokens == 9
        assert [s.id for s in house.state.list_segments(context.id)] == [context.segments[0].id]
        await asyncio.sleep(0.01)
        assert box.node.store.sequences()[context.keys(context.segments[0].id)] == 9

    with House() as house:
        asyncio.run(scenario(house))


def test_a_run_begins_trains_and_is_fetched_by_threads(tmp_path, by_loop):
    async def scenario(house):
        run, _ = await test_fusion.started(house, rounds=3)
        found = by_loop(house.state)
        again = await house.runs.start(house.runs._active[run].job)
        for id in (run, again.id):
            rounds, info = await test_fusion.ended(house, id)
            assert len(rounds) == 3, info.detail
        house.parameters._verified.clear()  # as after a restart: the file is verified anew
        read = house.parameters._file
        by = []
        house.parameters._file = lambda *given: by.append(threading.get_ident()) or read(*given)
        call = SimpleNamespace(peer=lambda: "me")
        chunks = TrainingApi(house.runs, Budgets()).parameters(GetParametersRequest(run, None), call)
        data = b"".join([chunk.data async for chunk in chunks])
        assert data == house.parameters.export(run)
        assert threading.get_ident() not in by[:-1]
        # The nodes of this house fetch their graphs in its own loop.
        return [name for name in found if name != "get_blob"]

    with House(tmp_path, patience=120) as house:
        assert asyncio.run(scenario(house)) == []
