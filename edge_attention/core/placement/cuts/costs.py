"""What a model costs, layer by layer, for one batch and length: work, weights, and what crosses its cuts.

A layer is what lies between two narrow places, as in `core/schedule/plan.py`. Bytes are of the tensors as the
model has them; a plan that sends halves sends half of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edge_attention.core.schedule.plan import Cut

__all__ = ["AttentionBytes", "LayerCosts", "LayerWork", "ModelCosts", "Sharing"]


@dataclass(frozen=True)
class LayerWork:
    """What operators do.

    Attributes:
        flops: of matrix products and convolutions, two for a multiplication and its addition.
        moved: bytes that all other operators read and write, activations only.
        operators: how many run.
    """

    flops: float = 0.0
    moved: float = 0.0
    operators: float = 0.0

    def __add__(self, other: LayerWork) -> LayerWork:
        return LayerWork(self.flops + other.flops, self.moved + other.moved, self.operators + other.operators)

    def shared(self, whole: LayerWork, share: float) -> LayerWork:
        """A part's work: of what is not `whole` its share, and as many operators as all of it has."""
        return LayerWork(
            whole.flops + share * max(self.flops - whole.flops, 0.0),
            whole.moved + share * max(self.moved - whole.moved, 0.0),
            self.operators,
        )


@dataclass(frozen=True)
class Sharing:
    """What of a layer cannot be shared by some cut: every part has it whole.

    Attributes:
        work: each part does it.
        weights: bytes of weights that each part holds, beside its share of the others.
    """

    work: LayerWork = LayerWork()
    weights: int = 0


@dataclass(frozen=True)
class AttentionBytes:
    """Whole tensors of one attention, in bytes, which parts that share tokens pass on."""

    keys_values: int
    queries: int
    out: int
    lse: int = 0


@dataclass(frozen=True)
class LayerCosts:
    """One layer.

    Attributes:
        work: of all of it.
        weights: bytes of all its weights.
        out: bytes of the activation at its end, or of the model's outputs.
        shared: by cut what is whole there; a cut that is not in it is not to be had in this layer.
            NONE needs no entry.
        attentions: in order.
        sums: bytes of each tensor that parts by heads add up, in order.
        again: bytes of weights that an earlier layer reads, too: (how many layers before, bytes), as of an
            embedding that is the last product's matrix as well. Who has both layers holds them once.
    """

    work: LayerWork
    weights: int
    out: int
    shared: Mapping[Cut, Sharing]
    attentions: tuple[AttentionBytes, ...] = ()
    sums: tuple[int, ...] = ()
    again: tuple[tuple[int, int], ...] = ()

    def part_work(self, cut: Cut, share: float) -> LayerWork:
        return self.work if cut is Cut.NONE else self.work.shared(self.shared[cut].work, share)

    def part_weights(self, cut: Cut, share: float) -> float:
        """Bytes. By tokens or batch each part has all of them, which is what `Sharing.weights` says."""
        if cut is Cut.NONE:
            return self.weights
        whole = self.shared[cut].weights
        return whole + share * (self.weights - whole)


@dataclass(frozen=True)
class ModelCosts:
    """A model for inputs of one shape.

    Attributes:
        layers: in order.
        feeds: bytes of its inputs.
        rows: of its matrix products: batch times tokens. A part by tokens or batch has its share of them.
        units: by cut into how many pieces at most its axis falls: samples, tokens, heads.
        refused: cut -> why it cannot be had anywhere in this model.
    """

    layers: tuple[LayerCosts, ...]
    feeds: int
    rows: int
    units: Mapping[Cut, int]
    refused: Mapping[Cut, str]

    @property
    def weights(self) -> int:
        """Bytes of all weights, each once."""
        return sum(layer.weights for layer in self.layers) - self.held_twice(range(len(self.layers)))

    def held(self, layers: range, cut: Cut, share: float) -> float:
        """Bytes of weights of a part that has `share` of these layers."""
        each = sum(self.layers[number].part_weights(cut, share) for number in layers)
        return max(each - self.held_twice(layers), 0.0)

    def held_twice(self, layers: range) -> int:
        """Bytes that the layers' own sums count more often than once."""
        return sum(
            size
            for number in layers
            for before, size in self.layers[number].again
            if number - before >= layers.start
        )

    def in_one(self) -> ModelCosts:
        """The same model as one layer: one box does all of it, or several do it as replicas."""
        work = sum((layer.work for layer in self.layers), LayerWork())
        return replace(self, layers=(LayerCosts(work, self.weights, self.layers[-1].out, {}),), units={})

    def allows(self, cut: Cut, layers: range) -> bool:
        """Whether parts can share these layers so."""
        if cut is Cut.NONE:
            return True
        return self.units.get(cut, 0) > 1 and all(cut in self.layers[n].shared for n in layers)
