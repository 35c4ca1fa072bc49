"""Files going up: in any chunks, broken off, alike, damaged; nothing of them stays."""

from __future__ import annotations

import asyncio
import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator import bulk as rooms
from aggregator.bulk import Bulk
from aggregator.state import State
from edge_attention.core.errors import DataLoss, InvalidArgument, InvalidTensor, NotFound, ResourceExhausted
from edge_attention.core.program import BulkTensor
from edge_attention.core.session import UploadChunk
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


@given(st.sets(st.integers(1, len(DATA) - 1), max_size=5), st.integers(0, len(DATA)))
def test_a_file_comes_whole_however_it_is_cut_and_broken_off(cuts, broken):
    with State(None) as state:
        bulk = Bulk(state)
        first = sorted({0, *(cut for cut in cuts if cut <= broken)})
        there = up(bulk, chunks(*first)) if len(first) > 1 else 0
        assert up(bulk, QUESTION) == there
        assert up(bulk, chunks(there, *sorted(c for c in cuts if c > there), len(DATA))) == len(DATA)
        np.testing.assert_array_equal(bulk.received("s", [tensor()])["x"], ARRAY)
        assert empty(bulk)


def test_two_calls_that_send_the_same_file_each_have_it(bulk):
    async def both():
        calls = (bulk.upload("s", stream(chunks(0, 80, 150, 200)), keep=False) for _ in range(2))
        return await asyncio.gather(*calls)

    assert [done.received for done in asyncio.run(both())] == [200, 200]
    for _ in range(2):
        np.testing.assert_array_equal(bulk.received("s", [tensor()])["x"], ARRAY)
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
    np.testing.assert_array_equal(bulk.received("s", [tensor()])["x"], ARRAY)
    assert empty(bulk)


def test_what_was_broken_off_makes_room(bulk, monkeypatch):
    monkeypatch.setattr(rooms, "UPLOAD_LIMIT", 250)
    assert up(bulk, chunks(0, 100)) == 100
    other = bytes(200)
    digest = hashlib.sha256(other).hexdigest()
    assert up(bulk, chunks(0, 200, data=other, digest=digest)) == 200
    with pytest.raises(ResourceExhausted):
        up(bulk, chunks(0, 200))
    assert bulk.received("s", [tensor(digest=digest)])["x"].sum() == 0
    assert empty(bulk)


@pytest.mark.parametrize(
    ("items", "error"),
    [
        (chunks(10, 200), InvalidArgument),
        ([UploadChunk("", DIGEST, 0, 10, DATA)], InvalidArgument),
        (chunks(0, 200, digest="0" * 64), DataLoss),
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
    np.testing.assert_array_equal(found["y"].ravel(), found["x"])
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
