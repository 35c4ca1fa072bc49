"""The demo's second half: a long context over the nodes, attended exactly; then one node is killed."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.client.results import Answer
from edge_attention.client.sync import Client, Context
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.tensors import Array, Float32
from edge_attention.demo.figures import Bytes, PartialAnswer

TOKENS, QUERY_HEADS, KEY_HEADS, DIM = 49_152, 8, 2, 64
DEADLINE = 5.0


@dataclass(frozen=True, eq=False)
class Memory:
    """A context's keys and values, as only the demo keeps them: to compare."""

    keys: Float32
    values: Float32

    @classmethod
    def random(cls, seed: int = 0) -> Memory:
        """Keys that drift over time, so that attention is not the same everywhere."""
        rng = np.random.default_rng(seed)
        drift = np.cumsum(rng.standard_normal((TOKENS, KEY_HEADS, DIM), np.float32), axis=0) / TOKENS**0.5
        keys = rng.standard_normal((TOKENS, KEY_HEADS, DIM), np.float32) + drift
        return cls(keys, rng.standard_normal((TOKENS, KEY_HEADS, DIM), np.float32))

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def attention(self, queries: Float32) -> Array:
        """Attention over all of it in float64, written plainly: the reference."""
        group = QUERY_HEADS // KEY_HEADS
        out = np.empty((*queries.shape[:2], DIM), np.float64)
        for head in range(QUERY_HEADS):
            keys = self.keys[:, head // group].astype(np.float64)
            scores = queries[:, head].astype(np.float64) @ keys.T / DIM**0.5
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[:, head] = weights @ self.values[:, head // group].astype(np.float64)
        return out


def queries(count: int, seed: int = 1) -> Float32:
    return np.random.default_rng(seed).standard_normal((count, QUERY_HEADS, DIM)).astype(np.float32)


def error(answer: Answer, reference: Array) -> float:
    """The largest difference of any element from the reference."""
    return float(np.abs(answer.out - reference).max())


def spread(client: Client, memory: Memory, progress: Callable[[int, int], None]) -> Context:
    """Append the memory to a new context, placed over the nodes."""
    context = client.create_context(
        "memory", query_heads=QUERY_HEADS, key_heads=KEY_HEADS, key_dim=DIM, value_dim=DIM
    )
    context.append(memory.keys, memory.values, progress=progress)
    return context


@dataclass
class Meter:
    """Reads the aggregator's own metrics."""

    url: str
    _since: dict[str, float] = field(default_factory=dict)

    def read(self, metric: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(self.url, timeout=5) as response:
            text = response.read().decode()
        rows = re.findall(rf"^edge_attention_aggregator_{metric}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, rows))

    def mark(self, metric: str) -> None:
        self._since[metric] = self.read(metric)

    def since(self, metric: str) -> float:
        return self.read(metric) - self._since[metric]


def attend_measured(context: Context, asked: Float32, meter: Meter, memory: Memory) -> tuple[Answer, Bytes]:
    """One attend and the bytes between aggregator and nodes meanwhile."""
    meter.mark("bytes_total")
    answer = context.attend(asked)
    return answer, Bytes(int(meter.since("bytes_total")), memory.nbytes)


def kill_in_the_middle(
    fleet: LocalFleet,
    context: Context,
    victim: str,
    meter: Meter,
    memory: Memory,
    restart: Callable[[], None],
) -> PartialAnswer:
    """Ask much, kill -9 `victim` once the nodes have sent their first results, and look at the answer.

    Raises:
        FailedPrecondition: the node answered before it could be killed, again and again.
    """
    for count in (192, 384, 768):
        asked = queries(count, seed=2)
        meter.mark("contributions_total")
        found: list[Answer | BaseException] = []

        def ask(asked: Float32 = asked, found: list[Answer | BaseException] = found) -> None:
            try:
                found.append(context.attend(asked, deadline=DEADLINE))
            except BaseException as problem:
                found.append(problem)

        thread = threading.Thread(target=ask)
        thread.start()
        # With a deadline each node sends its lse before its out: three are in, so the bound is tight.
        end = time.monotonic() + DEADLINE
        while meter.since("contributions_total") < len(fleet.children) - 1 and time.monotonic() < end:
            time.sleep(0.002)
        fleet.kill(victim)
        thread.join()
        answer = found[0]
        if isinstance(answer, BaseException):
            raise answer
        if not answer.exact and answer.bound is not None:
            difference = np.abs(answer.out - memory.attention(asked))
            return PartialAnswer(
                exact=answer.exact,
                coverage=[[r.start, r.stop] for r in answer.coverage],
                covered=sum(map(len, answer.coverage)) / answer.tokens,
                bound=float(answer.bound.error.max()),
                tight=answer.bound.tight,
                actual_error=float(difference.max()),
                holds=bool((difference <= answer.bound.error + 1e-5).all()),
                missing="; ".join(m.reason for m in answer.missing),
            )
        restart()
    raise FailedPrecondition("the node answered before it could be killed; is this machine very fast?")
