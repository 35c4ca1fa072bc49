"""Tensors in bulk: what a node sends of a large contribution, and what it makes of what it downloads."""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np
import pytest

from edge_attention.core.errors import EdgeAttentionError, InvalidTensor
from edge_attention.core.program import BulkTensor, Contribution
from edge_attention.core.session import Chunk
from edge_attention.core.tensors import DataType, Encoded, Encoding
from edge_attention.wire.transfers import Transfers, split

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
        transfers = Transfers(lender, lambda direction, size: None)
        transfers.online(lender, "session")
        return await transfers.tensor(bulk, lender)

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
