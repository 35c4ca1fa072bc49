"""Sessions of deployed decoders: what generation works with.

    session = await sessions.open("gpt2", owner, seconds)     # of a decoder beside an encoder with its input
    logits = await sessions.extend(session, ids, seconds)     # float32 [len(ids), vocabulary]
    await sessions.truncate(session, length)                  # forget what was guessed wrong
    await sessions.close(session)

Calls of several sessions run at once, and share trips. What a node stored that goes is stored anew inside
`extend`, from the session's tokens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from aggregator.bounds.bounds import DECODER_SESSIONS, ENCODER_BYTES
from aggregator.bounds.budget import Lease
from aggregator.engine.recipe import Engine
from aggregator.fleet.membership import Member
from aggregator.inference.decoder_files import decoder_model
from aggregator.inference.decoding.encoder_inputs import encoder_feeds, states_of
from aggregator.inference.decoding.programs import cache_scope
from aggregator.inference.decoding.serving import DecoderServing
from aggregator.inference.deployed import Deployed
from aggregator.inference.deployments import Deployments
from aggregator.inference.holding import roomiest
from edge_attention.core.errors import FailedPrecondition, NotFound
from edge_attention.core.schedule.pieces import DecoderForm, loads_decoder
from edge_attention.core.tensors import Array, Float32

__all__ = ["DecoderSessions", "OpenSession"]

_GONE = "the model was undeployed, or another version serves: open another session"


@dataclass(eq=False)
class OpenSession:
    """A session as its user has it.

    Attributes:
        model: its deployment's name, and `version` which one.
        length: tokens that it has.
    """

    model: str
    version: int
    owner: str
    form: DecoderForm
    number: int
    serving: DecoderServing
    deployed: Deployed
    lease: Lease | None
    length: int = 0
    states: Lease | None = None


class DecoderSessions:
    """Sessions of all decoders."""

    def __init__(self, engine: Engine, deployments: Deployments) -> None:
        self._engine = engine
        self._deployments = deployments
        self._budgets = engine.budgets
        self._pick = roomiest(engine.membership)
        self._serving: dict[str, DecoderServing] = {}
        """By deployment's id."""
        engine.trips.watch(lambda name: self._look())
        deployments.leaving.append(self._left)

    def models(self) -> tuple[str, ...]:
        """Names of the models that have sessions."""
        deployed = self._deployments.deployed()
        return tuple(sorted(one.name for one in deployed if one.planned is not None and one.planned.decoder))

    def form(self, model: str) -> DecoderForm:
        """What serving the model takes: its vocabulary, its longest session.

        Raises:
            NotFound: no such model is deployed.
            FailedPrecondition: it has no sessions, with the reason.
        """
        return self._of(self._deployments.require(model)).form

    def version(self, model: str) -> str:
        """Names the deployment that sessions are opened of now, and no other. Raises NotFound."""
        return self._deployments.require(model).id

    async def open(
        self,
        model: str,
        owner: str,
        seconds: float,
        inputs: Mapping[str, Array] | None = None,
        ids: Sequence[int] = (),
        priority: int = 0,
        greedy: bool = False,
    ) -> OpenSession:
        """A new session. The first one of a model waits until nodes are ready for it.

        Args:
            inputs: of the encoder, of a decoder beside one; or `ids`, tokens of its text.
            priority: of its trips, and of the encoder's request; as of Deployments.infer.
            greedy: it is likely extended by the token that its last logits say is likeliest.

        Raises:
            NotFound, FailedPrecondition: as `form`.
            InvalidTensor: the inputs are not what the encoder takes.
            ResourceExhausted: too many sessions are open.
            DataLoss: the disk has changed what they are made of; says what to do.
            DeadlineExceeded: nodes are not ready in time; says what was waited for.
        """
        until = time.monotonic() + seconds
        deployed = self._deployments.require(model)
        serving = self._of(deployed)
        lease = self._budgets[DECODER_SESSIONS].take(owner or None)
        try:
            await serving.ready(max(until - time.monotonic(), 0.0))
            memory = None
            if serving.form.states:
                memory = await self._encoded(deployed, inputs or {}, ids, owner, until, priority)
            states = self._budgets.take(ENCODER_BYTES, owner or None, 0 if memory is None else memory.nbytes)
            try:
                opened = serving.open(owner, memory, priority, greedy)
            except BaseException:
                states.give_back()
                raise
        except BaseException:
            lease.give_back()
            raise
        return OpenSession(
            deployed.name, deployed.version, owner, serving.form, opened.number, serving, deployed, lease,
            states=states,
        )  # fmt: skip

    async def _encoded(
        self,
        deployed: Deployed,
        inputs: Mapping[str, Array],
        ids: Sequence[int],
        owner: str,
        until: float,
        priority: int,
    ) -> Float32:
        """What the deployment's encoder makes of an input, float32 [tokens, width]."""
        planned = deployed.planned
        assert planned is not None
        feeds = encoder_feeds(planned.inputs, inputs, ids, not planned.whole)
        deployed.life.begin()
        answered = False
        try:
            left = max(until - time.monotonic(), 0.0)
            answer = await self._deployments.infer(deployed, feeds.arrays, left, owner, priority=priority)
            answered = True
        finally:
            self._deployments.ended(deployed, answered)
        return states_of(answer.results, feeds.tokens)

    def lacking(self, session: OpenSession) -> str:
        """Why its logits are not the whole model's, to rounding in its own types; empty: they are."""
        planned = session.deployed.planned
        return (planned.lacking if planned is not None else "") or session.serving.lacking

    async def extend(self, session: OpenSession, ids: npt.ArrayLike, seconds: float) -> Float32:
        """Logits after each of the new tokens, float32 [tokens, vocabulary], in `seconds` at most.

        Where this raises, the session is as it was before the call.

        Raises:
            NotFound: the session is none any more.
            InvalidArgument, ResourceExhausted: tokens that the model has not; or no room for more.
            FailedPrecondition: it is being extended already.
            DeadlineExceeded: says what was waited for.
        """
        tokens: Sequence[int] = [int(token) for token in np.asarray(ids, np.int64).reshape(-1)]
        life = session.deployed.life
        if not life.live:
            raise NotFound(_GONE)
        life.begin()
        answered = False
        try:
            logits = await session.serving.extend(session.number, tokens, seconds)
            answered = True
        except NotFound:
            self._over(session)
            raise
        finally:
            self._deployments.ended(session.deployed, answered)
        session.length += len(tokens)
        return logits

    async def truncate(self, session: OpenSession, length: int) -> None:
        """Forget all tokens but the first `length`. Raises as `extend`."""
        session.serving.truncate(session.number, length)
        session.length = length

    async def close(self, session: OpenSession) -> None:
        """The session is not needed any more. Closing it again does nothing."""
        self._over(session)
        session.serving.close_session(session.number)

    def unneeded(self, member: Member) -> tuple[str, ...]:
        """What a node that has come may forget: what sessions stored in an earlier life of the aggregator."""
        return tuple(
            cache_scope(deployed.id)
            for deployed in self._deployments.deployed()
            if deployed.id not in self._serving and deployed.planned is not None and deployed.planned.decoder
        )

    async def shut(self) -> None:
        """End all sessions."""
        serving, self._serving = self._serving, {}
        for one in serving.values():
            await one.close(NotFound("the aggregator ends: open another session once it is back"))

    # Inside

    def _over(self, session: OpenSession) -> None:
        leases = session.lease, session.states
        session.lease = session.states = None
        for lease in leases:
            if lease is not None:
                lease.give_back()

    def _of(self, deployed: Deployed) -> DecoderServing:
        found = self._serving.get(deployed.id)
        if found is not None:
            return found
        planned = deployed.planned
        assert planned is not None
        if not planned.decoder:
            why = planned.sessions or "it was deployed by an earlier release; deploy it again"
            raise FailedPrecondition(
                f"model {deployed.name!r} has no sessions, so it is asked with infer, not generate: {why}"
            )
        if not deployed.life.live:
            raise NotFound(_GONE)
        model = decoder_model(deployed.folder.model, deployed.folder.decoder)
        serving = DecoderServing(
            self._engine, deployed.id, model, deployed.folder.decoder,
            loads_decoder(planned.decoder), planned.holders, self._pick, self._deployments.weight_bytes,
            partial(self._deployments.require_decoder, deployed),
        )  # fmt: skip
        self._serving[deployed.id] = serving
        return serving

    async def _left(self, deployed: Deployed) -> None:
        serving = self._serving.pop(deployed.id, None)
        if serving is not None:
            await serving.close(NotFound(_GONE))

    def _look(self) -> None:
        for serving in list(self._serving.values()):
            serving.look()
