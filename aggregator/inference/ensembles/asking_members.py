"""One request to an ensemble: its members are asked at once, and who has not answered in time is absent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from aggregator.bounds.callers_in_turn import CallersInTurn
from aggregator.engine.endings import to_the_end
from aggregator.inference.protocol.data_plane import DataPlane
from aggregator.inference.protocol.served import CheckedRequest
from edge_attention.core.datatypes import NUMPY, datatype_of
from edge_attention.core.ensembles.ensemble import EnsembleMember, EnsembleSpec, How
from edge_attention.core.ensembles.meeting_outputs import attended, attention_of, met, require_attendable
from edge_attention.core.errors import (
    DeadlineExceeded,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    InvalidGraph,
    InvalidProgram,
    InvalidTensor,
    NotFound,
    Unavailable,
)
from edge_attention.core.messages.open_inference import (
    Datatype,
    InferenceRequest,
    NamedTensor,
    RequestedOutput,
)
from edge_attention.core.tensors import Array, DataType

__all__ = ["MASS", "MemberAnswers", "answer", "ask_members"]

Made = TypeVar("Made")

MASS = "mass"
"""The output with each member's share of attention."""
DEPTH = 4
"""Ensembles of ensembles: a member may be one, so many deep."""
LEFT = 0.1
"""Of the request's time, what is kept for its outputs to meet."""

_CHANGED = "{what} was deployed anew, with other inputs or outputs: deploy the ensemble again"

_depth: ContextVar[int] = ContextVar("ensemble depth", default=0)
_THEIRS = (InvalidArgument, InvalidTensor)
"""Errors of whoever sent the request, whichever member finds them."""
_OURS = (InvalidGraph, InvalidProgram)
"""Of these, a model's."""


def _named(who: str, error: EdgeAttentionError) -> EdgeAttentionError:
    """The error of one of the ensemble's models as the ensemble's, which is there: NOT_FOUND would say that
    it is not."""
    cls = FailedPrecondition if isinstance(error, NotFound) else type(error)
    named = cls(f"{who}: {error.message}")
    named.retry_after = error.retry_after
    return named


@dataclass(frozen=True, eq=False)
class MemberAnswers:
    """Attributes:
    outputs: member -> its outputs, of those that answered.
    absent: member -> why it did not.
    lacking: of those that answered, what their own answers lack.
    """

    outputs: Mapping[str, Mapping[str, Array]]
    absent: Mapping[str, str]
    lacking: Mapping[str, str]

    @property
    def said(self) -> str:
        """In words, what an answer of these lacks; empty: nothing."""
        found = [f"member {name}: {why}" for name, why in (*self.absent.items(), *self.lacking.items())]
        return "; ".join(found)


