"""What an attention of a file computes, found by trying it.

What is between keys, values and queries has no weights but biases by distance. It is run on numbers, and what
it gives is held against attention as a node computes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.tensors import Array
from edge_attention.graphs.decoding.core_trial import CoreTrial
from edge_attention.graphs.decoding.cores import AttentionCore
from edge_attention.graphs.decoding.numbers_fed import NEAR
from edge_attention.graphs.decoding.step_graph import DecoderInputs, StepGraph, label

__all__ = ["FAR", "CoreForm", "form_of"]

FAR = 8192
"""Tokens before a row among which a window is looked for: nobody knows what the file sees beyond."""
_FAR_BYTES = 256 * 1024 * 1024
_BIASED_FAR = 2048
"""The same of biases by distance: some files make a table of all tokens by all tokens, and others add numbers
to scores that grow with the place, and are rounded."""
_BIASED = 1024
"""Distances that have biases of their own at most, but for those that fall with each token."""
_LEANS = 1e-3
"""By so much one of two tokens alike outweighs the other where there is a bias."""
_TOLD = 12.0
"""How much less likely a token may be, as a logarithm, for its weight to be read off a softmax."""
_ALONG, _ALONG_MOST = 2.0, 2.0**20
"""How long a key is in the direction of a query of length 1, to see what scores are multiplied by; at most,
to see whether they are capped."""
_BENT, _STRAIGHT, _FLAT = 0.02, 1e-5, 0.9999
"""By how much twice a score is less than double: enough to tell a cap; nothing. How near a cap is told."""
_LOW = (-10.0, -20.0, -40.0)
"""Scores at which a sink is looked for: what is below the last nobody sees."""
_CLOSE = 2e-4
"""Of what is tried on random numbers, relative to the largest: a wrong mask or scale is off by far more."""


@dataclass(frozen=True, eq=False)
class CoreForm:
    """What a core is: attention of so many query heads a key head, seen at distances up to `length`."""

    shared: int
    scale: float
    window: int
    length: int
    out: tuple[int, ...]
    """The shape of what it makes for one row."""
    bias: Array | None = None
    """What is added to scores by distance, f32 [groups, shared, distances]; the last is for all beyond."""
    cap: float = 0.0
    """c of c tanh(score / c); 0: none."""
    sinks: Array | None = None
    """By head a score that takes part in the softmax and has no value, f32 [groups, shared, 1]."""


def form_of(
    graph: StepGraph,
    inputs: DecoderInputs,
    core: AttentionCore,
    queries: Sequence[int],
    known: dict[bytes, CoreForm],
) -> CoreForm:
    """Find out what a core computes.

    Args:
        queries: the shape of its queries, for one row.
        known: of cores that were tried before; gets this one.

    Raises:
        FailedPrecondition: it is not attention over all tokens before, or over a window of them.
    """
    elements = math.prod(queries)
    if elements % (core.groups * core.widths[0]):
        raise FailedPrecondition(
            f"{label(core.node)}: queries {list(queries)} are not of heads of {core.widths[0]}"
        )
    shared = elements // (core.groups * core.widths[0])
    trial = CoreTrial(graph, inputs, core)
    signature = trial.signature + repr((list(queries), core.groups, core.widths, core.memory)).encode()
    if signature not in known:
        known[signature] = _Finding(core, trial, tuple(queries), shared).form()
    return known[signature]


class _Finding:
    """What one core computes, as it is found out by trying."""

    def __init__(self, core: AttentionCore, trial: CoreTrial, queries: tuple[int, ...], shared: int) -> None:
        self._core, self._trial = core, trial
        self._queries, self._shared = queries, shared
        self._rng = np.random.default_rng(7)
        self._heads = core.groups, shared
        one = self._rng.normal(size=core.widths[0])
        self._direction = one / np.linalg.norm(one)

    def form(self) -> CoreForm:
        core = self._core
        scale, cap, leans = self._scale()
        if leans:
            if core.memory:
                raise FailedPrecondition(f"{label(core.node)} favours some tokens of what the encoder made")
            far = self._most(_BIASED_FAR)
            bias = self._bias(far)
            count = bias.shape[-1]
            out = self._tried(scale, 0, {2, NEAR, min(count, far), min(count + 1, far), far}, bias)
            return CoreForm(self._shared, scale, 0, far, out, bias)
        sinks = self._sinks(scale, cap)
        most = _FAR_BYTES // (4 * core.groups * sum(core.widths))
        far = core.tokens or self._most(max(min(FAR, most), NEAR))
        window = self._window(far, sinks is not None)
        if core.memory and window:
            raise FailedPrecondition(f"{label(core.node)} does not see all of what the encoder made")
        lengths = {core.tokens or 2, core.tokens or NEAR, max(window, 1), min(window + 1, far), far}
        out = self._tried(scale, window, lengths, None, cap, sinks)
        return CoreForm(self._shared, scale, window, far, out, None, cap, sinks)

    def _most(self, far: int) -> int:
        """How many tokens it can be tried with, `far` at most: a file may have a mask of so many."""
        core = self._core

        def runs(tokens: int) -> bool:
            q, k, v = (
                np.zeros(shape, np.float32)
                for shape in (
                    self._queries,
                    (1, core.groups, tokens, core.widths[0]),
                    (1, core.groups, tokens, core.widths[1]),
                )
            )
            try:
                self._trial.run(q, k, v)
            except FailedPrecondition:
                return False
            return True

        if runs(far):
            return far
        low, high = 2, far  # with 2 it ran: the scale was found so
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if runs(middle) else (low, middle)
        # One beyond its table a file may run, with one number of it for all.
        beyond = low > 2 and not np.allclose(self._leaning(low), self._leaning(2), atol=_LEANS)
        return low - beyond

    def _leaning(self, tokens: int) -> Array:
        """By how much the last of so many tokens outweighs the one before, f64 [groups, shared]."""
        weights = np.concatenate(list(self._weights(tokens)), axis=-1)[..., -2:]
        return np.asarray(np.diff(np.log(np.maximum(weights, 1e-30)))[..., 0])

    def _tried(
        self,
        scale: float,
        window: int,
        lengths: set[int],
        bias: Array | None = None,
        cap: float = 0.0,
        sinks: Array | None = None,
    ) -> tuple[int, ...]:
        """Hold it against attention over so many tokens each; the shape of what it makes."""
        core = self._core
        at = f"{label(core.node)}"
        found = np.zeros(0)
        for tokens in sorted(n for n in lengths if n > 1 and core.tokens in (0, n)):
            q, k, v = self._random(tokens)
            wanted = self._attended(q, k, v, scale, window, bias, cap, sinks)
            found = self._trial.run(q, k, v)
            if found.size != wanted.size:
                raise FailedPrecondition(f"{at} makes {list(found.shape)}, no row a query head")
            off = np.abs(found.reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()
            if not off <= _CLOSE:
                raise FailedPrecondition(
                    f"{at} is not attention over all tokens before or over a window of them: tried with "
                    f"{tokens} tokens it is off by {off:.2g} (a bias that neither ends nor falls alike with "
                    "each token would be, or one beside a cap or a sink)"
                )
        return tuple(found.shape)

    def _attended(
        self,
        q: Array,
        k: Array,
        v: Array,
        scale: float,
        window: int,
        bias: Array | None,
        cap: float,
        sinks: Array | None,
    ) -> Array:
        core, tokens = self._core, k.shape[2]
        rows = q.reshape(core.groups, self._shared, core.widths[0]).astype(np.float64)
        scores = scale * np.einsum("gsd,gtd->gst", rows, k[0].astype(np.float64))
        if cap:
            scores = cap * np.tanh(scores / cap)
        if bias is not None:
            scores += bias[..., np.minimum(np.arange(tokens)[::-1], bias.shape[-1] - 1)]
        if window:
            scores[..., : max(tokens - window, 0)] = -np.inf
        if sinks is not None:
            scores = np.concatenate([scores, sinks.astype(np.float64)], axis=-1)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return np.asarray(np.einsum("gst,gte->gse", p[..., :tokens], v[0].astype(np.float64)))

    def _random(self, tokens: int) -> tuple[Array, Array, Array]:
        groups, (key_width, value_width) = self._core.groups, self._core.widths
        shapes = (self._queries, (1, groups, tokens, key_width), (1, groups, tokens, value_width))
        q, k, v = (self._rng.normal(size=shape).astype(np.float32) for shape in shapes)
        return q * np.float32(2.0), k, v

    def _scale(self) -> tuple[float, float, bool]:
        """By what scores are multiplied; c of c tanh(score / c), or 0; whether tokens alike are not.

        How much one of two tokens outweighs the other, as its key is along the query or against it. With a
        cap c that is f(x) = c tanh(scale x / c), of which f(2x) = 2 f(x) / (1 + f(x)^2 / c^2).
        """
        core = self._core
        along, against = self._odds(_ALONG), self._odds(-_ALONG)
        scales, leanings = (along - against) / (2 * _ALONG), (along + against) / 2
        scale = float(np.median(scales))
        if np.ptp(scales) > 1e-3 * abs(scale) + 1e-6:
            raise FailedPrecondition(f"{label(core.node)} has heads with scales of their own")
        leans, cap, length = bool(np.abs(leanings).max() > _LEANS), 0.0, _ALONG
        one = two = bent = 0.0
        while length < _ALONG_MOST and bent < _BENT and abs(two) < _TOLD:
            one, two = (float(np.median(self._odds(x) - self._odds(-x))) / 2 for x in (length, 2 * length))
            bent = 2 * one / two - 1 if two else 0.0
            length *= 2
        if bent > _STRAIGHT and abs(one) < abs(two):
            cap = abs(one) / math.sqrt(bent)
            plain = float(f"{cap:.3g}")
            cap = plain if math.isclose(cap, plain, rel_tol=1e-3) else cap
            scale = cap * math.atanh(max(min(one / cap, _FLAT), -_FLAT)) / (length / 2)
        for known in (core.widths[0] ** -0.5, 1.0, core.widths[0] ** -0.25, 1 / core.widths[0]):
            if math.isclose(scale, known, rel_tol=1e-4):
                scale = known
        return float(np.float32(scale)), float(np.float32(cap)), leans

    def _odds(self, length: float) -> Array:
        """By how much the second token outweighs the first, as a logarithm, f64 [heads], where its key is so
        long in the queries' direction, and the first one's, and those of more if there are, nothing."""
        core, tokens = self._core, self._core.tokens or 2
        k = np.zeros((1, core.groups, tokens, core.widths[0]), np.float32)
        k[:, :, 1] = length * self._direction
        weights = []
        for token in (0, 1):
            v = np.zeros((1, core.groups, tokens, core.widths[1]), np.float32)
            v[:, :, token] = 1
            found = self._trial.run(self._towards(np.ones(self._heads)), k, v).astype(np.float64)
            weights.append(found.reshape(*self._heads, -1)[..., 0])
        if not (np.minimum(*weights) > 0).all() or not (np.maximum(*weights) <= 1).all():
            raise FailedPrecondition(f"{label(core.node)} does not weigh tokens: it is no attention")
        return np.asarray(np.log(weights[1] / weights[0])).reshape(-1)

    def _towards(self, lengths: Array) -> Array:
        """Queries in the direction in which keys are tried, so long each, [groups, shared]."""
        return (lengths[..., None] * self._direction).reshape(self._queries).astype(np.float32)

    def _sinks(self, scale: float, cap: float) -> Array | None:
        """By head the score that takes part in the softmax and has no value, f32 [groups, shared, 1].

        Of tokens with the same score c all together weigh n exp(c) of n exp(c) + exp(sink): the lower c, the
        more is told; half each, the most.
        """
        core, tokens = self._core, self._core.tokens or 2
        k = np.zeros((1, core.groups, tokens, core.widths[0]), np.float32)
        k[:] = self._direction
        v = np.ones((1, core.groups, tokens, core.widths[1]), np.float32)

        def found(scores: Array) -> Array:
            """The sinks, as they are told at these scores; -inf: it is not seen that there is one."""
            lengths = cap * np.arctanh(np.clip(scores / cap, -_FLAT, _FLAT)) if cap else scores
            scores = cap * np.tanh(lengths / cap) if cap else scores
            seen = self._trial.run(self._towards(lengths / scale), k, v).astype(np.float64)
            weight = np.clip(seen.reshape(*self._heads, -1)[..., 0], 1e-30, 1.0)
            with np.errstate(divide="ignore"):
                told = np.where(1 - weight > 1e-5, np.log(tokens * (1 - weight) / weight), -np.inf)
            return np.asarray(told + scores)

        if not scale:
            return None
        sinks = np.full(self._heads, -np.inf)
        for score in (0.0, *_LOW):
            sinks = np.where(np.isinf(sinks), found(np.full(self._heads, score)), sinks)
        if np.isinf(sinks).all():
            return None
        sinks = np.where(np.isinf(sinks), -1e4, sinks)  # of a head without one: exp of it is 0
        near = np.maximum(sinks, _LOW[-1]) - math.log(tokens)
        told = found(near)
        return np.where(np.isinf(told), sinks, told)[..., None].astype(np.float32)

    def _bias(self, far: int) -> Array:
        """Biases by distance, f32 [groups, shared, distances]: those of each distance, where they end; or
        those that fall alike with each token (ALiBi)."""
        tokens = min(_BIASED, far)
        weights = np.concatenate(list(self._weights(tokens)), axis=-1)
        if (weights > 0).all():
            by_distance = np.log(weights)[..., ::-1]
            by_distance = by_distance - by_distance[..., -1:]
            own = np.flatnonzero((np.abs(by_distance) > 1e-5).any(axis=(0, 1)))
            count = int(own[-1]) + 2 if own.size else 1
            if count < tokens:
                return np.ascontiguousarray(by_distance[..., :count].astype(np.float32))
        away = self._slopes(far)[..., None] * np.arange(far)
        return np.ascontiguousarray(-away.astype(np.float32))

    def _weights(self, tokens: int) -> Iterator[Array]:
        """What tokens weigh that are alike but for their distance, [groups, shared, some], by parts."""
        core, width = self._core, self._core.widths[1]
        q = np.zeros(self._queries, np.float32)
        k = np.zeros((1, core.groups, tokens, core.widths[0]), np.float32)
        for start in range(0, tokens, width):
            count = min(width, tokens - start)
            v = np.zeros((1, core.groups, tokens, width), np.float32)
            v[:, :, np.arange(start, start + count), np.arange(count)] = 1
            found = self._trial.run(q, k, v).reshape(core.groups, self._shared, width)
            yield found[..., :count].astype(np.float64)

    def _slopes(self, far: int) -> Array:
        """By how much a score falls with each token that is further away, f64 [groups, shared].

        Of the first and the last of so many tokens that the first still weighs something.
        """
        core, found, tokens = self._core, np.full((self._core.groups, self._shared), np.nan), 2
        q = np.zeros(self._queries, np.float32)
        while tokens <= far:
            k = np.zeros((1, core.groups, tokens, core.widths[0]), np.float32)
            ends = []
            for place in (0, tokens - 1):
                v = np.zeros((1, core.groups, tokens, core.widths[1]), np.float32)
                v[:, :, place] = 1
                weight = self._trial.run(q, k, v).reshape(core.groups, self._shared, core.widths[1])
                ends.append(np.log(np.maximum(weight[..., 0].astype(np.float64), 1e-30)))
            falls = ends[1] - ends[0]
            told = np.abs(falls) < _TOLD
            if not told.any():
                break
            found = np.where(told, falls / (tokens - 1), found)
            tokens *= 2
        if np.isnan(found).any():
            raise FailedPrecondition(
                f"{label(core.node)} favours some tokens so much that others weigh nothing: it is no "
                "attention"
            )
        return found

    def _window(self, far: int, sunk: bool) -> int:
        """How many tokens a row sees of `far`; 0: all of them. By the mean of their numbers.

        `sunk`: of all weights tokens have only some.
        """
        key_width, value_width = self._core.widths
        k = np.zeros((1, self._core.groups, far, key_width), np.float32)
        numbers = (np.arange(far, dtype=np.float32) / far)[:, None]
        v = np.broadcast_to(numbers, (1, self._core.groups, far, value_width))
        given = np.zeros(self._queries, np.float32), k, np.ascontiguousarray(v)
        mean = self._trial.run(*given).astype(np.float64) * far
        if sunk:
            mean = mean / self._trial.run(*given[:2], np.ones_like(given[2])).astype(np.float64)
        seen = round(2 * (far - 1 - float(mean.mean())) + 1)
        return 0 if seen >= far else max(seen, 1)
