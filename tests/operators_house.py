"""An operator's certificates of many kinds, in files, served and dialled as gRPC does."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pki
import pytest

from aggregator.trust.operators_certificate import OperatorsCertificate, OperatorsFiles
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.trust.dial import Dial

ROOT, OTHER = pki.authority("Root", kind="RSA 2048"), pki.authority("Other root")
MIDDLE, MIDDLE_2 = pki.authority("Middle", ROOT), pki.authority("Second middle", ROOT)
LEAF = pki.issue("aggregator", MIDDLE)
OLD, NEW = (-30, -1), (1, 30)
EXPIRED, EARLY = pki.issue("aggregator", MIDDLE, days=OLD), pki.issue("aggregator", MIDDLE, days=NEW)
ED25519 = pki.issue("aggregator", MIDDLE, kind="Ed25519")
FOR_CLIENTS = pki.issue("aggregator", MIDDLE, extended=(pki.CLIENT,))


class Files:
    """The operator's files in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.trust = folder / "trust"
        self.trust.mkdir()

    def write(self, chain, key=None, authority=None, **more):
        """What the aggregator is given. `chain`, `authority`: certificates or bytes; `key`: bytes."""
        files = {"chain.pem": chain, "key.pem": key or chain[0].key_pem(), "authority.pem": authority}
        for name, data in files.items():
            if data is not None:
                path = self.folder / name
                path.write_bytes(data if isinstance(data, bytes) else pki.pem(*data))
                path.chmod(0o600)
        given = self.folder / "authority.pem" if authority is not None else None
        return OperatorsFiles(self.folder / "chain.pem", self.folder / "key.pem", given, **more)

    def open(self, *arguments, **more):
        return OperatorsCertificate(self.trust, self.write(*arguments, **more))

    def refused(self, *arguments, **more):
        """The sentence it is refused with."""
        with pytest.raises(EdgeAttentionError) as caught:
            self.open(*arguments, **more)
        return caught.value.message


def common_names(certificates):
    return [one.subject.rfc4514_string().removeprefix("CN=") for one in certificates]


def served(certificate, inside):
    """What `inside(address)`, called in a thread, returns while gRPC serves the certificate."""

    async def scenario():
        server = grpc.aio.server()
        port = server.add_secure_port("127.0.0.1:0", certificate.grpc_credentials())
        await server.start()
        try:
            return await asyncio.to_thread(inside, f"localhost:{port}")
        finally:
            await server.stop(None)

    return asyncio.run(scenario())


def connects(address, authorities):
    """Whether a peer that trusts these gets through; what it is told, if not."""
    dial = Dial(address, authorities=authorities)
    with dial.channel() as channel:
        try:
            channel.unary_unary("/a/b", None, None)(b"", timeout=120)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            return dial.why_now() or error.details()
    raise AssertionError("nobody serves that")
