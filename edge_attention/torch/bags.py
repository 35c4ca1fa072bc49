"""`nn.EmbeddingBag` in operators that have gradients: PyTorch's exporter writes a loop over sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["plain_bags"]


@contextmanager
def plain_bags(module: nn.Module) -> Iterator[None]:
    """Within it bags are lookups and a sum, mean or max: of one length, `[batch, length]`, and by offsets."""
    bags = [
        one for one in module.modules() if isinstance(one, nn.EmbeddingBag) and "forward" not in vars(one)
    ]
    try:
        for one in bags:
            one.forward = _plain(one)
        yield
    finally:
        for one in bags:
            vars(one).pop("forward", None)


def _plain(bag: nn.EmbeddingBag) -> Callable[..., Tensor]:
    given = bag.forward

    def forward(
        input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        if offsets is not None and input.dim() == 1:
            return _by_offsets(bag, input, offsets, per_sample_weights)
        if offsets is not None or input.dim() != 2:
            return given(input, offsets, per_sample_weights)
        rows = nn.functional.embedding(input, bag.weight)  # [batch, length, width]
        if per_sample_weights is not None:
            rows = rows * per_sample_weights.unsqueeze(-1)
        if bag.padding_idx is None:
            return rows.amax(1) if bag.mode == "max" else rows.sum(1) if bag.mode == "sum" else rows.mean(1)
        counts = (input != bag.padding_idx).unsqueeze(-1)
        found = counts.any(1)  # [batch, 1]: a bag of padding alone is 0
        if bag.mode == "max":
            return torch.where(found, rows.masked_fill(~counts, -torch.inf).amax(1), 0.0)
        total = rows.masked_fill(~counts, 0.0).sum(1)
        return total if bag.mode == "sum" else total / counts.sum(1).clamp(min=1).to(rows.dtype)

    return forward


def _by_offsets(bag: nn.EmbeddingBag, input: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
    """input [tokens], offsets [bags], where each begins: [bags, width]. A bag that is empty is 0."""
    rows = nn.functional.embedding(input, bag.weight)  # [tokens, width]
    if weights is not None:
        rows = rows * weights.unsqueeze(-1)
    begins = offsets[:-1] if bag.include_last_offset else offsets
    at = torch.arange(input.shape[0], device=input.device)
    bag_of = (begins.unsqueeze(1) <= at).sum(0) - 1  # [tokens]
    held = torch.arange(begins.shape[0], device=input.device).unsqueeze(1) == bag_of  # [bags, tokens]
    if bag.padding_idx is not None:
        held = held & (input != bag.padding_idx)
    if bag.mode == "max":
        found = held.unsqueeze(-1)
        return torch.where(found.any(1), rows.masked_fill(~found, -torch.inf).amax(1), 0.0)
    total = held.to(rows.dtype) @ rows
    return total if bag.mode == "sum" else total / held.sum(1, keepdim=True).clamp(min=1).to(rows.dtype)
