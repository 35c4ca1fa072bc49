"""Tensors in bulk: what a node sends of a large contribution, and what it makes of what it downloads."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import numpy as np
import pytest

from edge_attention.core.errors import Damaged, DataLoss, EdgeAttentionError, InvalidTensor, Unavailable
from edge_attention.core.messages.link import Chunk, Uploaded
from edge_attention.core.messages.program import BulkTensor, Contribution
from edge_attention.core.tensors import DataType, Encoded, Encoding
from edge_node import transfers
from edge_node.transfers import Transfers, split

LARGE = np.linspace(-1, 1, 300_000, dtype=np.float32).reshape(3, 100_000)
BYTES = {Encoding.RAW: 4, Encoding.FLOAT16: 2, Encoding.BFLOAT16: 2}
ERROR = {Encoding.RAW: 0, Encoding.FLOAT16: 2.0**-11, Encoding.BFLOAT16: 2.0**-8}


class Lender:
    """Answers a download with `data` in chunks; room without end, and nobody who stops."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def receive(self, method, request):
        for offset in range(request.offset, len(self.data), 100_000):
            yield Chunk(offset, len(self.data), self.data[offset : offset + 100_000])

    def reserve(self, size: int, what: str) -> None: ...

    def release(self, size: int) -> None: ...

    def check(self) -> None: ...


def downloaded(bulk: BulkTensor, data: bytes) -> np.ndarray:
    async def get() -> np.ndarray:
        lender = Lender(data)
        end = Transfers(lender, lambda direction, size: None)
        end.online(lender, "session")
        return await end.tensor(bulk, lender)

    return asyncio.run(get())


@pytest.mark.parametrize("encoding", Encoding)
def test_what_is_split_off_comes_back(encoding):
    small = np.arange(3)
    value = LARGE if encoding is Encoding.RAW else Encoded(LARGE, encoding)
    rest, blobs = split(Contribution("t", "s", range(1), 1, 0, {"large": value, "small": small}))
    assert list(rest.tensors) == ["small"]
    (bulk,) = rest.bulk_tensors
    (data,) = blobs.values()
    assert (bulk.name, bulk.shape, bulk.encoding) == ("large", LARGE.shape, encoding)
    assert bulk.size == len(data) == LARGE.size * BYTES[encoding]
    assert bulk.digest == hashlib.sha256(data).hexdigest()
    came = downloaded(bulk, bytes(data))
    assert (came.dtype, came.shape) == (np.float32, LARGE.shape)
    np.testing.assert_allclose(came, LARGE, rtol=ERROR[encoding], atol=2.0**-24)


@pytest.mark.parametrize("encoding", [Encoding.FLOAT16, Encoding.BFLOAT16])
def test_only_float32_is_announced_in_half(encoding):
    bulk = BulkTensor("w", DataType.INT32, (2,), encoding, "0" * 64, 4)
    with pytest.raises(InvalidTensor, match=f"w: only float32 travels as {encoding.value}; it is int32"):
        downloaded(bulk, b"1234")


def test_a_size_that_does_not_fit_is_refused_before_anything_is_fetched():
    bulk = BulkTensor("w", DataType.FLOAT32, (3,), Encoding.BFLOAT16, "0" * 64, 12)
    with pytest.raises(EdgeAttentionError, match="takes 6 bytes, but 12 came"):
        downloaded(bulk, b"")


