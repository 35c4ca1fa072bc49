"""Describing the aggregator, and probing the way to a node."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from house import House

from aggregator.checkup.checkup import BYTES_A_MINUTE, MAX_BYTES, MAX_ROUND_TRIPS, Allowance, Checkup
from aggregator.trust.acting import context_of
from edge_attention.core.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    InvalidTensor,
    NotFound,
    OutOfMemory,
    ResourceExhausted,
    Unavailable,
)
from edge_attention.core.messages.fleet import DescribeAggregatorRequest, ProbeNodeRequest
from edge_attention.core.messages.link import PROTOCOL


def checkup(house, **options):
    return Checkup(house.membership, house.trips, **options)


def probe(request, **node):
    """What a probe of a fleet of one node comes to, and the node's programs."""

    async def scenario(house):
        box = house.node("a", **node)
        found = await checkup(house).probe(request, None)
        assert box.node.store.used == 0, "a probe leaves nothing behind"
        assert not house.bulk._lent, "nor does it on the aggregator"
        return found, box.programs

    with House() as house:
        return asyncio.run(scenario(house))


def test_it_says_who_it_is():
    async def scenario(house):
        now = [100.0]
        made = checkup(house, http_port=lambda: 9464, clock=lambda: now[0])
        now[0] = 142.0
        return await made.describe(DescribeAggregatorRequest(), None)

    with House() as house:
        about = asyncio.run(scenario(house))
    assert (about.uptime_seconds, about.lease_seconds, about.heartbeat_seconds) == (42.0, 10.0, 3.0)
    assert (about.http_port, about.protocol) == (9464, PROTOCOL)
    assert about.box.time_seconds > 1e9
    assert "grpcio" in about.box.versions


def test_round_trips_alone():
    found, programs = probe(ProbeNodeRequest("a", 3))
    assert len(found.round_trip_seconds) == len(found.task_seconds) == len(programs) == 3
    assert all(
        0 < task <= trip for task, trip in zip(found.task_seconds, found.round_trip_seconds, strict=True)
    )
    assert (found.down_seconds, found.up_seconds, found.bytes) == (None, None, 0)


@pytest.mark.parametrize("size", [1, 100_000, 3 * 1024 * 1024])
def test_bytes_there_and_back(size):
    found, programs = probe(ProbeNodeRequest("a", 1, size))
    assert found.bytes == size
    assert found.down_seconds > 0
    assert found.up_seconds > 0
    assert len(programs) == 2
    sent = programs[1].tensors.get("task/bytes")
    bulk = programs[1].bulk_tensors
    assert (len(sent) if sent is not None else bulk[0].size) == size, "inline or in bulk, as tensors go"


def test_without_a_number_there_are_ten():
    found, _ = probe(ProbeNodeRequest("a"))
    assert len(found.round_trip_seconds) == 10


@pytest.mark.parametrize(
    "request_",
    [
        ProbeNodeRequest("a", MAX_ROUND_TRIPS + 1),
        ProbeNodeRequest("a", 1, MAX_BYTES + 1),
        ProbeNodeRequest("a", 1, 0, 0.0),
        ProbeNodeRequest("a", 1, 0, float("nan")),
        ProbeNodeRequest("a", 1, 0, 1e9),
    ],
)
def test_a_probe_is_bounded(request_):
    with pytest.raises(InvalidArgument):
        probe(request_)


def test_a_node_that_is_not_there():
    with pytest.raises(NotFound, match="nodes seen: a"):
        probe(ProbeNodeRequest("b"))

    async def scenario(house):
        house.node("a").lose()
        await checkup(house).probe(ProbeNodeRequest("a"), None)

    with House() as house, pytest.raises(FailedPrecondition, match="lost"):
        asyncio.run(scenario(house))


def test_a_node_that_does_not_answer():
    with pytest.raises(DeadlineExceeded, match="node 'a' has not answered in time"):
        probe(ProbeNodeRequest("a", 1, 0, 0.05), mute=True)


