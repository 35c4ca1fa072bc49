"""Every method of every service has a role; and the guard asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import grpc.aio
import pytest

import protos.edge_attention.v1
from aggregator.api.service import Api
from aggregator.attention.service import AttentionApi
from aggregator.attention.upkeep_service import UpkeepApi
from aggregator.checkup.checkup import Checkup
from aggregator.engine.link import FleetLink
from aggregator.inference.ensembles.service import EnsembleApi
from aggregator.inference.generation.service import GenerationApi
from aggregator.inference.protocol.service import OpenInferenceApi
from aggregator.inference.service import InferenceApi
from aggregator.serving.rpc import service_handlers
from aggregator.training.service import TrainingApi
from aggregator.trust.access import Access
from aggregator.trust.audit import Audit
from aggregator.trust.authority import Authority
from aggregator.trust.endpoint import Endpoint
from aggregator.trust.guard import Guard, caller
from aggregator.trust.policy import ANY, OPEN, roles_of
from aggregator.trust.proof import CertificateProof
from aggregator.trust.registry import CertificateRow, Registry
from edge_attention.core.errors import (
    EdgeAttentionError,
    Internal,
    PermissionDenied,
    Revoked,
    Unauthenticated,
)
from edge_attention.core.messages.link import Chunk, DownloadRequest
from edge_attention.trust.assertion import make_assertion
from edge_attention.trust.certificates import ends, key_fingerprint, new_key, serial
from edge_attention.trust.names import ROLES, may
from edge_attention.wire import open_inference, services
from edge_attention.wire.caller import Caller
from edge_attention.wire.link import CONNECT
from edge_attention.wire.methods import CHANNEL_OPTIONS, Method


def every_endpoint():
    """What an aggregator serves: to know who may call it, its parts need not be there."""
    served = (
        (FleetLink, 4),
        (Api, 2),
        (AttentionApi, 5),
        (UpkeepApi, 1),
        (TrainingApi, 1),
        (InferenceApi, 3),
        (GenerationApi, 1),
        (EnsembleApi, 2),
        (OpenInferenceApi, 2),
        (Checkup, 3),
    )
    keywords = {FleetLink: {"welcome": None}}
    for kind, parts in served:
        yield from kind(*[None] * parts, **keywords.get(kind, {})).endpoints()


NEEDED = roles_of(every_endpoint())


def every_method():
    """The paths of all methods in all .proto files."""
    folder = Path(protos.edge_attention.v1.__file__).parent
    for file in sorted(folder.glob("*.proto")):
        module = importlib.import_module(f"protos.edge_attention.v1.{file.stem}_pb2")
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}"
    # A service of another's protocol, whose messages alone are compiled here.
    yield from (method.path for method in open_inference.METHODS)


def test_every_method_of_every_service_has_a_role():
    decided = [method.path for method in [*NEEDED, *OPEN, *ANY]]
    assert len(decided) == len(set(decided)), "each is decided once"
    assert sorted(decided) == sorted(every_method())
    assert {m.path for m in OPEN} == {"/edge_attention.v1.TrustService/Enrol"}
    assert {m.path for m in ANY} == {"/edge_attention.v1.TrustService/Renew"}


def test_a_method_without_a_role_is_not_served():
    """Whoever forgets it, or takes another's method, is told so before the port is open."""
    one = next(every_endpoint())
    for role in (None, "", "root"):
        with pytest.raises(Internal, match=rf"{one.method.path} would be served without a role"):
            roles_of([replace(one, role=role)])
    with pytest.raises(TypeError, match="role"):
        Endpoint(one.method, one.handler)
    for method in (one.method, *OPEN, *ANY):
        with pytest.raises(Internal, match=rf"{method.path} would be served twice"):
            roles_of([one, replace(one, method=method)])


def test_nodes_have_the_node_link_and_nothing_else():
    for method, role in NEEDED.items():
        assert (role == "node") == method.path.startswith("/edge_attention.v1.EdgeLinkService/")


