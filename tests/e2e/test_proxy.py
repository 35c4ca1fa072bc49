"""The proxy itself: what it carries, what it does to it, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import threading
import time

import grpc
import pytest
from fleets import until
from proxy import Blackhole, Delay, Flip, HalfOpen, Hold, Pass, Proxy, Refuse, Slow, start


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)


@pytest.fixture
def echo():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def dial(proxy):
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=120.0)


def there_and_back(end, data):
    sender = threading.Thread(target=end.sendall, args=(data,))
    sender.start()
    came = b""
    while len(came) < len(data):
        part = end.recv(65536)
        assert part
        came += part
    sender.join()
    return came


def refused(proxy):
    """Whether it is when dialling or when reading that it shows, nobody gets through."""

    def asked():
        with dial(proxy) as end:
            return end.recv(1)

    with pytest.raises(ConnectionError):
        asked()


def nothing_comes(end):
    """For a while: whatever does come has all the time that a busy machine takes."""
    end.settimeout(0.3)
    with pytest.raises(TimeoutError):
        end.recv(1)
    end.settimeout(120.0)


def differing(a, b):
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))


def test_what_passes_is_what_was_sent_and_an_end_is_an_end(echo):
    data = bytes(range(256)) * 4000
    with Proxy(echo) as proxy, dial(proxy) as end:
        assert there_and_back(end, data) == data
        until(lambda: proxy.carried["down"] == len(data), "it counts what it has passed on")
        assert proxy.carried == {"up": len(data), "down": len(data)}
        end.shutdown(socket.SHUT_WR)
        assert end.recv(1) == b""
    assert proxy.connections == 1


def test_bits_flip_about_as_often_as_is_asked_and_one_way_only(echo):
    data = bytes(1_000_000)
    with Proxy(echo, seed=7) as proxy, dial(proxy) as end:
        proxy.set_mode(Flip(10_000), "up")
        flips = differing(there_and_back(end, data), data)
        assert 80 <= flips <= 125
        assert proxy.flipped == {"up": flips, "down": 0}
        proxy.set_mode(Flip(1000, times=3), "down")
        proxy.set_mode(Pass(), "up")
        assert differing(there_and_back(end, data), data) == 3


def test_a_delay_delays_and_a_slow_link_is_slow(echo):
    with Proxy(echo) as proxy, dial(proxy) as end:
        proxy.set_mode(Delay(0.2), "up")
        began = time.monotonic()
        there_and_back(end, b"x")
        assert time.monotonic() - began >= 0.19
        proxy.set_mode(Pass(), "up")
        proxy.set_mode(Slow(100_000), "down")
        began = time.monotonic()
        there_and_back(end, bytes(50_000))
        assert time.monotonic() - began >= 0.45


def test_a_black_hole_swallows_and_heals(echo):
    with Proxy(echo) as proxy, dial(proxy) as end:
        proxy.set_mode(Blackhole())
        end.sendall(b"lost")
        until(lambda: proxy.swallowed["up"] == 4, "its end")
        nothing_comes(end)
        proxy.set_mode(Pass())
        assert there_and_back(end, b"found") == b"found"


def test_what_is_held_comes_when_the_network_is_back(echo):
    with Proxy(echo) as proxy, dial(proxy) as end:
        assert there_and_back(end, b"a") == b"a"
        proxy.set_mode(Hold())
        end.sendall(b"late")
        nothing_comes(end)
        proxy.set_mode(Pass())
        assert end.recv(4) == b"late"


def test_a_half_open_connection_stays_dead_and_new_ones_live(echo):
    with Proxy(echo) as proxy, dial(proxy) as end:
        assert there_and_back(end, b"a") == b"a"
        proxy.set_mode(HalfOpen())
        end.sendall(b"b")
        nothing_comes(end)
        with dial(proxy) as other:
            assert there_and_back(other, b"c") == b"c"
        nothing_comes(end)


def test_cutting_resets_and_refusing_lets_nobody_through(echo):
    with Proxy(echo) as proxy:
        with dial(proxy) as end:
            there_and_back(end, b"a")
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        proxy.set_mode(Refuse())
        refused(proxy)
        proxy.set_mode(Pass())
        with dial(proxy) as end:
            assert there_and_back(end, b"a") == b"a"


def test_a_target_that_is_away_resets_and_the_port_can_be_had_again(echo):
    proxy = start("127.0.0.1:1")
    port = proxy.port
    refused(proxy)
    proxy.stop()
    proxy.stop()
    with Proxy(echo, port) as proxy, dial(proxy) as end:
        assert proxy.port == port
        assert there_and_back(end, b"a") == b"a"


def test_only_messages_are_damaged_where_that_is_asked():
    """Of a gRPC server that echoes: each call is answered, and what differs is inside messages."""
    size = 100_000

    async def scenario():
        server = grpc.aio.server()

        async def echo(requests, context):
            async for request in requests:
                yield request

        handlers = {"Echo": grpc.stream_stream_rpc_method_handler(echo)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        with Proxy(f"127.0.0.1:{port}") as proxy:
            proxy.set_mode(Flip(20_000, messages=True, least=1000))
            async with grpc.aio.insecure_channel(proxy.address) as channel:
                flips = 0
                for _ in range(10):
                    call = channel.stream_stream("/t.T/Echo")()
                    for message in (b"small", bytes(size)):
                        await call.write(message)
                        came = await call.read()
                        assert len(came) == len(message)
                        flips += differing(came, message)
                        assert came == message or len(message) == size
                    await call.done_writing()
                assert flips == sum(proxy.flipped.values()) > 20
        await server.stop(None)

    asyncio.run(asyncio.wait_for(scenario(), 60))
