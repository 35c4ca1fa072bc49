"""Bodies of requests and answers that may be long: in pieces, within bounds and deadlines.

What comes is counted, byte by byte, against a lease of the caller's; what is packed (gzip, deflate) is
unpacked in threads, and what it unpacks to is counted, too. Neither side waits for ever for the other.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator

from aiohttp import hdrs, web

from aggregator.bounds.budget import Lease
from aggregator.http.endpoints import HttpCall
from edge_attention.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MessageTooLarge,
    Unimplemented,
)

__all__ = ["BODY_BYTES", "UNPACKED_BYTES", "packing", "read_body", "send"]

BODY_BYTES = 2 * 1024 * 1024 * 1024
"""Of one request to a model as it comes."""
UNPACKED_BYTES = 256 * 1024 * 1024
"""Of one that comes packed, unpacked: a thousand times as much may be in it as it is long."""
BODY_IDLE_SECONDS = 30.0
"""Until the next bytes of a body."""
BODY_SECONDS = 600.0
"""Until its last, and within which an answer has to be taken."""
STUCK_SECONDS = 30.0
"""Within which who asked has to take PIECE_BYTES of an answer."""
PIECE_BYTES = 256 * 1024
"""Written, counted and unpacked at a time."""
PACKED_LEAST = 1024
"""Bytes of an answer from which packing is worth its while."""
PACKED_LEVEL = 1
"""The quickest: numbers hardly shrink by more work."""

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""x-gzip is gzip's older name (RFC 9110, section 8.4.1.3)."""


async def read_body(request: web.Request, lease: Lease, most: int) -> bytearray:
    """All of a request's body, unpacked. `lease` grows with it.

    Raises:
        MessageTooLarge: it has more than `most` bytes, or unpacks to more than UNPACKED_BYTES.
        DeadlineExceeded: it did not come in time.
        InvalidArgument: what it is packed with is damaged.
        Unimplemented: it is packed with something else.
        Overloaded: the caller has as much under way as it may.
    """
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if encoding not in ("identity", "", *_WINDOWS):
        raise Unimplemented(
            f"a body in Content-Encoding {encoding[:40]!r}; send it plain, by gzip or deflate"
        )
    length = request.content_length
    if length is not None and length > most:
        raise _too_large(length, most)
    pieces = _come(request, most)
    if encoding in _WINDOWS:
        pieces = _unpacked(pieces, encoding, min(most, UNPACKED_BYTES))
    body, counted = bytearray(), 0
    async for piece in pieces:
        if len(body) + len(piece) > counted:
            lease.grow(PIECE_BYTES + len(piece))
            counted += PIECE_BYTES + len(piece)
        body += piece
    lease.shrink(counted - len(body))
    return body


async def _come(request: web.Request, most: int) -> AsyncIterator[bytes]:
    until, size = time.monotonic() + BODY_SECONDS, 0
    while True:
        left = min(BODY_IDLE_SECONDS, until - time.monotonic())
        try:
            async with asyncio.timeout(left):
                piece = await request.content.readany()
        except TimeoutError:
            raise DeadlineExceeded(
                f"the body of {request.method} did not come in time: {size:,} bytes did; send it within "
                f"{BODY_SECONDS:.0f} s, and never pause for {BODY_IDLE_SECONDS:.0f}"
            ) from None
        if not piece:
            return
        size += len(piece)
        if size > most:
            raise _too_large(size, most)
        yield piece


async def _unpacked(pieces: AsyncIterator[bytes], encoding: str, most: int) -> AsyncIterator[bytes]:
    unpacker, size = zlib.decompressobj(_WINDOWS[encoding]), 0
    async for piece in pieces:
        given = piece
        while given:
            if unpacker.eof:
                raise InvalidArgument(f"the body goes on after the end of its {encoding}")
            try:
                some = await asyncio.to_thread(unpacker.decompress, given, PIECE_BYTES)
            except zlib.error:
                raise InvalidArgument(f"the body is no {encoding}, which its Content-Encoding says") from None
            given = unpacker.unconsumed_tail or unpacker.unused_data
            size += len(some)
            if size > most:
                raise MessageTooLarge(
                    f"bound unpacked-bytes: the body unpacks to more than {most:,} bytes; send it plain, or "
                    "fewer rows at a time"
                )
            yield some
    if not unpacker.eof:
        raise InvalidArgument(f"the body ends before its {encoding} does")


def _too_large(size: int, most: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"bound body-bytes: the body has {size:,} bytes or more, and may have {most:,}; send fewer rows at a "
        "time"
    )


def packing(request: web.Request) -> str | None:
    """What the answer is to be packed with, of what the request says it takes; None: nothing."""
    taken = request.headers.get(hdrs.ACCEPT_ENCODING, "").lower()
    for one in taken.split(","):
        name, _, quality = one.partition(";")
        if name.strip() in _WINDOWS and quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            return name.strip()
    return None


async def send(
    call: HttpCall, response: web.StreamResponse, pieces: Iterable[bytes | memoryview], size: int | None
) -> web.StreamResponse:
    """Send `response` with a body of `pieces`, packed if the request takes that. `size`: of all, if known.

    Who takes none of it for STUCK_SECONDS, or not all in BODY_SECONDS, has its connection closed.
    """
    request, call.response = call.request, response
    encoding = packing(request) if size is None or size >= PACKED_LEAST else None
    if encoding is not None:
        response.headers[hdrs.CONTENT_ENCODING] = encoding
        response.headers[hdrs.VARY] = hdrs.ACCEPT_ENCODING
    elif size is not None:
        response.content_length = size
    try:
        async with asyncio.timeout(BODY_SECONDS):
            await _write(request, response, None)
            if encoding is not None:
                await _send_packed(request, response, pieces, encoding)
            else:
                for piece in cut(pieces):
                    await _write(request, response, piece)
                    await asyncio.sleep(0)  # what the socket takes at once is not waited for
            async with asyncio.timeout(STUCK_SECONDS):
                await response.write_eof()
    except TimeoutError:
        call.abort()
    return response


async def _send_packed(
    request: web.Request,
    response: web.StreamResponse,
    pieces: Iterable[bytes | memoryview],
    encoding: str,
) -> None:
    packer = zlib.compressobj(PACKED_LEVEL, wbits=_WINDOWS[encoding])
    for piece in cut(pieces):
        if packed := await asyncio.to_thread(packer.compress, piece):
            await _write(request, response, packed)
    await _write(request, response, await asyncio.to_thread(packer.flush))


async def _write(
    request: web.Request, response: web.StreamResponse, piece: bytes | memoryview | None
) -> None:
    async with asyncio.timeout(STUCK_SECONDS):
        if piece is None:
            await response.prepare(request)
        elif piece:
            await response.write(piece)


def cut(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The same bytes in pieces of PIECE_BYTES at most."""
    for piece in pieces:
        if len(piece) <= PIECE_BYTES:
            yield piece
            continue
        view = memoryview(piece).cast("B")
        for at in range(0, len(view), PIECE_BYTES):
            yield view[at : at + PIECE_BYTES]
