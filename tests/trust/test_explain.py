"""What a peer is told of a server whose certificate it does not take: which it was, and whose turn it is.

Today's aggregator refuses most of these at its own start; a proxy or an older one may show them.
"""

from __future__ import annotations

import asyncio
import random
import time

import grpc
import grpc.aio
import pki
import pytest
from cryptography.hazmat.primitives import serialization
from operators_house import EARLY, ED25519, EXPIRED, FOR_CLIENTS, LEAF, MIDDLE, OTHER, ROOT, connects

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.trust import explain
from edge_attention.trust.certificates import load_der
from edge_attention.trust.chain import CertificateFault, judge


@pytest.mark.parametrize(
    ("chain", "says", "cure"),
    [
        ([EXPIRED, MIDDLE, ROOT], "expired: 'aggregator' was good until", "have its operator renew it"),
        ([EARLY, MIDDLE, ROOT], "not yet valid: 'aggregator' is good from", "wait until"),
        ([LEAF], "incomplete chain: the certificate of 'Middle' is missing", "put the missing certificate"),
        ([pki.issue("aggregator", OTHER), OTHER], "wrong authority: the chain ends in 'Other root'", "check"),
        ([pki.issue("a", ROOT, names=("a.example",)), ROOT], "wrong name", "dial a name that it has"),
        ([ED25519, MIDDLE, ROOT], "unsupported key: the key of 'aggregator' is Ed25519", "have its operator"),
        ([FOR_CLIENTS, MIDDLE, ROOT], "wrong use: 'aggregator' is not for servers", "have its operator"),
    ],
)  # fmt: skip
def test_a_peer_is_told_which_it_was_and_whose_turn_it_is(chain, says, cure):
    async def scenario():
        server = grpc.aio.server()
        credentials = grpc.ssl_server_credentials([(chain[0].key_pem(), pki.pem(*chain))])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            return await asyncio.to_thread(connects, f"localhost:{port}", (ROOT.certificate,))
        finally:
            await server.stop(None)

    told = asyncio.run(scenario())
    assert says in told
    assert cure in told


def test_a_machine_whose_clock_is_wrong_is_told_so(monkeypatch):
    async def scenario():
        server = grpc.aio.server()
        credentials = grpc.ssl_server_credentials([(LEAF.key_pem(), pki.pem(LEAF, MIDDLE, ROOT))])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            address = f"localhost:{port}"
            return await asyncio.to_thread(explain.why_unreachable, address, (ROOT.certificate,), None)
        finally:
            await server.stop(None)

    class Clock:
        monotonic = staticmethod(time.monotonic)
        time = staticmethod(lambda: 1000.0)

    monkeypatch.setattr(explain, "time", Clock)
    assert "not yet valid" in (told := asyncio.run(scenario()))
    assert "this machine's clock is wrong: set it (NTP)" in told


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_whatever_a_server_shows_is_judged():
    """Parts of a certificate are read when they are asked for, and any of them may be damaged."""
    full = pki.issue("aggregator", MIDDLE, extended=(pki.SERVER,), key_usage=pki.usage())
    good, other = full.certificate, MIDDLE.certificate
    seen = set()
    for seed in range(3000):
        random_of = random.Random(seed)
        data = bytearray((good if seed % 2 else other).public_bytes(serialization.Encoding.DER))
        for _ in range(random_of.randrange(1, 4)):
            data[random_of.randrange(len(data))] = random_of.randrange(256)
        try:
            changed = load_der(bytes(data), "it")
        except EdgeAttentionError:
            continue
        leaf, middle = (changed, other) if seed % 2 else (good, changed)
        trouble = judge(leaf, [middle], [ROOT.certificate], "localhost", time.time())
        seen.add(trouble and trouble.fault)
        str(trouble)
    assert {CertificateFault.DAMAGED, CertificateFault.INCOMPLETE, CertificateFault.UNSUPPORTED_KEY} <= seen


def test_a_server_whose_certificates_have_all_signed_each_other_takes_no_time():
    many = [pki.authority("Middle", MIDDLE, key=MIDDLE.key, names=()) for _ in range(200)]
    began = time.process_time()
    pool = [one.certificate for one in many]
    assert judge(LEAF.certificate, pool, [OTHER.certificate], None, time.time()) is not None
    assert time.process_time() - began < 60


def test_a_server_that_shows_very_many_certificates_takes_no_time():
    """Each is followed once, though every one of them has signed every other, and few are looked at."""
    many = [pki.authority("Middle", ROOT, key=MIDDLE.key, names=()) for _ in range(200)]
    began = time.process_time()
    pool = [one.certificate for one in many]
    assert judge(LEAF.certificate, pool, [OTHER.certificate], None, time.time()) is not None
    assert time.process_time() - began < 60