class Taker(Lender):
    """Takes uploads. `breaks` calls with bytes break after a chunk; a chunk of `poison` is refused; what has
    come of `fetched` is gone when more of it comes, once."""

    def __init__(self, breaks: int = 0, poison: str = "", fetched: str = "") -> None:
        super().__init__(b"")
        self.files: dict[str, bytearray] = {}
        self.calls: list[tuple[str, bool]] = []
        self.breaks, self.poison, self.fetched = breaks, poison, fetched
        self.now = self.most = 0

    async def send(self, method, chunks):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            async for chunk in chunks:
                await asyncio.sleep(0)
                if chunk.offset == 0 or chunk.data:
                    self.calls.append((chunk.digest, bool(chunk.data)))
                if chunk.digest == self.poison and chunk.data:
                    raise InvalidTensor("no")
                file = self.files.setdefault(chunk.digest, bytearray())
                if chunk.data and chunk.digest == self.fetched:
                    self.fetched = ""
                    file.clear()
                    return Uploaded(0)
                if chunk.data:
                    assert chunk.offset == len(file)
                    file += chunk.data
                    if self.breaks:
                        self.breaks -= 1
                        raise Unavailable("gone")
            return Uploaded(len(file))
        finally:
            self.now -= 1


def uploading(taker: Taker, files: dict[str, bytes]) -> None:
    async def put() -> None:
        end = Transfers(taker, lambda direction, size: None)
        end.online(taker, "session")
        await end.upload_all({digest: memoryview(data) for digest, data in files.items()}, taker)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(put())


FILES = {f"{n}": bytes([n]) * (n * 1000 + 1) for n in range(9)}


def test_the_other_side_hears_of_every_file_before_the_first_byte():
    taker = Taker()
    uploading(taker, FILES)
    assert taker.files == FILES
    assert sorted(taker.calls[: len(FILES)]) == [(digest, False) for digest in FILES]
    assert 1 < taker.most <= transfers.TOGETHER


def test_what_is_there_is_not_sent_and_what_broke_goes_on_where_it_was(monkeypatch):
    monkeypatch.setattr(transfers, "CHUNK", 100)
    again = asyncio.sleep
    monkeypatch.setattr(Transfers, "_again", lambda self, stop: again(0))
    taker = Taker(breaks=3)
    taker.files = {"7": bytearray(FILES["7"]), "6": bytearray(FILES["6"][:150])}
    uploading(taker, FILES)
    assert taker.files == FILES
    assert ("7", True) not in taker.calls
    assert taker.breaks == 0


@pytest.mark.parametrize(
    ("asked", "sent", "slow"),
    [
        (0, 8000, 8000),
        (5000, 5000, 5000),
        (9000, 9000, 8000),
        (7, 1024, 1024),
        (2**32 - 1, 16_000, 8000),
    ],
)
@pytest.mark.parametrize("quick", [True, False])
def test_chunks_are_as_large_as_is_asked_within_limits(monkeypatch, asked, sent, slow, quick):
    monkeypatch.setattr(transfers, "CHUNK", 8000)
    monkeypatch.setattr(transfers, "LARGE_CHUNK", 16_000)
    monkeypatch.setattr(transfers, "LEAST_CHUNK", 1024)
    monkeypatch.setattr(transfers, "QUICK_SECONDS", 3600.0 if quick else 0.0)
    sizes = []

    class Asking(Taker):
        async def send(self, method, chunks):
            async def seen():
                async for chunk in chunks:
                    if chunk.data:
                        sizes.append(len(chunk.data))
                    yield chunk

            return replace(await super().send(method, seen()), chunk_bytes=asked)

    file = bytes(50_000)
    uploading(Asking(), {"x": file})
    assert sizes[0] == slow, "nobody knows yet"
    assert set(sizes[1:-1]) == {sent if quick else slow}
    assert sum(sizes) == len(file)


def test_a_file_under_way_goes_on_in_smaller_chunks_when_another_is_asked_for_them(monkeypatch):
    monkeypatch.setattr(transfers, "LEAST_CHUNK", 100)
    monkeypatch.setattr(transfers, "CHUNK", 2000)
    monkeypatch.setattr(transfers, "LARGE_CHUNK", 2000)
    sizes = []

    class Asking(Taker):
        async def send(self, method, chunks):
            asked = 0

            async def seen():
                nonlocal asked
                async for chunk in chunks:
                    if chunk.data:
                        asked = 100 if chunk.digest == "short" else 0
                        sizes.extend([len(chunk.data)] * (chunk.digest == "long"))
                    yield chunk

            uploaded = await super().send(method, seen())
            return replace(uploaded, chunk_bytes=asked)

    uploading(Asking(), {"long": bytes(40_000), "short": bytes(10)})
    assert sizes[0] == 2000
    assert set(sizes[-10:]) == {100}
    assert sum(sizes) == 40_000