async def ask_members(ensemble: EnsembleSpec, plane: DataPlane, request: CheckedRequest) -> MemberAnswers:
    """Ask them all at once.

    Raises:
        InvalidArgument, InvalidTensor: a member finds an input wrong; names it.
        EdgeAttentionError: a member that is needed does not answer, and why; or none does.
        FailedPrecondition: the model of one that is needed is not deployed, or was with other tensors.
    """
    if _depth.get() >= DEPTH:
        raise InvalidArgument(
            f"bound DEPTH: ensembles of ensembles are {DEPTH} deep at most; these are deeper, or go round"
        )
    seconds = min(ensemble.seconds or request.seconds, request.seconds * (1 - LEFT))
    until = time.monotonic() + seconds
    token = _depth.set(_depth.get() + 1)
    try:
        tasks = {
            asyncio.create_task(_asked(ensemble, member, plane, request, seconds)): member
            for member in ensemble.members
        }
    finally:
        _depth.reset(token)
    outputs: dict[str, Mapping[str, Array]] = {}
    absent: dict[str, str] = {}
    lacking: dict[str, str] = {}
    late = True  # all who are absent are so for want of time
    pending = set(tasks)
    try:
        while pending:
            left = until - time.monotonic()
            done, pending = await asyncio.wait(
                pending, timeout=max(left, 0.0), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                member = tasks[task]
                try:
                    outputs[member.name], said = task.result()
                except EdgeAttentionError as error:
                    theirs = isinstance(error, _THEIRS) and not isinstance(error, _OURS)
                    if theirs or member.name in ensemble.needed:
                        raise _named(f"member '{member.name}'", error) from None
                    absent[member.name] = error.message
                    late = late and isinstance(error, DeadlineExceeded)
                else:
                    if said:
                        lacking[member.name] = said
            if not done:
                break
        for task in pending:
            name = tasks[task].name
            why = f"no answer in {ensemble.seconds or request.seconds:g} s"
            if name in ensemble.needed:
                raise DeadlineExceeded(f"member '{name}', which is needed: {why}")
            absent[name] = why
    finally:
        for task in tasks:
            task.cancel()
        try:
            await to_the_end(asyncio.wait(tasks))
        finally:
            for task in tasks:
                if not task.cancelled():
                    task.exception()  # of several that failed the first was told
    order = [member.name for member in ensemble.members]
    if not outputs:
        why = "; ".join(f"{name}: {absent[name]}" for name in order)
        cls = DeadlineExceeded if late else Unavailable
        raise cls(f"no member of the ensemble answered ({why})")
    return MemberAnswers(outputs, {name: absent[name] for name in order if name in absent}, lacking)


async def _asked(
    ensemble: EnsembleSpec, member: EnsembleMember, plane: DataPlane, request: CheckedRequest, seconds: float
) -> tuple[Mapping[str, Array], str]:
    """The member's outputs that meet, and what its answer lacks."""
    metadata = plane.model_metadata(member.model, member.version)
    inputs = []
    for one in metadata.inputs:
        array = request.feeds.get(member.inputs.get(one.name, one.name))
        if array is None or _numpy(one.datatype) != array.dtype:
            raise FailedPrecondition(_CHANGED.format(what=f"model '{member.model}'"))
        inputs.append(NamedTensor(one.name, one.datatype, tuple(array.shape), array))
    try:
        names = outputs_of(ensemble, member, [one.name for one in metadata.outputs])
    except InvalidArgument:
        raise FailedPrecondition(_CHANGED.format(what=f"model '{member.model}'")) from None
    answered = await plane.infer(
        InferenceRequest(
            member.model,
            member.version,
            request.id,
            {"priority": request.priority},
            inputs=tuple(inputs),
            outputs=tuple(RequestedOutput(name) for name in names),
            seconds=seconds,
        ),
        request.caller,
        request.room,
    )
    found = {one.name: one.data for one in answered.outputs if isinstance(one.data, np.ndarray)}
    said = answered.parameters.get("lacking", "") if not answered.parameters.get("exact", True) else ""
    return {name: found[name] for name in names}, str(said)


def outputs_of(ensemble: EnsembleSpec, member: EnsembleMember, known: list[str]) -> tuple[str, ...]:
    """The member's outputs that meet.

    Raises:
        InvalidArgument: its model has none such.
    """
    if ensemble.how is How.ATTENTION:
        names: tuple[str, ...] = (member.keys, member.values)
    elif member.output:
        names = (member.output,)
    elif len(known) == 1:
        names = (known[0],)
    else:
        raise InvalidArgument(
            f"member '{member.name}': model '{member.model}' has the outputs {', '.join(known)}: say which "
            "one meets the others, as output"
        )
    if lacking := [name for name in names if name not in known]:
        raise InvalidArgument(
            f"member '{member.name}': model '{member.model}' has no output '{lacking[0]}'; it has "
            f"{', '.join(known)}"
        )
    return names


async def answer(
    ensemble: EnsembleSpec,
    plane: DataPlane,
    request: CheckedRequest,
    answers: MemberAnswers,
    shapes: Mapping[str, tuple[int, ...]],
    seconds: float,
    turns: CallersInTurn,
) -> dict[str, Array]:
    """The ensemble's outputs.

    Args:
        shapes: of CONCATENATE: by member, its output's shape; -1 where it is open.
        seconds: that are left, for a turn and for a head.
        turns: at letting outputs meet, which takes a thread its time.

    Raises:
        ResourceExhausted: too many queries for so many keys.
        DeadlineExceeded: others' outputs met all that time.
        InvalidTensor: members' outputs do not fit together.
        EdgeAttentionError: the head does not answer.
    """
    until = time.monotonic() + seconds
    if ensemble.how is not How.ATTENTION:
        found = {name: next(iter(outputs.values())) for name, outputs in answers.outputs.items()}
        like = next(iter(found.values())).shape
        absent = () if ensemble.how is How.MEAN else answers.absent
        zeros = {name: _filled(shapes[name], like, ensemble.axis, name) for name in absent}
        return {ensemble.output: await _in_turn(turns, request.caller, seconds, met, ensemble, found, zeros)}
    queries = ensemble.queries
    if isinstance(queries, str):
        given = request.feeds[queries]
        if given.ndim != 4 or given.dtype != np.float32:
            raise InvalidTensor(
                f"queries '{queries}' are {given.dtype} {list(given.shape)}; float32 "
                "[batch, queries, heads, dim] they must be"
            )
    else:
        batch = next(iter(next(iter(answers.outputs.values())).values())).shape[:1]
        given = np.broadcast_to(queries, (*batch, *queries.shape))
    came = [(m, answers.outputs[m.name]) for m in ensemble.members if m.name in answers.outputs]
    require_attendable(given, [(outputs[m.keys], outputs[m.values]) for m, outputs in came])
    fused, shares = await _in_turn(turns, request.caller, seconds, _attended, ensemble, given, answers)
    if not ensemble.head:
        return {ensemble.output: fused, MASS: shares}
    head = f"head '{ensemble.head}'"
    try:
        inputs = plane.model_metadata(ensemble.head).inputs
    except NotFound as error:
        raise _named(head, error) from None
    if len(inputs) != 1:
        raise FailedPrecondition(_CHANGED.format(what=head))
    (one,) = inputs
    asked = InferenceRequest(
        ensemble.head,
        "",
        request.id,
        {"priority": request.priority},
        inputs=(NamedTensor(one.name, one.datatype, fused.shape, fused),),
        seconds=max(until - time.monotonic(), 1e-3),
    )
    try:
        answered = await plane.infer(asked, request.caller, request.room)
    except EdgeAttentionError as error:
        raise _named(head, error) from None
    return {o.name: o.data for o in answered.outputs if isinstance(o.data, np.ndarray)} | {MASS: shares}


async def _in_turn(
    turns: CallersInTurn, caller: str, seconds: float, work: Callable[..., Made], *given: Any
) -> Made:
    """What `work` makes of `given`, in a thread, when it is the caller's turn, to its end."""
    try:
        async with asyncio.timeout(seconds):
            await turns.enter(caller)
    except TimeoutError:
        raise DeadlineExceeded(
            f"the members' outputs waited {seconds:.3g} s for those of other requests to meet"
        ) from None
    try:
        return await to_the_end(asyncio.to_thread(work, *given))
    finally:
        turns.leave(caller)


def _attended(ensemble: EnsembleSpec, queries: Array, answers: MemberAnswers) -> tuple[Array, Array]:
    partials, places = [], []
    for place, member in enumerate(ensemble.members):
        outputs = answers.outputs.get(member.name)
        if outputs is not None:
            what = f"member '{member.name}'"
            keys, values = outputs[member.keys], outputs[member.values]
            partials.append(attention_of(queries, keys, values, ensemble.scale, what))
            places.append(place)
    fused, shares = attended(partials)
    # A member that is absent received nothing.
    masses = np.zeros((shares.shape[0], len(ensemble.members)), np.float32)
    masses[:, places] = shares
    return fused, masses


def _filled(shape: tuple[int, ...], like: tuple[int, ...], axis: int, name: str) -> tuple[int, ...]:
    """The shape of what stands for a member: where it is open, as of those that answered."""
    if len(shape) != len(like) or shape[axis] < 0:
        raise Unavailable(
            f"member '{name}' is absent, and how many zeros stand for it is not known: its model leaves the "
            "size open"
        )
    return tuple(size if size >= 0 else other for size, other in zip(shape, like, strict=True))


FLOAT32 = datatype_of(DataType.FLOAT32)


def _numpy(datatype: str) -> np.dtype[Any]:
    return NUMPY[Datatype(datatype)]
