"""What attend and append give back, and how the parts of a divided call become one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edge_attention.core.errors import DataLoss, Unavailable
from edge_attention.core.fold import join as joined
from edge_attention.core.messages.attention import AttendResponse, Bound, Missing, Segment, ShardMass
from edge_attention.core.tensors import Array, Encoded, Float32

__all__ = ["Answer", "Appended", "InexactAnswer", "form", "join", "lacking", "milliseconds"]

_RANGES = 4
"""Of ranges and gaps, shown at most."""


@dataclass(frozen=True, eq=False)
class Answer:
    """Attention of some queries over a context. Arrays are read-only or the caller's own.

    Attributes:
        out: float32 [queries, query_heads, value_dim].
        lse: natural logarithm of the sum of exp(score), float32 [queries, query_heads].
        exact: it stands on every token the queries may see.
        coverage: the position ranges it stands on, of those that some query may see (causal, window, until).
        mass: node -> float32 [queries, query_heads], the share of global attention the node's tokens
            received; sums to 1 over nodes, for queries that see a token.
        shards: the same by shard.
        tokens: tokens of the context when it was asked.
        weights: every token's global attention weight, float32 [queries, query_heads, tokens], if asked for;
            NaN for tokens of missing shards.
        bound: |out - exact out| <= bound.error; None if exact, or if no bound can be given.
        missing: the shards it does not stand on, and why.
        seconds: the server's stages and, as `client`, the whole call seen from here. Of a call divided in
            several, which overlap, the server's are means.
        calls: how many calls it was divided in.
    """

    out: Float32
    lse: Float32
    exact: bool
    coverage: tuple[range, ...]
    mass: Mapping[str, Float32]
    shards: tuple[ShardMass, ...]
    tokens: int
    weights: Float32 | None = None
    bound: Bound | None = None
    missing: tuple[Missing, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    calls: int = 1

    def __repr__(self) -> str:
        """A few lines; no numbers of arrays, but their forms."""
        said = "exact" if self.exact else "partial"
        lines = [
            f"Answer: {said}, out {form(self.out)}, lse {form(self.lse)}"
            + ("" if self.weights is None else f", weights {form(self.weights)}"),
            f"  stands on {sum(map(len, self.coverage)):,} of {self.tokens:,} tokens: "
            f"{_ranges(self.coverage)}",
        ]
        if self.mass:
            shares = {node: float(np.mean(mass)) for node, mass in self.mass.items() if mass.size}
            lines.append("  attention by node: " + ", ".join(f"{n} {s:.1%}" for n, s in shares.items()))
        if self.missing:
            lines.append("  missing: " + "; ".join(_gaps(self.missing)))
        if self.bound is not None and self.bound.error.size:
            lines.append(f"  at most {float(self.bound.error.max()):.3g} off")
        if self.seconds:
            lines.append(f"  {milliseconds(self.seconds)}")
        return "\n".join(lines)


class InexactAnswer(Unavailable):
    """What `attend(require_exact=True)` raises. `answer`: what there was of it, labelled."""

    def __init__(self, message: str, answer: Answer) -> None:
        super().__init__(message)
        self.answer = answer


def lacking(answer: Answer, context: str) -> str:
    """One sentence: what a partial answer over `context` does not stand on, why, and what to do."""
    return (
        f"the answer over context {context!r} is partial, and an exact one was required; it lacks "
        f"{'; '.join(_gaps(answer.missing)) or 'tokens that its queries may see'}. Give it a longer "
        "deadline, have the nodes back, or take it as it is (require_exact=False)"
    )


def form(array: Array) -> str:
    """An array in words, without its numbers."""
    return f"{array.dtype} {list(array.shape)}"


def milliseconds(seconds: Mapping[str, float]) -> str:
    """Times by name, in milliseconds."""
    return ", ".join(f"{name} {1e3 * spent:.1f} ms" for name, spent in seconds.items())


def _ranges(ranges: Sequence[range]) -> str:
    shown = ", ".join(f"{part.start:,} to {part.stop - 1:,}" for part in ranges[:_RANGES])
    more = len(ranges) - _RANGES
    return (shown or "none") + (f" and {more:,} more ranges" if more > 0 else "")


def _gaps(missing: Sequence[Missing]) -> list[str]:
    gaps = [
        f"{gap.count:,} tokens of {' and '.join(gap.holders)} ({gap.reason})" for gap in missing[:_RANGES]
    ]
    more = len(missing) - _RANGES
    return [*gaps, f"{more:,} more shards"] if more > 0 else gaps


@dataclass(frozen=True)
class Appended:
    """Where appended tokens went: their positions, as one range unless others appended meanwhile."""

    ranges: tuple[range, ...]
    segments: tuple[Segment, ...]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ranges))

    def __repr__(self) -> str:
        nodes = sorted({holder for segment in self.segments for holder in segment.holders})
        return f"Appended: {self.tokens:,} tokens as positions {_ranges(self.ranges)}, on {', '.join(nodes)}"


def join(parts: Sequence[AttendResponse], client_seconds: float) -> Answer:
    """One answer of the replies to consecutive groups of the same queries."""
    outs = [_array(part) for part in parts]
    shards = _shards(parts)
    mass: dict[str, Float32] = {}
    for shard in shards:
        mass[shard.node] = mass[shard.node] + shard.mass if shard.node in mass else shard.mass
    missing = _missing(parts)
    covered = joined(stretch for part in parts for stretch in part.coverage)
    if len(parts) > 1:  # what one of them lacks the whole does not stand on
        covered = _without(covered, joined(stretch for gap in missing for stretch in gap.stretches))
    seconds: dict[str, float] = {}
    for part in parts:
        for stage, spent in part.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent / len(parts)
    return Answer(
        out=_concatenated(outs),
        lse=_concatenated([part.lse for part in parts]),
        exact=all(part.exact for part in parts),
        coverage=covered,
        mass=mass,
        shards=shards,
        tokens=min(part.tokens for part in parts),
        weights=_weights(parts),
        bound=_bound(parts, outs),
        missing=missing,
        seconds=seconds | {"client": client_seconds},
        calls=len(parts),
    )


def _missing(parts: Sequence[AttendResponse]) -> tuple[Missing, ...]:
    """Each shard that some part lacks, with all that parts lack of it: their queries see others of its
    tokens."""
    found: dict[str, Missing] = {}
    for gap in (gap for part in parts for gap in part.missing):
        before = found.setdefault(gap.shard, gap)
        if before.stretches != gap.stretches:
            found[gap.shard] = _both(before, gap)
    return tuple(found.values())


def _both(one: Missing, other: Missing) -> Missing:
    """What is missing of a shard, of two parts' queries."""
    stretches = joined((*one.stretches, *other.stretches))
    bounds = tuple(edge for part in stretches for edge in (part.start, part.stop))
    return replace(
        other,
        tokens=range(stretches[0].start, stretches[-1].stop),
        count=sum(map(len, stretches)),
        bounds=bounds if len(stretches) > 1 else (),
    )