def test_a_node_that_leaves_meanwhile():
    async def scenario(house):
        box = house.node("a", mute=True)
        asking = asyncio.create_task(checkup(house).probe(ProbeNodeRequest("a", 1, 0, 20.0), None))
        await asyncio.sleep(0)
        box.lose()
        await asking

    with House() as house, pytest.raises(Unavailable, match="lost"):
        asyncio.run(scenario(house))


def test_a_node_without_room():
    with pytest.raises(OutOfMemory):
        probe(ProbeNodeRequest("a", 1, 200_000), limit=100_000)


def test_bytes_that_come_back_changed():
    def tamper(contribution):
        data = contribution.tensors.get("bytes")
        if data is None or len(data) < 2:
            return contribution
        changed = np.array(data)
        changed[0] ^= 1
        return replace(contribution, tensors={"bytes": changed})

    with pytest.raises(DataLoss, match="other bytes"):
        probe(ProbeNodeRequest("a", 1, 1000), tamper=tamper)


def test_a_node_that_answers_at_once_what_is_asked_in_two_parts():
    def tamper(contribution):
        data = contribution.tensors.get("bytes")
        if data is not None and len(data) < 2:
            return None
        return replace(contribution, number=0)

    with pytest.raises(InvalidTensor, match="1 parts"):
        probe(ProbeNodeRequest("a", 1, 1000), tamper=tamper)


def test_one_probe_at_a_time_and_the_others_wait():
    async def scenario(house):
        made = checkup(house)
        box = house.node("a", mute=True)
        house.node("b")
        first = asyncio.create_task(made.probe(ProbeNodeRequest("a", 1, 0, 20.0), None))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="another probe"):
            await made.probe(ProbeNodeRequest("b", 1, 0, 0.05), None)
        second = asyncio.create_task(made.probe(ProbeNodeRequest("b", 1, 0, 20.0), None))
        await asyncio.sleep(0)
        assert not second.done()
        box.lose()
        with pytest.raises(Unavailable, match="lost"):
            await first
        return await second

    with House() as house:
        assert len(asyncio.run(scenario(house)).round_trip_seconds) == 1


def test_probes_cannot_fill_a_line():
    async def scenario(house):
        now = [0.0]
        made = checkup(house, clock=lambda: now[0])
        house.node("a", mute=True)
        made._allowance.take(BYTES_A_MINUTE - 1000, 0.0)
        with pytest.raises(ResourceExhausted, match="try again in"):
            await made.probe(ProbeNodeRequest("a", 1, 1000, 1.0), None)
        house.node("b")
        return await made.probe(ProbeNodeRequest("b", 1, 0, 1.0), None)

    with House() as house:
        assert asyncio.run(scenario(house)).bytes == 0


def test_probes_of_one_caller_leave_turns_and_bytes_to_others():
    async def scenario(house):
        house.node("a")
        now = [0.0]
        made, order = checkup(house, clock=lambda: now[0]), []

        async def ask(caller, size=0):
            await made.probe(ProbeNodeRequest("a", 1, size), None)
            order.append(caller)

        def task(caller, size=0):
            return asyncio.create_task(ask(caller, size), context=context_of(f"user/{caller}"))

        tasks = [task("ana") for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.gather(*tasks, task("ben"))
        assert order.index("ben") <= 2
        made._of["user/ana"].take(BYTES_A_MINUTE // 2, now[0])
        made._allowance.take(BYTES_A_MINUTE // 2, now[0])
        with pytest.raises(ResourceExhausted, match="bytes a minute"):
            await task("ana", 1000)
        await task("ben", 1000)
        left = made._of["user/ben"].left
        made._allowance.take(made._allowance.left, now[0])
        with pytest.raises(ResourceExhausted, match="bytes a minute"):
            await task("ben", 1000)
        assert made._of["user/ben"].left == left, "nothing was sent of it"

    with House() as house:
        asyncio.run(scenario(house))


def test_an_allowance_grows_back_and_not_beyond_a_minutes():
    allowance = Allowance(600, 600.0, 0.0)
    allowance.take(600, 0.0)
    with pytest.raises(ResourceExhausted, match="in 10 s"):
        allowance.take(100, 0.0)
    allowance.take(100, 10.0)
    allowance.take(600, 1e6)
    with pytest.raises(ResourceExhausted):
        allowance.take(1, 1e6)
