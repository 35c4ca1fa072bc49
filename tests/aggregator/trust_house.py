"""Trust as the aggregator puts it together, served over real TLS in this process, and dialled by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from datetime import timedelta

import grpc
import grpc.aio

from aggregator.observe.metrics import Metrics
from aggregator.serving.rpc import service_handlers
from aggregator.trust.audit import Audit
from aggregator.trust.trust import Trust, TrustSettings
from edge_attention.core.messages.trust import EnrolRequest, RenewRequest
from edge_attention.trust.assertion import make_assertion
from edge_attention.trust.certificates import load_der, new_key, pem, signing_request
from edge_attention.trust.identity import Identity
from edge_attention.trust.names import SERVER_NAME
from edge_attention.wire import trust as methods
from edge_attention.wire.errors import from_rpc


class TrustHouse:
    """`state` is its folder. Methods that call block: call them in a thread (`inside`)."""

    def __init__(self, state, life=timedelta(days=7)):
        self.file = state / "audit.jsonl"
        self.audit = Audit(self.file)
        self.trust = Trust(TrustSettings(life=life), state, "127.0.0.1", Metrics(), self.audit)
        self.registry, self.authority = self.trust.registry, self.trust._authority
        self.address = ""

    @contextlib.asynccontextmanager
    async def serving(self):
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(tuple(service_handlers(self.trust.handlers(), self.trust.guard)))
        self.address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', self.trust.credentials())}"
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)
            self.close()

    def close(self):
        self.trust.close()
        self.audit.close()

    def token(self, kind="join", role="node", **options):
        pin = self.authority.fingerprint[:32]
        return self.registry.create_token(kind, role, pin, time.time(), **options)

    def call(self, method, request, shown=None):
        """The answer; the errors of the catalogue are raised."""
        credentials = grpc.ssl_channel_credentials(pem(self.authority.certificate))
        options = (("grpc.ssl_target_name_override", SERVER_NAME),)
        metadata = (("authorization", f"Bearer {shown}"),) if shown else ()
        with grpc.secure_channel(self.address, credentials, options) as channel:
            try:
                call = channel.unary_unary(method.path, None, None)
                return method.response.decode(
                    call(method.request.encode(request), metadata=metadata, timeout=180)
                )
            except grpc.RpcError as error:
                raise from_rpc(error, "the house") from None

    def enrol(self, token, name, key=None, request=None):
        key = key or new_key()
        data = signing_request(key, name) if request is None else request
        issued = self.call(methods.ENROL, EnrolRequest(token.text, data, name, "")).issued
        issuer = load_der(issued.issuer, "issuer")
        return Identity(key, load_der(issued.certificate, "certificate"), issuer, (issuer,))

    def assertion(self, identity, now=None):
        audience = self.authority.fingerprint
        return make_assertion(identity.key, identity.certificate, audience, now or time.time())

    def renew(self, shown, key):
        return self.call(methods.RENEW, RenewRequest(signing_request(key, "x")), shown).issued

    def audited(self, event):
        lines = map(json.loads, self.file.read_text().splitlines())
        return [line for line in lines if line["event"] == event]


def in_house(folder, inside, **options):
    """What `inside(house)`, called in a thread, returns."""

    async def scenario():
        async with TrustHouse(folder, **options).serving() as house:
            return await asyncio.to_thread(inside, house)

    return asyncio.run(scenario())
