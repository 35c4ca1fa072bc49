"""Files going up: in any chunks, broken off, alike, damaged; nothing of them stays."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.engine import bulk as rooms
from aggregator.engine.bulk import Bulk
from aggregator.store.state import State
from edge_attention.core.errors import (
    DataLoss,
    DiskFull,
    InvalidArgument,
    InvalidTensor,
    NotFound,
    ResourceExhausted,
)
from edge_attention.core.messages.link import DownloadRequest, UploadChunk
from edge_attention.core.messages.program import BulkTensor
from edge_attention.core.tensors import DataType, Encoding

ARRAY = np.arange(50, dtype=np.float32)
DATA = ARRAY.tobytes()
DIGEST = hashlib.sha256(DATA).hexdigest()


def tensor(name="x", **changed):
    fields = {"data_type": DataType.FLOAT32, "shape": (50,), "encoding": Encoding.RAW}
    return BulkTensor(name, **{**fields, "digest": DIGEST, "size": len(DATA), **changed})


def chunks(*cuts, data=DATA, digest=DIGEST):
    return [UploadChunk("", digest, a, len(data), data[a:b]) for a, b in itertools.pairwise(cuts)]


QUESTION = [UploadChunk("", DIGEST, 0, len(DATA), b"")]


async def stream(items):
    for item in items:
        yield item
        await asyncio.sleep(0)


@pytest.fixture
def bulk():
    with State(None) as state:
        yield Bulk(state)


def up(bulk, items, sender="s", keep=False):
    return asyncio.run(bulk.upload(sender, stream(items), keep)).received


def empty(bulk, sender="s"):
    return not bulk._uploads.get(sender) and not bulk._wanted


def spooled(bulk):
    return list((bulk._state.directory / "spool").iterdir())


def down(bulk, digest, offset=0):
    async def all_of_it():
        return [chunk async for chunk in bulk.download(DownloadRequest("", digest, offset))]

    return asyncio.run(all_of_it())


@given(st.sets(st.integers(1, len(DATA) - 1), max_size=5), st.integers(0, len(DATA)))
def test_a_file_comes_whole_however_it_is_cut_and_broken_off(cuts, broken):
    with State(None) as state:
        bulk = Bulk(state)
        first = sorted({0, *(cut for cut in cuts if cut <= broken)})
        there = up(bulk, chunks(*first)) if len(first) > 1 else 0
        assert up(bulk, QUESTION) == there
        assert up(bulk, chunks(there, *sorted(c for c in cuts if c > there), len(DATA))) == len(DATA)
        np.testing.assert_array_equal(bulk.received("s", [tensor()])["x"].array(), ARRAY)
        assert empty(bulk)


def test_two_calls_that_send_the_same_file_each_have_it(bulk):
    async def both():
        calls = (bulk.upload("s", stream(chunks(0, 80, 150, 200)), keep=False) for _ in range(2))
        return await asyncio.gather(*calls)

    assert [done.received for done in asyncio.run(both())] == [200, 200]
    for _ in range(2):
        np.testing.assert_array_equal(bulk.received("s", [tensor()])["x"].array(), ARRAY)
    assert empty(bulk)
    with pytest.raises(NotFound):
        bulk.received("s", [tensor()])


def test_a_call_goes_on_though_another_has_fetched_the_same_file(bulk):
    async def late():
        for chunk in chunks(0, 80, 150):
            yield chunk
        await bulk.upload("s", stream(chunks(0, 200)), keep=False)
        bulk.received("s", [tensor()])
        for chunk in chunks(150, 200):
            yield chunk

    assert asyncio.run(bulk.upload("s", late(), keep=False)).received == 200
    np.testing.assert_array_equal(bulk.received("s", [tensor()])["x"].array(), ARRAY)
    assert empty(bulk)


def test_a_call_that_begins_past_what_is_there_is_told_how_much_that_is(bulk):
    """One task asks, another that returned the same bytes is done with the file, the first goes on."""
    assert up(bulk, chunks(0, 150)) == 150
    assert up(bulk, QUESTION) == 150
    assert up(bulk, chunks(150, 200)) == 200
    bulk.received("s", [tensor()])["x"].close()
    assert up(bulk, chunks(150, 180, 200)) == 0
    assert up(bulk, [UploadChunk("", "0" * 64, 1, 0, b"")]) == 0
    assert not bulk._wanted
    bulk._drop(bulk._uploads["s"], "0" * 64)
    assert up(bulk, chunks(0, 200)) == 200
    np.testing.assert_array_equal(bulk.received("s", [tensor()])["x"].array(), ARRAY)
    assert empty(bulk)


def test_what_was_broken_off_makes_room(bulk, monkeypatch):
    monkeypatch.setattr(rooms, "UPLOAD_LIMIT", 250)
    assert up(bulk, chunks(0, 100)) == 100
    other = bytes(200)
    digest = hashlib.sha256(other).hexdigest()
    assert up(bulk, chunks(0, 200, data=other, digest=digest)) == 200
    with pytest.raises(ResourceExhausted):
        up(bulk, chunks(0, 200))
    assert bulk.received("s", [tensor(digest=digest)])["x"].array().sum() == 0
    assert empty(bulk)


@pytest.mark.parametrize(
    ("items", "error"),
    [
        ([UploadChunk("", DIGEST, 0, 10, DATA)], InvalidArgument),
        (chunks(0, 200, digest="0" * 64), DataLoss),
        ([UploadChunk("", "0" * 64, 0, 0, b"")], DataLoss),
        ([UploadChunk("", DIGEST, 0, 2**50, b"x")], ResourceExhausted),
    ],
)
def test_what_is_not_the_file_is_refused(bulk, items, error):
    with pytest.raises(error):
        up(bulk, items)
    assert not bulk._wanted


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"shape": (51,)}, InvalidTensor),
        ({"shape": (-50,)}, InvalidTensor),
        ({"shape": (50,) + (1,) * 70}, InvalidTensor),
        ({"data_type": DataType.FLOAT64}, InvalidTensor),
        ({"size": 100}, NotFound),
        ({"digest": "0" * 64}, NotFound),
    ],
)
def test_an_announcement_that_does_not_fit_is_refused(bulk, changed, error):
    up(bulk, chunks(0, 200))
    with pytest.raises(error):
        bulk.received("s", [tensor(**changed)])


def test_tensors_of_equal_bytes_are_one_file(bulk):
    up(bulk, chunks(0, 200))
    found = bulk.received("s", [tensor("x"), tensor("y", shape=(5, 10))])
    np.testing.assert_array_equal(found["y"].array().ravel(), found["x"].array())
    assert empty(bulk)


def test_what_is_forgotten_in_the_middle_leaves_nothing(bulk):
    async def forgotten():
        yield chunks(0, 100)[0]
        bulk.forget("s")

    assert asyncio.run(bulk.upload("s", forgotten(), keep=False)).received == 100
    assert empty(bulk)


def test_a_clients_file_is_kept_and_known_the_next_time(bulk):
    assert up(bulk, chunks(0, 200), keep=True) == 200
    assert bulk.find(DIGEST) == DATA
    assert up(bulk, QUESTION, keep=True) == 200
    assert empty(bulk)
    assert spooled(bulk) == []
    with pytest.raises(DataLoss):
        up(bulk, chunks(0, 200, data=bytes(200), digest="0" * 64), keep=True)
    assert (empty(bulk), spooled(bulk)) == (True, [])


def test_a_clients_file_of_nothing_is_kept(bulk):
    digest = hashlib.sha256(b"").hexdigest()
    assert up(bulk, [UploadChunk("", digest, 0, 0, b"")], keep=True) == 0
    assert bulk.find(digest) == b""
    assert empty(bulk)


def test_uploads_lie_on_the_disk_until_the_last_tensor_is_closed(bulk):
    up(bulk, chunks(0, 100))
    assert [path.stat().st_size for path in spooled(bulk)] == [100]
    up(bulk, chunks(100, 200))
    found = bulk.received("s", [tensor("x"), tensor("y")])
    bulk.forget("s")
    found["x"].close()
    assert found["y"].read(3, 5).tolist() == [3, 4]
    found["y"].close()
    assert spooled(bulk) == []


def test_an_announcement_that_is_refused_keeps_the_files_and_holds_nothing(bulk):
    up(bulk, chunks(0, 200))
    for wrong in ([tensor("x"), tensor("y", digest="0" * 64)], [tensor("x"), tensor("x")]):
        with pytest.raises((NotFound, InvalidArgument)):
            bulk.received("s", wrong)
    bulk.received("s", [tensor("x")])["x"].close()
    assert (empty(bulk), spooled(bulk)) == (True, [])


def test_what_is_forgotten_leaves_the_disk(bulk):
    up(bulk, chunks(0, 100))
    bulk.forget("s")
    assert (empty(bulk), spooled(bulk)) == (True, [])


def test_what_nobody_asked_for_in_a_long_time_is_dropped(bulk, monkeypatch):
    up(bulk, chunks(0, 200))
    monkeypatch.setattr(rooms, "STALE_SECONDS", -1.0)
    other = hashlib.sha256(b"x").hexdigest()
    assert up(bulk, chunks(0, 1, data=b"x", digest=other)) == 1
    assert len(spooled(bulk)) == 1
    with pytest.raises(NotFound):
        bulk.received("s", [tensor()])
    bulk.received("s", [tensor(digest=other, size=1, data_type=DataType.INT8, shape=(1,))])
    assert empty(bulk)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    "digest", ["", "../x", DIGEST.upper(), DIGEST + "\n", pytest.param("0" * 4_000_000, id="long")]
)
def test_what_is_no_digest_is_neither_kept_nor_a_file(bulk, digest, keep):
    with pytest.raises(InvalidArgument, match="is no SHA-256 digest"):
        up(bulk, [UploadChunk("", digest, 0, 1, b"")], keep=keep)
    assert empty(bulk)
    # Nor behind one that is.
    with pytest.raises(InvalidArgument, match="is no SHA-256 digest"):
        up(bulk, [*chunks(0, 10), UploadChunk("", digest, 0, 1, b"")], keep=keep)
    assert digest not in bulk._uploads["s"]


@pytest.mark.parametrize("keep", [False, True])
def test_uploads_leave_the_disk_what_commits_need(bulk, monkeypatch, keep):
    left = 1000

    def require(folder, size):
        if size > left:
            raise DiskFull("no room")

    monkeypatch.setattr(rooms, "require_space", require)
    with pytest.raises(DiskFull):
        up(bulk, [UploadChunk("", DIGEST, 0, 1001, b"")], keep=keep)
    assert empty(bulk)
    up(bulk, chunks(0, 100), keep=keep)
    left = 99  # of others meanwhile
    with pytest.raises(DiskFull):
        up(bulk, chunks(100, 200), keep=keep)


def test_files_under_way_are_limited_in_number(bulk, monkeypatch):
    monkeypatch.setattr(rooms, "FILES_LIMIT", 2)
    files = [bytes([n]) for n in range(3)]
    digests = [hashlib.sha256(data).hexdigest() for data in files]
    for data, digest in zip(files[:2], digests, strict=False):
        up(bulk, chunks(0, 1, data=data, digest=digest))
    with pytest.raises(ResourceExhausted, match="2 files"):
        up(bulk, chunks(0, 1, data=files[2], digest=digests[2]))


def test_announced_sizes_count_before_their_bytes_come(bulk, monkeypatch):
    monkeypatch.setattr(rooms, "UPLOAD_LIMIT", 250)

    async def two():
        async def slow():
            yield chunks(0, 1)[0]
            with pytest.raises(ResourceExhausted):
                await bulk.upload("s", stream(chunks(0, 200, data=bytes(200), digest="0" * 64)), keep=False)

        await bulk.upload("s", slow(), keep=False)

    asyncio.run(two())


def test_progress_counts_chunks_and_knows_when_the_last_came(bulk, monkeypatch):
    assert bulk.progress("s") is None
    monkeypatch.setattr(rooms, "CHUNK", 64)
    up(bulk, QUESTION)
    announced = bulk.progress("s")
    assert announced[:2] == (0, 4)
    up(bulk, chunks(0, 64, 128))
    there = bulk.progress("s")
    assert (there.done, there.total) == (2, 4)
    assert there.last >= announced.last
    assert bulk.progress("s", since=there.last) == there
    assert bulk.progress("s", since=there.last + 1) is None
    up(bulk, chunks(128, 200))
    assert bulk.progress("s")[:2] == (4, 4)
    bulk.received("s", [tensor()])["x"].close()
    assert bulk.progress("s") is None


@given(st.integers(0, 5000))
def test_the_more_nodes_the_smaller_their_chunks(nodes):
    size = rooms.chunk_bytes(nodes)
    assert rooms.LEAST_CHUNK <= rooms.chunk_bytes(nodes + 1) <= size <= rooms.MOST_CHUNK
    assert nodes * size <= rooms.NODES_BYTES or size == rooms.LEAST_CHUNK
    assert (size == rooms.MOST_CHUNK) == (nodes <= 16)


@given(st.integers(0, 300), st.integers(0, 50), st.integers(1, 100))
def test_a_part_of_a_file_is_downloaded_from_any_offset(offset, begin, chunk):
    data = bytes(range(256))
    with State(None) as state, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms, "CHUNK", chunk)
        bulk = Bulk(state)
        path = state.directory / "file"
        path.write_bytes(b"?" * begin + data + b"?")
        digest = hashlib.sha256(data).hexdigest()
        bulk.lend_file(digest, path, begin, len(data))
        assert bulk.find(digest) == data
        if offset > len(data):
            with pytest.raises(InvalidArgument, match="past the file's 256 bytes"):
                down(bulk, digest, offset)
            return
        got = down(bulk, digest, offset)
        assert b"".join(c.data for c in got) == data[offset:]
        assert all(c.size == len(data) and len(c.data) <= chunk for c in got)
        bulk.take_back(digest)
        with pytest.raises(NotFound):
            down(bulk, digest)


def test_equal_bytes_in_two_files_are_there_as_long_as_one_is_lent(bulk):
    paths = [bulk._state.directory / name for name in ("one", "two")]
    for path in paths:
        path.write_bytes(DATA)
        bulk.lend_file(DIGEST, path, 0, len(DATA))
    bulk.lend(DATA)
    for path in paths:
        bulk.take_back(DIGEST)
        path.unlink()
        assert down(bulk, DIGEST)[0].data == DATA
    bulk.take_back(DIGEST)
    with pytest.raises(NotFound):
        down(bulk, DIGEST)


def test_blobs_and_the_library_are_downloaded_too(bulk):
    digest = bulk._state.put_blob(DATA)
    assert [(c.offset, c.size, c.data) for c in down(bulk, digest)] == [(0, 200, DATA)]
    assert [(c.offset, c.size, c.data) for c in down(bulk, digest, 200)] == []
    for known, data in bulk._library.items():
        assert b"".join(c.data for c in down(bulk, known)) == data
    for unknown in ("0" * 64, "../../etc/passwd"):
        with pytest.raises(NotFound):
            down(bulk, unknown)


def test_no_descriptor_of_a_download_that_breaks_stays_open(bulk):
    path = bulk._state.directory / "file"
    path.write_bytes(bytes(3 * rooms.CHUNK))
    bulk.lend_file(DIGEST, path, 0, 3 * rooms.CHUNK)

    async def broken():
        before = len(os.listdir("/proc/self/fd"))
        download = bulk.download(DownloadRequest("", DIGEST, 0))
        await anext(download)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        await download.aclose()
        assert len(os.listdir("/proc/self/fd")) == before
        path.write_bytes(b"")
        with pytest.raises(DataLoss, match="lost its end"):
            await anext(bulk.download(DownloadRequest("", DIGEST, 0)))

    asyncio.run(broken())
