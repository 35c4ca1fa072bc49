"""The two calls of the TrustService, at an aggregator with TLS."""

from __future__ import annotations

import asyncio
import random
from typing import Any, ClassVar

import grpc
from trusted import TrustedFleet

from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.trust.authorities import read_authorities
from edge_attention.trust.dial import Dial
from edge_attention.trust.enrol import enrol
from edge_attention.trust.identity import IdentityFolder
from edge_attention.trust.tokens import parse_token
from edge_attention.wire import trust
from tests.fuzz import corpus
from tests.fuzz.corpus import TRUST_PATHS
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import Input, Target


class Enrolment(Target):
    name, share = "enrolment", 0.05
    together: ClassVar[int] = 4

    async def start(self) -> None:
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        self.fleet = TrustedFleet(self.folder)
        self.children = [self.fleet.child(AGGREGATOR)]
        self._count = 0
        self._token = parse_token(self.fleet.token("join"), "join")
        self._identity = enrol(
            self.fleet.address, self._token, IdentityFolder(self.folder / "known"), "known"
        )
        dial = Dial(self.fleet.address, identity=self._identity)
        self._channel = dial.channel()
        self._metadata = dial.metadata()
        assert read_authorities(self.fleet.boot / "authority.pem")

    async def stop(self) -> None:
        self._channel.close()
        await asyncio.to_thread(self.fleet.stop)

    def make(self, rng: random.Random) -> Input:
        path = rng.choice(TRUST_PATHS)
        call = rng.choice(self.corpus.calls[path])
        mutator = Mutator(rng, self.corpus)
        return Input(
            self.name, path, tuple(mutator.mutate(corpus.METHODS[path][0], part) for part in call.requests)
        )

    async def send(self, sent: Input) -> None:
        await asyncio.to_thread(self._send, sent)

    def _send(self, sent: Input) -> None:
        # The recorded token is nobody's: half of the calls show a good one, so that the rest is read, too.
        parts = sent.parts
        if sent.path == trust.ENROL.path and len(parts[0]) % 2:
            parts = tuple(self._with_token(part) for part in parts)
        try:
            call: Any = self._channel.stream_stream(sent.path, None, None)
            for _ in call(iter(parts), timeout=5.0, metadata=self._metadata):
                pass
            self.answers["ok"] += 1
        except grpc.RpcError as error:
            self.answers[error.code().name.lower()] += 1  # type: ignore[attr-defined]

    def _with_token(self, part: bytes) -> bytes:
        from google.protobuf.message import DecodeError

        from tests.fuzz.link import _sealed
        from tests.fuzz.mutate import unsealed

        try:
            message: Any = corpus.METHODS[trust.ENROL.path][0].FromString(unsealed(part))
        except DecodeError:
            return part
        message.token = self._token.text
        return _sealed(message)

    async def good(self) -> str:
        self._count += 1
        name = f"good-{self._count}"
        made = await asyncio.to_thread(
            enrol, self.fleet.address, self._token, IdentityFolder(self.folder / name), name
        )
        return "" if made.name == name else f"enrolled as {made.name}"
