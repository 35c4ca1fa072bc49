"""The end of a round: updates folded, the server's step taken, the new version written, piece by piece.

For each parameter, piece by piece of at most PIECE elements: read the piece of every update, combine them
(core/combine), step the server's optimizer (core/strategies), write. Only pieces are ever in memory, so
neither the size of the model nor the number of nodes matters; rows are in the nodes' order, so the same
updates give the same bits whenever they came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from aggregator.store.behind import Writer
from aggregator.training.divergence import Diverged
from aggregator.training.federated.plan import PIECE, FederatedPlan
from aggregator.training.federated.updates import Update, piece_of, pieces
from edge_attention.core.clipping import clip_factor, global_norm, squared_norm
from edge_attention.core.combine import Combine
from edge_attention.core.encodings import Int8, UpdateEncoding
from edge_attention.core.strategies import Strategy
from edge_attention.core.strategies.scaffold import next_control, next_global_control
from edge_attention.core.tensors import Array


class Reader(Protocol):
    def read(self, name: str, start: int, stop: int) -> Array: ...


@dataclass(frozen=True)
class Folded:
    """What folding found: by node its weight, and |O_i - O'|^2 if asked."""

    weights: Mapping[str, float]
    distances: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Folder:
    """Folds the rounds of one run. `nodes`: all of the run's, in order (SCAFFOLD keeps a control of each).

    `strategy_at`, `local_lr`: the server's strategy, and the learning rate of nodes' steps, of a round.
    `clip`: above 0: the L2 norm of what is folded, over all parameters, is at most that.
    """

    plan: FederatedPlan
    strategy: Strategy
    combine: Combine
    encoding: UpdateEncoding
    nodes: tuple[str, ...]
    local_lr: Callable[[int], float]
    equal: bool
    push: UpdateEncoding | None = None
    strategy_at: Callable[[int], Strategy] | None = None
    clip: float = 0.0

    def difference_specs(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """The difference to the version before, as it is pushed: name -> (dtype, shape)."""
        assert self.push is not None
        found: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for index, shape in enumerate(self.plan.shapes):
            found |= self.push.specs(index, shape, "difference")
        return found

    def state_specs(self) -> dict[str, tuple[np.dtype[np.float32], tuple[int, ...]]]:
        """The server's state: name -> (dtype, shape)."""
        found: dict[str, tuple[np.dtype[np.float32], tuple[int, ...]]] = {}
        for index, shape in enumerate(self.plan.shapes):
            names = [f"s/{slot}/{index}" for slot in self.strategy.slots]
            if self.push is not None:
                names.append(f"push/{index}")
            if self.strategy.controls:
                names += [f"c/{index}", *(f"ci/{node}/{index}" for node in self.nodes)]
            found |= {name: (np.dtype(np.float32), shape) for name in names}
        return found

    def fold(
        self,
        updates: Sequence[Update],
        count: int,
        old: Reader,
        state: Reader | None,
        new: Writer,
        new_state: Writer | None,
        difference: Writer | None = None,
        distances: bool = False,
    ) -> Folded:
        """Take server step `count` (from 1) with `updates`, in the order of nodes; write what comes of it.

        With `difference` the new version is the old one plus what nodes will decode of it; what that loses
        is carried over to the next step.

        Raises:
            Diverged: the step overflows.
            InvalidArgument: the combine cannot work with so few updates.
        """
        # Where no label of any node counts, all weigh alike: none of them moves anything.
        alike = self.equal or not any(u.counted for u in updates)
        samples = [1.0 if alike else u.counted for u in updates]
        staleness = [u.staleness for u in updates]
        weigh = self.strategy.weight
        given = np.array([weigh(s, late) for s, late in zip(samples, staleness, strict=True)], np.float64)
        norms = np.array([u.squared_norm for u in updates], np.float64) ** 0.5
        squares = self._distances(updates) if self.combine.needs == "distances" else None
        weights = self.combine.weights(given, norms, squares)
        damping = np.float32(self.strategy.damping(samples, staleness))
        damping *= np.float32(self._clip_factor(updates, weights, damping))
        strategy = self.strategy if self.strategy_at is None else self.strategy_at(count)
        apart = np.zeros(len(updates))
        piece = self._piece(len(updates))
        room = np.empty((len(updates), min(piece, max(self.plan.sizes, default=1))), np.float32)
        for index, size in enumerate(self.plan.sizes):
            for start, stop in pieces(size, piece):
                rows = room[:, : stop - start]
                for row, update in zip(rows, updates, strict=True):
                    row[:] = piece_of(update, self.plan, self.encoding, index, start, stop)
                folded = damping * self.combine.fold(rows, weights)
                before = old.read(f"p/{index}", start, stop)
                held = [
                    state.read(f"s/{slot}/{index}", start, stop) if state is not None
                    else np.full(stop - start, self.strategy.initial(slot), np.float32)
                    for slot in self.strategy.slots
                ]  # fmt: skip
                with np.errstate(all="ignore"):  # an overflow is found below, with the name it deserves
                    after, *slots = strategy.step(count, before, folded, *held)
                if not all(np.isfinite(array).all() for array in (after, *slots)):
                    raise Diverged(
                        f"the server's step makes {self.plan.names[index]} overflow; lower the learning rates"
                    )
                if difference is not None and new_state is not None:
                    carried = self._held(state, f"push/{index}", start, stop)
                    wanted = after + carried
                    after = before + self._push(difference, index, start, wanted - before)
                    new_state.write_at(f"push/{index}", start, wanted - after)
                new.write_at(f"p/{index}", start, after)
                if new_state is not None:
                    for slot, array in zip(self.strategy.slots, slots, strict=True):
                        new_state.write_at(f"s/{slot}/{index}", start, array)
                    if self.strategy.controls:
                        self._controls(updates, rows, index, start, stop, state, new_state, count)
                if distances:
                    # O_i - O' = (before - u_i) - after
                    apart += [float(np.square(before - row - after, dtype=np.float64).sum()) for row in rows]
        nodes = [u.node for u in updates]
        return Folded(
            dict(zip(nodes, (float(w) for w in weights), strict=True)),
            dict(zip(nodes, apart.tolist(), strict=True)) if distances else {},
        )

    def _clip_factor(self, updates: Sequence[Update], weights: Array, damping: np.float32) -> float:
        """What the folded update is multiplied by so that it is no longer than `clip`: it is folded twice."""
        if not self.clip:
            return 1.0
        squares = []
        for index, size in enumerate(self.plan.sizes):
            for start, stop in pieces(size, self._piece(len(updates))):
                rows = np.stack([piece_of(u, self.plan, self.encoding, index, start, stop) for u in updates])
                squares.append(squared_norm(damping * self.combine.fold(rows, weights)))
        return clip_factor(global_norm(squares), self.clip)

    def control(self, node: str, state: Reader | None, index: int, start: int, stop: int) -> Array:
        """c - c_i, what SCAFFOLD's nodes add to their gradients; zero before the first round."""
        if state is None:
            return np.zeros(stop - start, np.float32)
        c, own = (state.read(name, start, stop) for name in (f"c/{index}", f"ci/{node}/{index}"))
        return np.asarray(c - own, np.float32)

    def _piece(self, updates: int) -> int:
        """Elements in memory at a time of each update: a power of two, less the more updates there are."""
        # Of a push in blocks, pieces are whole blocks.
        least = self.push.block if isinstance(self.push, Int8) else 1 << 12
        return max(least, min(PIECE, 1 << (4 * PIECE // updates).bit_length() - 1))

    def _held(self, state: Reader | None, name: str, start: int, stop: int) -> Array:
        return np.zeros(stop - start, np.float32) if state is None else state.read(name, start, stop)

    def _push(self, difference: Writer, index: int, start: int, piece: Array) -> Array:
        """Write a piece of the difference, encoded; what nodes make of it."""
        assert self.push is not None
        tensors = self.push.encode_array(index, piece, "difference")
        # A piece is whole blocks, but for a parameter's last; of int8's two parts the second is one a block.
        numbers, *scales = self.push.parts(index, "difference")
        difference.write_at(numbers, start, tensors[numbers].reshape(-1))
        if isinstance(self.push, Int8):
            for name in scales:
                difference.write_at(name, start // self.push.block, tensors[name])
        return self.push.decode_array(index, piece.shape, tensors, "difference")

    def _distances(self, updates: Sequence[Update]) -> Array:
        """Squared distances between all pairs: float64 [n, n]."""
        found = np.zeros((len(updates), len(updates)))
        for index, size in enumerate(self.plan.sizes):
            for start, stop in pieces(size, self._piece(len(updates))):
                rows = [piece_of(u, self.plan, self.encoding, index, start, stop) for u in updates]
                for a in range(len(rows)):
                    for b in range(a):
                        gap = rows[a].astype(np.float64) - rows[b]
                        found[a, b] += float(np.dot(gap, gap))
        return found + found.T

    def _controls(
        self, updates: Sequence[Update], rows: Array, index: int, start: int, stop: int,
        state: Reader | None, new_state: Writer, count: int,
    ) -> None:  # fmt: skip
        """SCAFFOLD's c_i of those who took part, and c; of the others as they were."""
        size = stop - start
        zero = np.zeros(size, np.float32)

        def held(name: str) -> Array:
            return zero if state is None else state.read(name, start, stop)

        c = held(f"c/{index}")
        changes = np.zeros(size, np.float64)
        by_node = dict(zip((u.node for u in updates), zip(updates, rows, strict=True), strict=True))
        for node in self.nodes:
            own = held(f"ci/{node}/{index}")
            if node in by_node:
                update, row = by_node[node]
                after = next_control(own, c, row, update.steps, self.local_lr(count))
                changes += after.astype(np.float64) - own
                own = after
            new_state.write_at(f"ci/{node}/{index}", start, own)
        new_state.write_at(f"c/{index}", start, next_global_control(c, changes, len(self.nodes)))
