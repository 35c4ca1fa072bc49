"""How many connections the gRPC port has, and when that is told."""

from __future__ import annotations

import asyncio
import socket

from aggregator.bounds import sockets
from aggregator.bounds.sockets import Warner, established


def test_established_connections_to_a_port_are_counted():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert established(port) == 0
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        accepted = [server.accept()[0] for _ in clients]
        assert established(port) == 3
        for one in (*clients, *accepted):
            one.close()
    assert established(port) == 0


def test_where_the_kernel_has_no_table_nothing_is_known(tmp_path):
    assert established(1, (tmp_path / "none",)) is None


def test_a_full_port_is_told_once_a_minute():
    warner = Warner(10)
    assert warner.seen(9, 0.0) is None
    assert "the gRPC port has 10 connections" in (warner.seen(10, 1.0) or "")
    assert warner.seen(11, 60.0) is None
    assert warner.seen(11, 61.0) is not None


def test_it_is_shown_and_told(monkeypatch, caplog):
    monkeypatch.setattr(sockets, "connections", lambda: 1)

    async def run():
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            shown = asyncio.get_running_loop().create_future()
            with socket.create_connection(("127.0.0.1", port)):
                task = asyncio.create_task(sockets.watch_connections(port, shown.set_result))
                async with asyncio.timeout(180):
                    count = await shown
                await asyncio.sleep(0)
                task.cancel()
            return count

    assert asyncio.run(run()) == 1
    assert "turns others away" in caplog.text
