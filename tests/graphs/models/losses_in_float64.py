"""The standard losses written out in float64, as PyTorch defines them: weighted means over what counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def log_softmax(z: Array, axis: int) -> Array:
    shifted = z - z.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def _rows(weights: Array | None, rank: int) -> Array:
    return np.ones([1] * rank) if weights is None else weights.reshape(-1, *[1] * (rank - 1))


def _divided(total: float, counted: float) -> float:
    return total / counted if counted else 0.0


def cross_entropy(
    z: Array,
    y: NDArray[np.int64],
    *,
    axis: int = -1,
    class_weights: tuple[float, ...] = (),
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    weights: Array | None = None,
) -> tuple[float, float]:
    """The loss, and what counts, in rows."""
    log_p = np.moveaxis(log_softmax(z, axis), axis, -1)
    classes = log_p.shape[-1]
    of_class = np.asarray(class_weights or np.ones(classes), np.float64)
    total = counted = 0.0
    rows = np.broadcast_to(_rows(weights, y.ndim), y.shape)
    for at in np.ndindex(y.shape):
        if y[at] == ignore_index:
            continue
        label, each = y[at], log_p[at]
        own = (1 - label_smoothing) * of_class[label] * -each[label]
        smooth = label_smoothing / classes * float(np.sum(of_class * -each))
        total += rows[at] * (own + smooth)
        counted += rows[at] * of_class[label]
    return _divided(total, counted), counted / (y.size // len(y))


def binary_cross_entropy(
    z: Array,
    y: Array,
    *,
    positive_weights: tuple[float, ...] = (),
    ignore_index: int | None = None,
    weights: Array | None = None,
) -> tuple[float, float]:
    z = z.reshape(y.shape)
    p = np.asarray(positive_weights or 1.0, np.float64)
    each = p * y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)
    counts = np.broadcast_to(_rows(weights, y.ndim), y.shape) * (y != ignore_index)
    return _divided(float((each * counts).sum()), float(counts.sum())), counts.sum() / (y.size // len(y))


def difference(power: int, z: Array, y: Array, *, weights: Array | None = None) -> tuple[float, float]:
    each = np.abs(z.reshape(y.shape) - y) ** power
    counts = np.broadcast_to(_rows(weights, y.ndim), y.shape)
    return _divided(float((each * counts).sum()), float(counts.sum())), counts.sum() / (y.size // len(y))


def slope(loss: Callable[[Array], float], at: Array) -> Array:
    """The gradient by central differences, in float64: to about 1e-9."""
    found = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = 1e-5
        found[index] = (loss(at + step) - loss(at - step)) / 2e-5
    return found
