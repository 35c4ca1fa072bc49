"""Asks one node for one answer, for as long as somebody wants it: a node that was away is asked again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aggregator.engine.bulk import Bulk
from aggregator.engine.dispatch import Dispatcher
from aggregator.engine.exchange import Assignment
from aggregator.engine.spool import SpooledTensor
from aggregator.fleet.membership import Membership
from aggregator.store.tensor_file import Spec
from aggregator.training.federated.push import Push
from edge_attention.core.errors import (
    DeadlineExceeded,
    EdgeAttentionError,
    InvalidArgument,
    InvalidTensor,
    NotFound,
)
from edge_attention.core.messages.program import Contribution, Instruction, Program
from edge_attention.core.tensors import Array, Encoded

Tensors = dict[str, Array | SpooledTensor]


@dataclass(frozen=True, eq=False)
class Answer:
    """What the node returned, and the seconds from asking it to its last word."""

    tensors: Mapping[str, Array | SpooledTensor]
    seconds: float


class Lacking(NotFound):
    """The node does not have a tensor that the program takes for granted: it has been restarted."""


class Refused(EdgeAttentionError):
    """The node was asked and cannot do it; says why.

    `hopeless`: asking again would not help. `wrong`: it finds the program wrong, which another may not.
    """

    def __init__(self, message: str, hopeless: bool = False, wrong: bool = False) -> None:
        super().__init__(message)
        self.hopeless, self.wrong = hopeless, wrong


class Asker:
    """Runs tasks on single nodes. `patience`: seconds a node may stay away, or take."""

    def __init__(self, dispatcher: Dispatcher, bulk: Bulk, membership: Membership, patience: float) -> None:
        self._dispatcher, self._bulk, self._membership = dispatcher, bulk, membership
        self._patience = patience

    async def ask(
        self,
        node: str,
        version: int,
        instructions: tuple[Instruction, ...],
        tensors: Mapping[str, Array],
        push: Push,
        wanted: Mapping[str, Spec],
        state: Callable[[bool], None],
    ) -> Answer:
        """The node's answer. `state(False)` is called when it is gone and `state(True)` when it is back.

        `wanted`: what it is to return, name -> (dtype, shape); nothing else is taken, and nothing twice.

        Raises:
            InvalidTensor: it returned something else.
            Lacking: something the program takes for granted is not there.
            Refused: the node found something wrong with it.
            DeadlineExceeded: it stayed away for longer than there is patience.
        """
        while True:
            found: Tensors = {}
            misfits: list[InvalidTensor] = []
            began = time.monotonic()
            inline, lent = self._bulk.lend_tensors(tensors)
            program = Program(
                "", node, range(1), instructions, version, self._patience,
                {**push.inline, **inline}, (*push.bulk, *lent),
            )  # fmt: skip

            def fold(
                assignment: Assignment,
                name: str,
                contribution: Contribution,
                found: Tensors = found,
                misfits: list[InvalidTensor] = misfits,
            ) -> None:
                if contribution.number == 0:
                    close(found)
                taken: Tensors = {}
                for key, tensor in contribution.tensors.items():
                    assert not isinstance(tensor, Encoded)  # that is how tensors leave, not how they come
                    if misfit := _misfit(key, tensor, wanted.get(key), key in found):
                        misfits.append(InvalidTensor(f"node {node!r} returned {misfit}"))
                        raise misfits[-1]
                    taken[key] = tensor
                found.update(taken)

            try:
                outcome = await self._dispatcher.run(
                    [Assignment(node, (node,), program)], self._patience, fold, spooled=True
                )
            except EdgeAttentionError as error:
                close(found)
                raise Refused(error.message, True, isinstance(error, InvalidArgument)) from None
            except BaseException:
                close(found)
                raise
            finally:
                for tensor in lent:
                    self._bulk.take_back(tensor.digest)
            if not outcome.missing:
                return Answer(found, time.monotonic() - began)
            close(found)
            if misfits:
                raise misfits[-1]
            reason = "; ".join(outcome.missing.values())
            if issubclass(outcome.causes.get(node, EdgeAttentionError), NotFound):
                raise Lacking(reason)
            if self._membership.live(node):
                raise Refused(reason)
            state(False)
            if not await self._dispatcher.all_live([node], self._patience, lambda sentence: None):
                raise DeadlineExceeded(f"node {node!r} did not come back within {self._patience:.0f} s")
            state(True)


def _misfit(name: str, tensor: Array | SpooledTensor, wanted: Spec | None, twice: bool) -> str:
    """What is wrong with a tensor returned, or nothing. Its numbers are not looked at."""
    if wanted is None:
        return f"{name[:80]!r}, which nobody asked for"
    if twice:
        return f"{name} twice"
    dtype, shape = wanted
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        return f"{name} as {tensor.dtype} {list(tensor.shape)}; it must be {dtype} {list(shape)}"
    return ""


def close(tensors: Tensors) -> None:
    """Free what lies on the disk, and forget all."""
    for tensor in tensors.values():
        if isinstance(tensor, SpooledTensor):
            tensor.close()
    tensors.clear()
