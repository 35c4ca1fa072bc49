"""Who holds connections of the HTTP port and says nothing over them."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from ports import run

from aggregator.http import door

HALF = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
WHOLE = HALF + b"\r\n"


async def ended(reader):
    """Wait for the other side to close."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(180):
            await reader.read()


async def all_of(reader):
    """All that comes until the other side closes."""
    async with asyncio.timeout(180):
        return await reader.read()


async def opened(port, data=b""):
    reader, writer = await asyncio.open_connection(*port.where)
    writer.write(data)
    return reader, writer


def test_an_address_has_so_many_connections_and_others_theirs(monkeypatch, caplog):
    monkeypatch.setattr(door, "ADDRESS_CONNECTIONS", 3)

    async def scenario(port):
        held = [await opened(port, HALF) for _ in range(3)]
        for data in (
            b"",
            WHOLE,
            b"POST /v2/repository/index HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n" + bytes(9000),
        ):
            reader, writer = await opened(port, data)
            answer = await all_of(reader)
            assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
            assert b"\r\nRetry-After: 5\r\n" in answer
            assert answer.endswith(
                b"\r\n\r\nyour address has as many connections to this port as one may have; close some of "
                b"them, or come again in 5 s\n"
            )
            writer.close()
        other = await asyncio.open_connection("127.0.0.1", port.where[1], local_addr=("127.0.0.2", 0))
        other[1].write(WHOLE)
        assert b" 200 " in await other[0].readline()
        held[0][1].close()
        await held[0][1].wait_closed()
        for _ in range(2):  # over one connection: the place that one left is taken once
            async with asyncio.timeout(180):
                while True:
                    if (await port.get("/healthz")).status == 200:
                        break
        for _, writer in (*held[1:], other):
            writer.close()

    run(scenario, host="127.0.0.1")
    told = [record.getMessage() for record in caplog.records if "turned one" in record.getMessage()]
    assert told == [
        "the HTTP port has 3 connections, 3 of them from 127.0.0.1 (3 without a token), and turned one of "
        "those away; its limits are 512, 3 and 64"
    ], "once"


def test_there_is_room_for_so_many_in_all(monkeypatch):
    monkeypatch.setattr(door, "CONNECTIONS", 2)

    async def scenario(port):
        held = [await opened(port, HALF) for _ in range(2)]
        reader, writer = await opened(port, WHOLE)
        assert (await all_of(reader)).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        for one in (writer, *(writer for _, writer in held)):
            one.close()

    run(scenario)


def test_all_of_many_that_are_too_many_are_told():

    async def asked(port):
        reader, writer = await opened(port, WHOLE)
        answer = await all_of(reader)
        writer.close()
        return answer[:12]

    async def scenario(port):
        held = await asyncio.gather(*(opened(port, HALF) for _ in range(door.ADDRESS_STRANGERS)))
        answers = await asyncio.gather(*(asked(port) for _ in range(door.TURNED)))
        assert answers == [b"HTTP/1.1 429"] * door.TURNED
        for _, writer in held:
            writer.close()

    run(scenario)


@pytest.mark.parametrize("data", [b"", HALF, b"\x16\x03\x01"])
def test_who_makes_no_whole_request_is_closed_on(monkeypatch, data):
    monkeypatch.setattr(door, "FIRST_SECONDS", 0.2)

    async def scenario(port):
        reader, writer = await opened(port, data)
        await ended(reader)
        async with asyncio.timeout(180):
            while port.server._door._of:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        writer.close()

    run(scenario)


def test_who_has_asked_once_may_stay(monkeypatch):
    monkeypatch.setattr(door, "FIRST_SECONDS", 2.0)

    async def scenario(port):
        reader, writer = await opened(port, WHOLE)
        await reader.readuntil(b"alive")
        silent, other = await opened(port)
        await ended(silent)  # by then this one's seconds are over too
        writer.write(WHOLE)
        await reader.readuntil(b"alive")
        writer.close()
        other.close()

    run(scenario)


def test_ipv6_addresses_of_one_network_count_as_one():
    assert door.owner("192.0.2.7") == door.owner("::ffff:192.0.2.7") == "192.0.2.7"
    assert door.owner("2001:db8::1") == door.owner("2001:db8::ffff:1:2:3") == "2001:db8::/64"
    assert door.owner("2001:db8:0:1::1") != door.owner("2001:db8::1")
    assert door.owner("fe80::1%eth0") == "fe80::/64"
    assert door.owner("::1") == "::1"


@pytest.mark.parametrize("path", ["/healthz", "/signin", "/metrics"])
@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"Content-Encoding: gzip\r\nContent-Length: 5", b"hello"),
        (b"Content-Encoding: deflate\r\nContent-Length: 5", b"hello"),
        (b"Transfer-Encoding: chunked", b"5\r\nhello\r\nzz\r\n"),
        (b"Transfer-Encoding: chunked", b"ffffffffffffffffff\r\nx"),
    ],
)
def test_a_body_that_is_none_writes_no_traceback(path, header, body, caplog):
    async def scenario(port):
        for method in (b"GET", b"POST"):
            head = method + b" " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n"
            reader, writer = await opened(port, head + body)
            assert (await asyncio.wait_for(reader.readline(), 180)).startswith(b"HTTP/1.")
            writer.write_eof()
            await ended(reader)
            writer.close()
        assert (await port.get("/healthz")).status == 200

    run(scenario)
    assert not [record for record in caplog.records if record.exc_info]
