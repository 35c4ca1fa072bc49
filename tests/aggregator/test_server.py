"""How the aggregator is put together: where it may listen, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from pathlib import Path

import grpc.aio
import pytest
import small_job
from house import House

from aggregator.server import ServerSettings, running
from aggregator.store import folder
from aggregator.store.state import State
from edge_attention.core.addresses import require_loopback
from edge_attention.core.errors import FailedPrecondition, InvalidArgument, Unavailable
from edge_attention.core.messages.fleet import DescribeAggregatorRequest
from edge_attention.wire import services


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_loopback_is_where_it_listens(host):
    require_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org", ""])
def test_anything_else_needs_what_this_release_lacks(host):
    with pytest.raises(FailedPrecondition, match="TLS"):
        require_loopback(host)


def test_a_metrics_port_that_is_taken_is_one_clear_error():
    async def scenario(port):
        async with running(ServerSettings("127.0.0.1", 0, None, "127.0.0.1", port, 10.0, 60.0)):
            raise AssertionError("it must not start")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InvalidArgument, match="--metrics-port"):
            asyncio.run(scenario(taken.getsockname()[1]))


@pytest.mark.parametrize("asked", [0, None])
def test_the_aggregator_describes_itself_with_the_http_port_it_was_given(asked, capsys):
    method = services.DESCRIBE_AGGREGATOR

    async def scenario():
        settings = ServerSettings("127.0.0.1", 0, None, "127.0.0.1", asked, 10.0, 60.0)
        async with running(settings) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(method.path)
            return method.response.decode(await call(method.request.encode(DescribeAggregatorRequest())))

    told = asyncio.run(scenario()).http_port
    printed = re.search(r"metrics on 127.0.0.1:(\d+)", capsys.readouterr().out)
    assert told == (int(printed[1]) if printed else 0)
    assert bool(told) == (asked is not None)


def test_who_watches_a_run_hears_that_the_aggregator_stops():
    async def scenario(house):
        job, models = small_job.job(rounds=8)
        for model in models.values():
            house.state.put_blob(model)
        run = (await house.runs.start(job)).id
        events = house.runs.watch(run, 0)
        while not (await anext(events)).waiting:
            pass
        following = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        await house.runs.close()
        with pytest.raises(Unavailable, match="stopping"):
            await following

    with House() as house:
        asyncio.run(scenario(house))


def test_temporary_folders_of_killed_aggregators_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.tempfile, "tempdir", str(tmp_path))
    old = time.time() - 3600
    dead = tmp_path / "edge-aggregator-dead"
    (dead / "blobs").mkdir(parents=True)
    (dead / "lock").touch()
    os.utime(dead, (old, old))
    with State(None) as alive:
        assert not dead.exists()
        os.utime(alive.directory, (old, old))
        with State(None):
            assert Path(alive.directory).exists(), "a folder that is held is not removed"
