"""What hashes, reads whole files or waits for the disk is done by other threads than the event loop's."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import test_fusion
from house import House, job_of, until

from aggregator.attention.service import AttentionApi
from aggregator.bounds.budget import Budgets
from aggregator.training.service import TrainingApi
from edge_attention.core.errors import AlreadyExists, DiskFull, FailedPrecondition, NotFound
from edge_attention.core.messages.attention import ContextSpec, CreateContextRequest, DropContextRequest
from edge_attention.core.messages.training import GetParametersRequest, RunState

SPEC = ContextSpec("c", 4, 2, 8, 6)
BLOCKING = (
    "put_context", "delete_context", "put_segment", "put_append", "get_append", "add_version", "add_record",
    "record", "records", "replace_record", "put_run", "get_run", "run_ids", "each_run",
    "latest_version", "set_run_status", "put_blob", "get_blob", "blob_path", "take_numbers",
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
        await house.contexts.create(SPEC)
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
        context = await house.contexts.create(SPEC)
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
        await append  # it counts: the same call, made again, has its answer
        assert context.tokens == 9
        assert [s.id for s in house.state.list_segments(context.id)] == [context.segments[0].id]
        await asyncio.sleep(0.01)
        assert box.node.store.sequences()[context.keys(context.segments[0].id)] == 9

    with House() as house:
        asyncio.run(scenario(house))


class Held:
    """A method of the state that waits in its thread until it may go on."""

    def __init__(self, monkeypatch, state, name):
        self._loop = asyncio.get_running_loop()
        self.real, self.called, self._may = getattr(state, name), asyncio.Event(), threading.Event()
        monkeypatch.setattr(state, name, self._call)

    def _call(self, *given):
        self._loop.call_soon_threadsafe(self.called.set)
        assert self._may.wait(60)
        return self.real(*given)

    def go_on(self):
        self._may.set()


def test_a_context_is_made_and_dropped_by_threads_and_its_name_is_taken_meanwhile(by_loop, monkeypatch):
    async def scenario(house):
        found = by_loop(house.state)
        held = Held(monkeypatch, house.state, "put_context")
        first = asyncio.create_task(house.contexts.create(SPEC))
        await held.called.wait()
        with pytest.raises(AlreadyExists, match="already"):
            await house.contexts.create(SPEC)
        with pytest.raises(NotFound):  # it is not there before it is durable
            house.contexts.get("c")
        held.go_on()
        context = await first
        held = Held(monkeypatch, house.state, "delete_context")
        drop = asyncio.create_task(house.contexts.drop(context))
        await held.called.wait()
        assert house.contexts.get("c") is context
        held.go_on()
        await drop
        with pytest.raises(NotFound, match="was dropped meanwhile"):
            await house.contexts.drop(context)
        assert (await house.contexts.create(SPEC)).id != context.id
        return found

    with House() as house:
        assert asyncio.run(scenario(house)) == []


def test_a_context_that_cannot_be_written_down_leaves_its_name_free(monkeypatch):
    async def scenario(house):
        def full(*given):
            raise DiskFull("no room")

        with monkeypatch.context() as patched:
            patched.setattr(house.state, "put_context", full)
            with pytest.raises(DiskFull):
                await house.contexts.create(SPEC)
        context = await house.contexts.create(SPEC)
        with monkeypatch.context() as patched:
            patched.setattr(house.state, "delete_context", full)
            with pytest.raises(DiskFull):
                await house.contexts.drop(context)
        assert house.contexts.get("c") is context

    with House() as house:
        asyncio.run(scenario(house))


def test_who_goes_away_meanwhile_leaves_a_context_made_or_dropped_and_its_nodes_told(monkeypatch):
    async def scenario(house):
        box = house.node("a")
        api = AttentionApi(house.trips, house.bulk, house.contexts, house.appender, house.attender)
        call = SimpleNamespace(peer=lambda: "me")
        held = Held(monkeypatch, house.state, "put_context")
        create = asyncio.create_task(api.create_context(CreateContextRequest(SPEC), call))
        await held.called.wait()
        create.cancel()
        await asyncio.sleep(0)
        held.go_on()
        await create  # it counts: the same call, made again, has its answer
        keys, values = np.ones((9, 2, 8), np.float32), np.ones((9, 2, 6), np.float32)
        await house.appender.append("c", "", keys, values)
        assert box.node.store.sequences()
        held = Held(monkeypatch, house.state, "delete_context")
        drop = asyncio.create_task(api.drop_context(DropContextRequest("c"), call))
        await held.called.wait()
        drop.cancel()
        await asyncio.sleep(0)
        held.go_on()
        await drop  # it counts: the same call, made again, has its answer
        assert house.contexts.list() == () == tuple(house.state.list_contexts())
        await until(lambda: not box.node.store.sequences())

    with House() as house:
        asyncio.run(asyncio.wait_for(scenario(house), 180))


def test_a_run_s_end_is_written_down_by_a_thread_before_anybody_hears_of_it(tmp_path, by_loop, monkeypatch):
    async def scenario(house):
        run, _ = await test_fusion.started(house, rounds=3)
        found = by_loop(house.state)
        held = Held(monkeypatch, house.state, "set_run_status")
        await held.called.wait()
        active = house.runs._active[run]
        assert house.state.get_run(run).status == active.info.state.value == "running"
        found.clear()  # that was this test
        stop = asyncio.create_task(house.runs.stop(run))
        await asyncio.sleep(0)
        held.go_on()
        assert (await stop).state is RunState.FINISHED  # it had come to its end
        with pytest.raises(FailedPrecondition, match="finished"):
            await house.runs.resume_run(run)
        assert found == []
        return house.state.get_run(run).status

    with House(tmp_path) as house:
        assert asyncio.run(scenario(house)) == "finished"


def test_a_run_that_comes_to_its_end_while_it_is_stopped_has_finished(tmp_path, monkeypatch):
    async def scenario(house):
        run, _ = await test_fusion.started(house, rounds=3)
        told, may = [], threading.Event()
        real = house.state.set_run_status

        def written(id, status, detail=""):
            told.append(status)
            assert may.wait(60)
            real(id, status, detail)

        monkeypatch.setattr(house.state, "set_run_status", written)
        stop = asyncio.create_task(house.runs.stop(run))
        await until(lambda: house.runs._active[run].ending)
        stop.cancel()  # whoever stopped it has gone
        await asyncio.sleep(0)
        may.set()
        await stop  # it counts: the same call, made again, has its answer
        info = house.runs.describe(run)
        assert info.state is RunState.FINISHED
        assert told == ["stopped", "finished"]
        return house.state.get_run(run).status

    with House(tmp_path) as house:
        assert asyncio.run(asyncio.wait_for(scenario(house), 120)) == "finished"


def test_a_run_begins_trains_and_is_fetched_by_threads(tmp_path, by_loop):
    async def scenario(house):
        run, _ = await test_fusion.started(house, rounds=3)
        job = job_of(house, run)
        found = by_loop(house.state)
        again = await house.runs.start(job)
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
        assert data == await asyncio.to_thread(house.parameters.export, run)
        assert threading.get_ident() not in by
        # The nodes of this house fetch their graphs in its own loop.
        return [name for name in found if name != "get_blob"]

    with House(tmp_path) as house:
        assert asyncio.run(scenario(house)) == []
