"""A TCP proxy in a thread of the test's own that does to the bytes what bad networks do.

    with Proxy("127.0.0.1:50051") as proxy:          # or: proxy = start(target); ...; proxy.stop()
        node dials proxy.address                     # proxy.port is its port
        proxy.set_mode(Flip(every=20_000), "up")     # one bit in about so many bytes, towards the target
        proxy.set_mode(Slow(100_000), "down")        # bytes a second, from the target
        proxy.set_mode(Pass())                       # both ways, as at the start
        proxy.cut()                                  # every connection ends now, with a reset
        proxy.flipped, proxy.carried, proxy.swallowed, proxy.connections   # what it has done so far

A mode holds for connections that are open and for those to come, until it is set again:

    Pass()              everything as it is
    Flip(every, ...)    a flipped bit now and then: see its docstring
    Delay(seconds)      each byte comes so much later, none is lost, none is held up by another
    Slow(rate)          at most so many bytes a second, all connections of that direction together
    Hold()              nothing gets through; what was sent meanwhile comes when it ends, as TCP sends again
    Blackhole()         bytes are swallowed, connections stay open; what was swallowed never comes
    HalfOpen()          as Blackhole for the connections open now, for ever, even when the mode is set again;
                        new ones are served: a peer's box lost its power, or a NAT forgot
    Refuse()            connections are reset, and new ones at once

`directions`: "up" is from who connects to the target, "down" the other way, "both" the default. HalfOpen and
Refuse are of connections and take no direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

Direction = Literal["up", "down", "both"]
T = TypeVar("T")

_READ = 64 * 1024
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(frozen=True)
class Pass:
    """Everything as it is."""


@dataclass(frozen=True)
class Flip:
    """One bit is flipped in about `every` bytes: gaps are random, from 1 to twice that, by the proxy's seed.

    messages: only bytes of gRPC messages are touched and counted, not HTTP/2's own (frame headers, headers,
        pings) nor the five bytes before a message, whose damage ends or stalls a connection or a call. Of
        plaintext only.
    least: only in messages of so many bytes at least.
    times: no more than so many flips; None: without end.
    """

    every: int
    messages: bool = False
    least: int = 0
    times: int | None = None


@dataclass(frozen=True)
class Delay:
    seconds: float


@dataclass(frozen=True)
class Slow:
    rate: float


@dataclass(frozen=True)
class Hold:
    """Nothing gets through as long as it holds, and nobody is told; then all comes."""


@dataclass(frozen=True)
class Blackhole:
    """Bytes are swallowed."""


@dataclass(frozen=True)
class HalfOpen:
    """Connections that are open now are dead; neither side is told."""


@dataclass(frozen=True)
class Refuse:
    """Nobody gets through."""


Mode = Pass | Flip | Delay | Slow | Hold | Blackhole | HalfOpen | Refuse


class Proxy:
    """Forwards TCP to `target` (`HOST:PORT`) from a port of its own on loopback.

    port: 0: any. A proxy that is stopped and made again with its old port is a network that was away.
    seed: of where bits flip.
    """

    def __init__(self, target: str, port: int = 0, seed: int = 0) -> None:
        host, _, number = target.rpartition(":")
        self._target = (host.strip("[]"), int(number))
        self._modes: dict[str, Mode] = {"up": Pass(), "down": Pass()}
        self._random = random.Random(seed)
        self._left = {"up": 0, "down": 0}
        self._flips = {"up": 0, "down": 0}
        self._free = {"up": 0.0, "down": 0.0}
        self._links = set[_Link]()
        self._changed = asyncio.Event()  # set, and made anew, whenever the mode is
        self.carried = {"up": 0, "down": 0}
        """Bytes given on, by direction."""
        self.swallowed = {"up": 0, "down": 0}
        """Bytes that came and went nowhere, by direction."""
        self.flipped = {"up": 0, "down": 0}
        """Bits flipped, by direction."""
        self.connections = 0
        """Connections taken so far."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._call(self._listen, port)
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def set_mode(self, mode: Mode, direction: Direction = "both") -> None:
        """From now on. Returns when it holds."""

        async def change() -> None:
            self._changed.set()
            self._changed = asyncio.Event()
            if isinstance(mode, HalfOpen):
                for link in self._links:
                    link.dead = True
                return
            for way in ("up", "down") if direction == "both" or isinstance(mode, Refuse) else (direction,):
                self._modes[way], self._flips[way] = mode, 0
                if isinstance(mode, Flip):
                    self._left[way] = self._gap(mode)
            if isinstance(mode, Refuse):
                self._reset()

        self._call(change)

    def cut(self) -> None:
        """Every connection ends now, with a reset to both sides; new ones are served."""

        async def cut() -> None:
            self._reset()

        self._call(cut)

    @property
    def open(self) -> int:
        """Connections open now."""
        return len(self._links)

    def stop(self) -> None:
        """Connections end, the port is free. Twice is once."""
        if not self._thread.is_alive():
            return

        async def close() -> None:
            self._server.close()
            self._reset()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(120)
        self._loop.close()

    # In the proxy's thread

    def _call(self, work: Callable[..., object], *args: object) -> object:
        return asyncio.run_coroutine_threadsafe(work(*args), self._loop).result(120)  # type: ignore[arg-type]

    async def _listen(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", port, limit=_READ)

    def _reset(self) -> None:
        for link in list(self._links):
            link.reset()

    def _gap(self, mode: Flip) -> int:
        return self._random.randint(1, 2 * mode.every)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if isinstance(self._modes["up"], Refuse):
            _abort(writer)
            return
        try:
            there, back = await asyncio.open_connection(*self._target, limit=_READ)
        except OSError:
            _abort(writer)
            return
        link = _Link((writer, back))
        self._links.add(link)
        try:
            await asyncio.gather(
                self._carry("up", reader, back, link, _Messages(client=True)),
                self._carry("down", there, writer, link, _Messages(client=False)),
            )
        except asyncio.CancelledError:
            pass  # at the end of the proxy, which asyncio's streams would log
        finally:
            self._links.discard(link)
            for end in (writer, back):
                end.close()

    async def _carry(
        self,
        way: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        link: _Link,
        messages: _Messages,
    ) -> None:
        # Written by a task of its own, so that what is delayed holds up nothing behind it.
        queue: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue(256)
        sender = asyncio.create_task(self._write(way, queue, writer, link))
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(_READ):
                    mode = self._modes[way]
                    wanted = isinstance(mode, Flip) and mode.messages
                    spans = messages.spans(data, mode.least if isinstance(mode, Flip) else 0)
                    if link.dead or isinstance(mode, Blackhole):
                        self.swallowed[way] += len(data)
                        continue
                    if isinstance(mode, Flip):
                        data = self._flip(way, mode, data, spans if wanted else [(0, len(data))])
                    due = asyncio.get_running_loop().time()
                    await queue.put((due + mode.seconds if isinstance(mode, Delay) else due, data))
            await queue.put(None)
            await sender
        finally:
            sender.cancel()

    async def _write(
        self,
        way: str,
        queue: asyncio.Queue[tuple[float, bytes] | None],
        writer: asyncio.StreamWriter,
        link: _Link,
    ) -> None:
        loop = asyncio.get_running_loop()
        while (item := await queue.get()) is not None:
            due, data = item
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            if isinstance(mode := self._modes[way], Slow):
                self._free[way] = max(self._free[way], loop.time()) + len(data) / mode.rate
                await asyncio.sleep(self._free[way] - loop.time())
            while isinstance(self._modes[way], Hold) and not link.dead:
                await self._changed.wait()
            if link.dead:
                continue
            try:
                writer.write(data)
                self.carried[way] += len(data)
                await writer.drain()
            except ConnectionError:
                link.reset()
                return
        if not link.dead:
            with contextlib.suppress(OSError, RuntimeError):
                writer.write_eof()

    def _flip(self, way: str, mode: Flip, data: bytes, spans: list[tuple[int, int]]) -> bytes:
        changed = bytearray(data)
        for start, stop in spans:
            while self._left[way] <= stop - start:
                if mode.times is not None and self._flips[way] >= mode.times:
                    return bytes(changed)
                start += self._left[way]
                changed[start - 1] ^= 1 << self._random.randrange(8)
                self._left[way] = self._gap(mode)
                self._flips[way] += 1
                self.flipped[way] += 1
            self._left[way] -= stop - start
        return bytes(changed)


class _Link:
    """A connection's two sockets, and whether they are dead in silence."""

    def __init__(self, writers: tuple[asyncio.StreamWriter, ...]) -> None:
        self._writers, self.dead = writers, False

    def reset(self) -> None:
        for writer in self._writers:
            _abort(writer)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, as a box does that knows nothing of the connection."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class _Messages:
    """Where, in a connection's bytes one way, the bytes of gRPC messages are."""

    def __init__(self, client: bool) -> None:
        self._skip = len(_PREFACE) if client else 0
        self._head = bytearray()
        self._left = 0  # of the frame
        self._stream = -1  # whose data the frame is; -1: another kind
        self._messages: dict[int, tuple[bytearray, int, int]] = {}

    def spans(self, data: bytes, least: int) -> list[tuple[int, int]]:
        """[start, stop) in `data`, of messages of `least` bytes or more."""
        found: list[tuple[int, int]] = []
        at = min(self._skip, len(data))
        self._skip -= at
        while at < len(data):
            if not self._left:
                take = min(9 - len(self._head), len(data) - at)
                self._head += data[at : at + take]
                at += take
                if len(self._head) == 9:
                    self._left = int.from_bytes(self._head[:3], "big")
                    self._stream = int.from_bytes(self._head[5:], "big") if self._head[3] == 0 else -1
                    self._head.clear()
                continue
            stop = at + min(self._left, len(data) - at)
            if self._stream >= 0:
                found += self._within(data, at, stop, least)
            self._left -= stop - at
            at = stop
        return found

    def _within(self, data: bytes, at: int, stop: int, least: int) -> list[tuple[int, int]]:
        found = []
        prefix, left, size = self._messages.pop(self._stream, (bytearray(), 0, 0))
        while at < stop:
            if not left:
                take = min(5 - len(prefix), stop - at)
                prefix += data[at : at + take]
                at += take
                if len(prefix) == 5:
                    left = size = int.from_bytes(prefix[1:], "big")
                    prefix = bytearray()
                continue
            end = min(at + left, stop)
            if size >= least:
                found.append((at, end))
            left -= end - at
            at = end
        self._messages[self._stream] = (prefix, left, size)
        return found


def start(target: str, port: int = 0, seed: int = 0) -> Proxy:
    """A proxy to `target` that runs until `stop`."""
    return Proxy(target, port, seed)
