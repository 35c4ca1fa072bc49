"""Optimizers with a schedule and clipped gradients, written plainly in float64: what runs are measured by."""

from __future__ import annotations

import math

import numpy as np


def rate(name, lr, step, steps, warmup=0, floor=0.0, every=1, gamma=0.1):
    """The learning rate of step 1, 2, ... of `steps`."""
    if step <= warmup:
        return lr * step / (warmup + 1)
    done = (step - warmup - 1) / max(steps - warmup, 1)
    if name == "constant":
        return lr
    if name == "linear":
        return lr * (1 - (1 - floor) * done)
    if name == "cosine":
        return lr * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)
    assert name == "step"
    return lr * gamma ** ((step - warmup - 1) // every)


def clipped(gradients, most):
    """Scaled so that all of them together are no longer than `most`; 0: as they are."""
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients))
    factor = most / norm if most and norm > most else 1.0
    return [factor * g.astype(np.float64) for g in gradients]


def adam(parameters, gradients, m, v, step, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    """New parameters, first and second moments, lists of arrays each."""
    new = []
    for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
        m[i] = beta1 * m[i] + (1 - beta1) * g
        v[i] = beta2 * v[i] + (1 - beta2) * g * g
        root = np.sqrt(v[i] / (1 - beta2**step)) + eps
        new.append(p - lr * m[i] / (1 - beta1**step) / root)
    return new, m, v
