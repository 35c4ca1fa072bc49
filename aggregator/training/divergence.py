"""A run whose loss is no number any more, said as such: what has become of it, and what is likely to help."""

from __future__ import annotations

from edge_attention.core.errors import FailedPrecondition, NotFinite
from edge_attention.core.messages.training import TrainingRound

__all__ = ["Diverged", "NotANumber", "diverged", "unevaluated"]


class NotANumber(NotFinite):
    """`what` of a model is not finite."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not finite")
        self.what = what


class Diverged(FailedPrecondition):
    """What ends a run that diverged: resumed, it would do so again."""


def diverged(
    what: str,
    number: int,
    rate: float | None,
    last: TrainingRound | None,
    remedy: str,
    each: str = "round",
) -> Diverged:
    """Why a run ends in round `number`, in which `what` is not finite. `each`: what its rounds are called.

    `rate`: the learning rate that parameters have moved by, or are moved by on nodes in this very round;
    None: no step was taken yet. `last`: the record of the round before, if there is one. `remedy`: what
    to change.

    >>> print(diverged("the loss", 1, None, None, "").message)  # doctest: +ELLIPSIS
    the loss is not finite from round 1 on: no step was taken before, so it is not the learning rate: look...
    """
    said = f"{what} is not finite from {each} {number} on: "
    if rate is None:
        return Diverged(
            f"{said}no step was taken before, so it is not the learning rate: look for NaN, infinity or very "
            "large numbers in the data, and in the model's initial values"
        )
    said += f"a learning rate of {rate:g} is likely too high; "
    if last is not None and last.number:
        said += f"the last finite loss was {last.loss:.6g}, of {each} {last.number}"
    else:
        said += "no loss was finite before, so look at the data, too: NaN, or numbers too large"
    return Diverged(f"{said}. To mend it: {remedy}")


def unevaluated(
    error: str,
    number: int,
    rate: float | None,
    last: TrainingRound | None,
    remedy: str,
    each: str = "round",
) -> Diverged:
    """Why a run ends after round `number`: what the model gives of held-out samples is not finite. See
    `diverged`.

    >>> print(unevaluated("node a: NaN", 0, None, None, "").message)  # doctest: +ELLIPSIS
    what the model gives of the held-out samples (node a: NaN) is not finite after round 0: look for NaN, ...
    """
    said = f"what the model gives of the held-out samples ({error}) is not finite after {each} {number}"
    if last is not None and last.number:
        said += f", whose loss was {last.loss:.6g}"
    said += ": look for NaN, infinity or very large numbers among them"
    if rate is not None and number:
        said += f"; or the learning rate, {rate:g}, is too high: {remedy}"
    return Diverged(said)
