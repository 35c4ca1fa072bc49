"""Files by digest: lent down, uploaded in chunks, taken once for each time they were sent."""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np
import pytest

from aggregator.bulk import Bulk
from aggregator.state import State
from edge_attention.core.errors import DataLoss, InvalidArgument, InvalidTensor, NotFound
from edge_attention.core.program import BulkTensor
from edge_attention.core.session import DownloadRequest, UploadChunk
from edge_attention.core.tensors import DataType, Encoding


@pytest.fixture
def bulk():
    with State(None) as state:
        yield Bulk(state)


def upload(bulk, data, *cuts, sender="s", digest=None, keep=False):
    digest = digest or hashlib.sha256(data).hexdigest()

    async def chunks():
        for start, stop in zip((0, *cuts), (*cuts, len(data)), strict=True):
            yield UploadChunk("s", digest, start, len(data), data[start:stop])

    return asyncio.run(bulk.upload(sender, chunks(), keep)).received


def tensor(name, array):
    data = array.tobytes()
    digest = hashlib.sha256(data).hexdigest()
    return BulkTensor(name, DataType.FLOAT32, array.shape, Encoding.RAW, digest, len(data))


def test_tensors_of_equal_bytes_are_one_file_and_are_gone_after(bulk):
    zeros = np.zeros((3, 4), np.float32)
    assert upload(bulk, zeros.tobytes(), 10, 20) == zeros.nbytes
    found = bulk.received("s", [tensor("a", zeros), tensor("b", zeros)])
    assert found.keys() == {"a", "b"}
    assert (found["b"] == zeros).all()
    with pytest.raises(NotFound, match="'a'"):
        bulk.received("s", [tensor("a", zeros)])


def test_a_file_sent_twice_is_there_twice(bulk):
    ones = np.ones(5, np.float32)
    upload(bulk, ones.tobytes())
    upload(bulk, ones.tobytes())
    for _ in range(2):
        assert (bulk.received("s", [tensor("a", ones)])["a"] == 1).all()
    with pytest.raises(NotFound):
        bulk.received("s", [tensor("a", ones)])


def test_nobody_takes_anothers_file_and_a_wrong_shape_is_refused(bulk):
    ones = np.ones(6, np.float32)
    upload(bulk, ones.tobytes())
    with pytest.raises(NotFound):
        bulk.received("other", [tensor("a", ones)])
    wrong = BulkTensor("a", DataType.FLOAT32, (7,), Encoding.RAW, tensor("a", ones).digest, ones.nbytes)
    with pytest.raises(InvalidTensor):
        bulk.received("s", [wrong])


def test_a_damaged_file_is_refused_and_a_gap_too(bulk):
    with pytest.raises(DataLoss):
        upload(bulk, b"hello", digest="0" * 64)

    async def gap():
        yield UploadChunk("s", "1" * 64, 3, 10, b"abc")

    with pytest.raises(InvalidArgument):
        asyncio.run(bulk.upload("s", gap(), keep=False))


def test_a_download_goes_on_from_any_offset_until_the_loan_ends(bulk):
    data = np.random.default_rng(0).bytes(2_500_000)
    digest = bulk.lend(data)
    for offset in (0, 1, 1_048_576, 2_499_999):

        async def down(offset=offset):
            request = DownloadRequest("s", digest, offset)
            return b"".join([chunk.data async for chunk in bulk.download(request)])

        assert asyncio.run(down()) == data[offset:]
    bulk.take_back(digest)
    with pytest.raises(NotFound):
        bulk.find(digest)