@pytest.mark.parametrize("there", [0, 150])
def test_what_is_gone_when_it_is_to_go_on_comes_again_from_its_start(there):
    taker = Taker(fetched="6")
    taker.files = {"6": bytearray(FILES["6"][:there])}
    uploading(taker, FILES)
    assert taker.files == FILES
    assert taker.fetched == ""


def test_what_is_taken_and_never_there_is_given_up():
    class Full(Taker):
        async def send(self, method, chunks):
            async for _ in chunks:
                pass
            return Uploaded(150)

    with pytest.raises(DataLoss, match="took 150 of a tensor's 6,001 bytes"):
        uploading(Full(), {"6": FILES["6"]})


def test_one_file_that_is_refused_calls_the_others_off():
    taker = Taker(poison="4")
    with pytest.raises(InvalidTensor, match="no"):
        uploading(taker, FILES)
    assert taker.now == 0


class Damaging(Lender):
    """Of a file in chunks: so many come damaged, or another's bytes are sent first."""

    def __init__(self, data, damaged=0, other=b""):
        super().__init__(data)
        self.damaged, self.other, self.offsets = damaged, other, []

    async def receive(self, method, request):
        self.offsets.append(request.offset)
        if self.other:
            wrong, self.other = self.other, b""
            yield Chunk(0, len(wrong), wrong)
            return
        sent = 0
        async for chunk in super().receive(method, request):
            if self.damaged and (sent or self.damaged > 1):
                self.damaged -= 1
                raise Damaged("odd")
            sent += 1
            yield chunk


def fetched(lender, digest):
    async def get():
        end = Transfers(lender, lambda direction, size: None)
        end.online(lender, "session")
        return await end.download(digest, 1 << 20, lender)

    return bytes(asyncio.run(get()))


FILE = bytes(range(256)) * 1200
DIGEST = hashlib.sha256(FILE).hexdigest()


def test_a_damaged_chunk_is_asked_for_again_at_once_from_where_it_was():
    lender = Damaging(FILE, damaged=1)
    assert fetched(lender, DIGEST) == FILE
    assert lender.offsets == [0, 100_000]


def test_chunks_that_keep_coming_damaged_are_given_up():
    lender = Damaging(FILE, damaged=1000)
    with pytest.raises(Damaged):
        fetched(lender, DIGEST)
    assert lender.offsets == [0] * transfers.TIMES


def test_a_file_with_another_digest_comes_again_and_is_given_up_when_it_stays_so():
    lender = Damaging(FILE, other=bytes(len(FILE)))
    assert fetched(lender, DIGEST) == FILE
    assert lender.offsets == [0, 0]
    with pytest.raises(DataLoss, match="came damaged 5 times"):
        fetched(Damaging(FILE), "0" * 64)


def test_an_upload_of_which_chunks_are_damaged_goes_on_where_it_was():
    class Odd(Taker):
        damaged = 3

        async def send(self, method, chunks):
            async def whole():
                came = 0
                async for chunk in chunks:
                    if came and self.damaged:
                        self.damaged -= 1
                        return  # as the aggregator does: the answer says what is there
                    came += bool(chunk.data)
                    yield chunk

            return await super().send(method, whole())

    taker = Odd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfers, "CHUNK", 1000)
        patch.setattr(transfers, "LARGE_CHUNK", 1000)
        uploading(taker, {"8": FILES["8"]})
    assert taker.files == {"8": FILES["8"]}
    assert taker.damaged == 0
