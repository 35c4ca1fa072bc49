"""Tensors that a call has no room for: offered for the node to fetch, and known by their digests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np

from aggregator.engine.bulk import Bulk
from aggregator.inference.calls import SentTensor
from aggregator.inference.delivery import ArrayBytes, digest_of
from edge_attention.core.messages.program import BulkTensor
from edge_attention.core.tensors import Array, DataType

__all__ = ["lend"]


async def lend(
    bulk: Bulk, tensors: Mapping[str, tuple[SentTensor, Array]], loans: list[str]
) -> tuple[BulkTensor, ...]:
    """Offer what a call has no room for. `loans`: gets the digests that the caller takes back."""
    lent: list[BulkTensor] = []
    for name, (tensor, array) in tensors.items():
        data = ArrayBytes(array)
        digest = await asyncio.to_thread(digest_of, data)
        bulk.lend_source(digest, data)
        loans.append(digest)
        data_type = DataType.of(np.dtype(tensor.form.dtype))
        lent.append(BulkTensor(name, data_type, tensor.form.shape, tensor.encoding, digest, data.nbytes))
    return tuple(lent)