class House:
    """Authority, registry, access and guard, without a network."""

    def __init__(self, folder):
        self.authority = Authority.open(folder)
        self.registry = Registry(folder)
        self.audit_file = folder / "audit.jsonl"
        proof = CertificateProof(self.authority.certificate)
        self.access = Access(self.registry, proof, None, Audit(self.audit_file))
        self.guard = Guard(self.access, self.registry)
        self.guard.require_roles(NEEDED)

    def certificate(self, role, name, life=timedelta(days=1), key=None):
        """The authorization of a new certificate."""
        key = key or new_key()
        made = self.authority.issue_peer(key.public_key(), role, name, life)
        row = CertificateRow(
            serial(made), role, name, key_fingerprint(key.public_key()), "", time.time(), ends(made), None
        )
        with self.registry._transaction():
            self.registry._insert(row, time.time())
        return f"Bearer {make_assertion(key, made, self.authority.fingerprint, time.time())}"

    def token(self, role, **options):
        pin = self.authority.fingerprint[:32]
        return f"Bearer {self.registry.create_token('access', role, pin, time.time(), **options).text}"


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path)
    yield made
    made.registry.close()


def in_a_loop(test):
    """A call is a task's, so there must be one."""

    @functools.wraps(test)
    def wrapped(house):
        async def run():
            test(house)

        asyncio.run(run())

    return wrapped


def context(authorization):
    metadata = () if authorization is None else (("authorization", authorization),)
    return SimpleNamespace(peer=lambda: "ipv4:192.0.2.1:5", invocation_metadata=lambda: metadata)


@in_a_loop
def test_each_role_may_call_what_its_line_says_and_nothing_more(house):
    shown = {role: [house.certificate(role, "x")] for role in ROLES}
    for role in ("viewer", "user", "operator"):
        shown[role].append(house.token(role, name="x"))
    tried = 0
    for method, needed in NEEDED.items():
        for role in ROLES:
            for authorization in shown[role]:
                tried += 1
                if may(role, needed):
                    with house.guard(method, context(authorization)):
                        assert caller().subject == f"{role}/x"
                else:
                    with pytest.raises(PermissionDenied, match=f"needs the role {needed}"):
                        house.guard(method, context(authorization))
        with pytest.raises(Unauthenticated, match="no certificate and no token"):
            house.guard(method, context(None))
    assert tried == 7 * len(NEEDED)


@in_a_loop
def test_a_guard_that_was_told_of_no_roles_lets_nobody_in(house):
    guard = Guard(house.access, house.registry)
    shown = house.certificate("operator", "x")
    for method in NEEDED:
        with pytest.raises(Internal, match="has no role"):
            guard(method, context(shown))


@in_a_loop
def test_open_methods_need_nobody_and_unknown_ones_are_refused(house):
    for method in OPEN:
        with house.guard(method, context(None)):
            assert caller() is None
    for method in ANY:
        with house.guard(method, context(house.certificate("node", "a"))):
            assert caller().name == "a"
        with pytest.raises(Unauthenticated):
            house.guard(method, context(None))
    known = services.LIST_NODES
    unknown = Method(known.service, "New", known.request, known.response)
    with pytest.raises(EdgeAttentionError, match="has no role"):
        house.guard(unknown, context(house.token("operator")))


@in_a_loop
def test_no_message_may_speak_of_another_node(house):
    with house.guard(CONNECT, context(house.certificate("node", "a"))):
        house.guard.require_name("a", "the registration")
        with pytest.raises(PermissionDenied, match="of node 'b' came with the certificate of 'a'"):
            house.guard.require_name("b", "a session")
    assert '"subject": "node/a"' in house.audit_file.read_text()


def test_a_join_token_gives_no_access(house):
    pin = house.authority.fingerprint[:32]
    token = house.registry.create_token("join", "node", pin, time.time())
    with pytest.raises(Unauthenticated, match="is for joining"):
        house.access.authenticate(f"Bearer {token.text}", "here")


