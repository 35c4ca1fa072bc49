"""What a node is asked that has all of a model: its graph, once, with the inputs of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aggregator.engine.trip import Wanted
from aggregator.inference.calls import KnownWeight, weight_name
from edge_attention.core.messages.inference import ModelTensor
from edge_attention.core.messages.program import Frozen, Instruction, Return, Run, Stored, Value
from edge_attention.core.schedule.whole import WholeModel
from edge_attention.core.tensors import Array, Encoding

__all__ = ["WholeCall"]


@dataclass(frozen=True, eq=False)
class WholeCall:
    """The same for all requests, of whatever sizes: those travel with the inputs.

    Attributes:
        places: input of the model -> where it is put for a task.
        wanted: what comes back: types are known, shapes are what they turn out to be.
    """

    instructions: tuple[Instruction, ...]
    frozen: tuple[Frozen, ...]
    places: Mapping[str, str]
    wanted: Mapping[str, Wanted]

    @classmethod
    def of(
        cls,
        deployment: str,
        whole: WholeModel,
        weights: Mapping[str, KnownWeight],
        inputs: Sequence[ModelTensor],
        outputs: Sequence[ModelTensor],
    ) -> WholeCall:
        stored = {name: weight_name(deployment, weights[name]) for name in whole.weights}
        places = {one.name: f"task/i{number}" for number, one in enumerate(inputs)}
        made = {one.name: f"task/o{number}" for number, one in enumerate(outputs)}
        taken: dict[str, Value] = {name: Stored(place) for name, place in {**stored, **places}.items()}
        frozen = {stored[name]: weights[name].digest for name in whole.weights}
        return cls(
            (
                Run(whole.graph, taken, made),
                *(Return(place, name, Encoding.RAW) for name, place in made.items()),
            ),
            tuple(Frozen(name, digest) for name, digest in sorted(frozen.items())),
            places,
            {one.name: (np.dtype(one.data_type.value), None) for one in outputs},
        )

    def tensors(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What a task is brought."""
        # Not ascontiguousarray: that makes a scalar a vector.
        return {place: np.asarray(feeds[name], order="C") for name, place in self.places.items()}
