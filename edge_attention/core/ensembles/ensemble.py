"""What an ensemble is: models that answer one request at once, and how their outputs meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Float32

__all__ = ["Absent", "EnsembleMember", "EnsembleSpec", "How"]


class How(Enum):
    """How the members' outputs meet."""

    MEAN = "mean"
    """Their weighted mean, of those that answered."""
    CONCATENATE = "concatenate"
    """Side by side along an axis, in the members' order."""
    ATTENTION = "attention"
    """The ensemble's queries attend to the keys and values of all members, as if these were one model's."""


class Absent(Enum):
    """What stands for a member that did not answer where outputs are side by side."""

    REFUSE = "refuse"
    ZEROS = "zeros"


@dataclass(frozen=True)
class EnsembleMember:
    """A model that is asked.

    Attributes:
        name: what answers call it: of a modality, say.
        model: the deployed model; `version` of it, "" for the one that serves.
        inputs: input of the model -> input of the ensemble; those not named have the same name in both.
        output: that meets, of MEAN and CONCATENATE; "": the model's only one.
        keys, values: outputs float32 [batch, tokens, heads, dim], of ATTENTION.
        weight: of MEAN.
    """

    name: str
    model: str
    version: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    output: str = ""
    keys: str = "keys"
    values: str = "values"
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class EnsembleSpec:
    """Models that answer one request at once.

    Attributes:
        output: what the ensemble's own output is called.
        seconds: which members have; who has not answered by then is absent. None: what the request has.
        needs: members without which there is no answer.
        axis, absent: of CONCATENATE.
        queries: of ATTENTION: float32 [queries, heads, dim], or the ensemble's input that brings them,
            float32 [batch, queries, heads, dim].
        scale: of ATTENTION, what scores are multiplied by; None: one by the root of dim.
        head: of ATTENTION: a deployed model that gets what was attended to, float32 [batch, queries, heads,
            value_dim], as its only input, and answers for the ensemble; "": that itself is the answer.
    """

    members: tuple[EnsembleMember, ...]
    how: How
    output: str = "output"
    seconds: float | None = None
    needs: frozenset[str] = frozenset()
    axis: int = -1
    absent: Absent = Absent.REFUSE
    queries: Float32 | str = ""
    scale: float | None = None
    head: str = ""

    def check(self) -> None:
        """Raises InvalidArgument for what cannot be."""
        names = [member.name for member in self.members]
        if not names:
            raise InvalidArgument("an ensemble has members: add [[member]] with name and model")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidArgument(f"two members are called '{twice[0]}'; give each a name of its own")
        if unknown := sorted(self.needs - set(names)):
            raise InvalidArgument(f"needs names '{unknown[0]}'; the members are {', '.join(names)}")
        if self.how is How.MEAN and not sum(member.weight for member in self.members) > 0:
            raise InvalidArgument("the members' weights add up to nothing; give one a weight above 0")
        if self.how is How.ATTENTION and isinstance(self.queries, str) and not self.queries:
            raise InvalidArgument(
                "attention needs queries: the name of an input that brings them, or their numbers "
                "[queries, heads, dim]"
            )

    @property
    def needed(self) -> frozenset[str]:
        """Members without which there is no answer."""
        if self.how is How.CONCATENATE and self.absent is Absent.REFUSE:
            return frozenset(member.name for member in self.members)
        return self.needs