def _without(ranges: tuple[range, ...], gaps: tuple[range, ...]) -> tuple[range, ...]:
    """`ranges` less `gaps`, both in order and apart."""
    left: list[range] = []
    at = 0
    for whole in ranges:
        while at < len(gaps) and gaps[at].stop <= whole.start:
            at += 1
        start, ahead = whole.start, at
        while ahead < len(gaps) and gaps[ahead].start < whole.stop:
            left.append(range(start, max(start, gaps[ahead].start)))
            start = gaps[ahead].stop
            ahead += 1
        at = max(at, ahead - 1)  # the last of them may reach into the next
        left.append(range(start, max(start, whole.stop)))
    return tuple(part for part in left if part)


def _array(part: AttendResponse) -> Float32:
    return part.out.array if isinstance(part.out, Encoded) else part.out


def _concatenated(arrays: Sequence[Float32]) -> Float32:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _shards(parts: Sequence[AttendResponse]) -> tuple[ShardMass, ...]:
    """The masses by shard and node; zero for the groups of queries that saw nothing of a shard."""
    if len(parts) == 1:
        return parts[0].mass
    lse = _concatenated([part.lse for part in parts])
    found: dict[tuple[str, str], ShardMass] = {}
    at = 0
    for part in parts:
        count = len(part.lse)
        for shard in part.mass:
            key = shard.shard, shard.node
            if key not in found:
                found[key] = ShardMass(shard.shard, shard.node, shard.tokens, np.zeros_like(lse))
            found[key].mass[at : at + count] = shard.mass
        at += count
    return tuple(sorted(found.values(), key=lambda shard: (shard.tokens.start, shard.shard, shard.node)))


def _weights(parts: Sequence[AttendResponse]) -> Float32 | None:
    weights = [part.weights for part in parts if part.weights is not None]
    if not weights:
        return None
    if len(weights) < len(parts):
        raise DataLoss("some replies of one call carry weights and some do not; ask again")
    # The context may have grown between two groups; `until` kept the queries from seeing that.
    tokens = min(array.shape[-1] for array in weights)
    return _concatenated([array[..., :tokens] for array in weights])


def _bound(parts: Sequence[AttendResponse], outs: Sequence[Float32]) -> Bound | None:
    labelled = [part.bound for part in parts if not part.exact]
    known = [bound for bound in labelled if bound is not None]
    if not labelled or len(known) < len(labelled):
        return None
    errors = [
        np.zeros_like(out) if part.bound is None else part.bound.error
        for part, out in zip(parts, outs, strict=True)
    ]
    return Bound(_concatenated(errors), all(bound.tight for bound in known))
