"""Random weights that make a model do something: as initialised, attention is even and biases are zero."""

from __future__ import annotations

import torch

__all__ = ["liven"]


def liven(model: torch.nn.Module) -> None:
    """Give matrices values of about 1 / sqrt(width), and every other vector values of its own.

    The other vectors stay as they are, all ones or zeros: exporters store those once for all their uses, and
    a reader must not take them for one weight.
    """
    generator = torch.Generator().manual_seed(5)
    vectors = 0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                width = min(parameter.shape[0], parameter[0].numel())
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.2 / width**0.5)
            else:
                vectors += 1
                if vectors % 2:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
