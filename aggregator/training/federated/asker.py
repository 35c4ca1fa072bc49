"""Asks one node for one answer, for as long as somebody wants it: a node that was away is asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from aggregator.engine.outcome import MissingKind
from aggregator.engine.returned import Returned, ReturnedTensor, close
from aggregator.engine.trip import Errand, Trips
from aggregator.fleet.membership import Membership
from aggregator.store.tensor_file import Spec
from aggregator.training.federated.push import Push
from aggregator.training.known_data import KnownData, other_now
from edge_attention.core.errors import (
    DeadlineExceeded,
    EdgeAttentionError,
    InvalidArgument,
    InvalidTensor,
    NotFound,
)
from edge_attention.core.messages.program import Instruction
from edge_attention.core.tensors import Array


@dataclass(frozen=True, eq=False)
class NodeAnswer:
    """What the node returned, and the seconds from asking it to its last word."""

    tensors: Mapping[str, ReturnedTensor]
    seconds: float


class Lacking(NotFound):
    """The node does not have a tensor that the program takes for granted: it has been restarted."""


class Refused(EdgeAttentionError):
    """The node was asked and cannot do it; says why.

    `hopeless`: asking again would not help. `wrong`: it finds the program wrong, which another may not.
    """

    def __init__(self, message: str, hopeless: bool = False, wrong: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless
        self.wrong = wrong


class OtherData(Refused):
    """The node has other data than the run began with."""


class Asker:
    """Runs tasks on single nodes. `patience`: seconds a node may stay away, or take.

    `releases`: texts of what nodes need to let leave. `data`: what nodes had when the run began; one that has
    other data is not asked. `others`: told of all such nodes when these change: node -> a sentence on its
    data.
    """

    def __init__(
        self,
        trips: Trips,
        membership: Membership,
        patience: float,
        releases: tuple[str, ...] = (),
        data: Iterable[KnownData] = (),
        others: Callable[[Mapping[str, str]], None] = lambda others: None,
    ) -> None:
        self._trips = trips
        self._membership = membership
        self._patience = patience
        self._releases = releases
        self._data = {known.node: known for known in data}
        self._tell_others = others
        self._others: dict[str, str] = {}

    async def ask(
        self,
        node: str,
        version: int,
        instructions: tuple[Instruction, ...],
        tensors: Mapping[str, Array],
        push: Push,
        wanted: Mapping[str, Spec],
        state: Callable[[bool], None],
    ) -> NodeAnswer:
        """The node's answer. `state(False)` is called when it is gone and `state(True)` when it is back.

        `wanted`: what it is to return, name -> (dtype, shape); nothing else is taken, and nothing twice.

        Raises:
            InvalidTensor: it returned something else.
            Lacking: something the program takes for granted is not there.
            Refused: the node found something wrong with it.
            OtherData: the node has other data than the run began with.
            DeadlineExceeded: it stayed away for longer than there is patience.
        """
        errand = Errand(
            shard=node,
            holders=(node,),
            coverage=range(1),
            instructions=instructions,
            wanted=wanted,
            inline=push.inline,
            tensors=tensors,
            lent=push.bulk,
            releases=self._releases,
        )
        while True:
            self._require_same(node)
            answers: list[Returned] = []
            try:
                outcome = await self._trips.make(
                    [errand], self._patience, answers.append, version=version, spooled=True
                )
            except EdgeAttentionError as error:
                raise Refused(error.message, True, isinstance(error, InvalidArgument)) from None
            if not outcome.missing:
                try:
                    self._require_same(node)  # it may have been started anew meanwhile
                except OtherData:
                    close(answers[0].tensors)
                    raise
                return NodeAnswer(answers[0].tensors, outcome.seconds[node])
            missing = outcome.missing[node]
            if missing.kind is MissingKind.WRONG and isinstance(missing.error, InvalidTensor):
                raise missing.error
            if missing.said and isinstance(missing.error, NotFound):
                raise Lacking(missing.text)
            if self._membership.live(node):
                raise Refused(missing.text)
            state(False)
            if not await self._trips.all_live([node], self._patience, lambda sentence: None):
                raise DeadlineExceeded(f"node {node!r} did not come back within {self._patience:.0f} s")
            state(True)

    def _require_same(self, node: str) -> None:
        """OtherData if the node has other data than the run began with."""
        was = self._data.get(node)
        other = other_now(was, self._membership) if was is not None else ""
        if other != self._others.get(node, ""):
            self._others[node] = other
            self._tell_others({name: text for name, text in sorted(self._others.items()) if text})
        if other:
            raise OtherData(
                f"{other}; give the node its file back, and resume the run if it has ended; or start a new "
                f"one",
                hopeless=True,
            )