def test_what_was_good_is_remembered_until_something_is_revoked(house):
    shown = house.certificate("user", "alice")
    asked = []
    check = house.access._certificates.check
    house.access._certificates.check = lambda *args: asked.append(1) or check(*args)
    for _ in range(5):
        house.access.authenticate(shown, "here")
    assert len(asked) == 1
    house.registry.revoke_certificates("alice", None, time.time())
    house.guard.changed()
    with pytest.raises(Revoked, match="the certificate of user 'alice' was revoked"):
        house.access.authenticate(shown, "here")


def test_a_remembered_token_does_not_outlive_its_end(house):
    now = [time.time()]
    house.access._clock = lambda: now[0]
    shown = house.token("viewer", expires=now[0] + 10)
    house.access.authenticate(shown, "here")
    now[0] += 11
    with pytest.raises(Unauthenticated, match="expired at"):
        house.access.authenticate(shown, "here")


def test_calls_under_way_end_with_the_reason(house):
    """A stream of bytes, over real gRPC: revoked, it ends; another peer's goes on."""
    shown = {name: house.certificate("user", name) for name in ("alice", "bob")}
    short = house.certificate("user", "carol", timedelta(minutes=10))

    async def endless(request, call):
        assert caller().name in request.digest
        while True:
            yield Chunk(0, 1, b"x")
            await asyncio.sleep(0.01)

    async def scenario():
        server = grpc.aio.server(options=CHANNEL_OPTIONS)
        server.add_generic_rpc_handlers(service_handlers({services.BULK_DOWNLOAD: endless}, house.guard))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(server.stop, None)
            streams = {}
            for name, text in {**shown, "carol": short}.items():
                channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
                stack.push_async_callback(channel.close)
                caller = Caller(channel, "here", lambda text=text: (("authorization", text),))
                streams[name] = caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", name))
                assert (await anext(streams[name])).data == b"x"
            assert len(house.guard._calls) == 3
            house.registry.revoke_certificates("alice", None, time.time())
            house.guard.changed()
            with pytest.raises(Revoked, match="'alice' was revoked"):
                async for _ in streams["alice"]:
                    pass
            house.guard.tick(time.time() + 601)
            with pytest.raises(Unauthenticated, match=r"'carol' ended at .*, during the call"):
                async for _ in streams["carol"]:
                    pass
            assert (await anext(streams["bob"])).data == b"x"
            assert {call.peer.name for call in house.guard._calls} == {"bob"}
            await streams["bob"].aclose()

    asyncio.run(scenario())


def test_a_call_whose_peer_takes_nothing_ends_all_the_same(house, monkeypatch):
    monkeypatch.setattr("aggregator.trust.guard.UNWILLING_SECONDS", 0.1)
    shown = house.certificate("user", "alice")
    closed = asyncio.Event()

    async def endless(request, call):
        try:
            while True:
                yield Chunk(0, 1 << 20, bytes(1 << 20))
        finally:
            closed.set()

    async def scenario():
        server = grpc.aio.server(options=CHANNEL_OPTIONS)
        server.add_generic_rpc_handlers(service_handlers({services.BULK_DOWNLOAD: endless}, house.guard))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
            caller = Caller(channel, "here", lambda: (("authorization", shown),))
            stream = caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", "x"))
            await anext(stream)
            (call,) = house.guard._calls
            while not call._away:  # noqa: ASYNC110  # until it waits for us to take more
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            house.registry.revoke_certificates("alice", None, time.time())
            house.guard.changed()
            await asyncio.wait_for(closed.wait(), 180)
            await stream.aclose()
        await server.stop(None)

    asyncio.run(scenario())


@in_a_loop
def test_a_renewed_certificate_keeps_the_call_going(house):
    key = new_key()
    shown = house.certificate("node", "a", timedelta(minutes=5), key)
    call = house.guard(CONNECT, context(shown))
    with call:
        house.certificate("node", "a", timedelta(days=1), key)  # as its renewal does
        house.guard.tick(time.time() + 305)
        assert call._ended is None
        assert call.ends > time.time() + 3600
