"""What an attacker tried: with what a peer showed, with what a stranger may send, with files gone."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta

import pytest
from click.testing import CliRunner
from trust_house import TrustHouse, in_house

from aggregator.main import main
from aggregator.trust import audit as audits
from aggregator.trust import rate as rates
from aggregator.trust.access import Access
from aggregator.trust.authority import Authority, folder_of
from aggregator.trust.guard import GuardedCall
from aggregator.trust.proof import CertificateProof
from aggregator.trust.registry import CertificateRow, Registry
from aggregator.trust.service import ENROLMENTS, RENEWALS
from edge_attention.core.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Revoked,
    Unauthenticated,
    Unavailable,
)
from edge_attention.core.messages.trust import EnrolRequest, RenewRequest
from edge_attention.trust.assertion import SECONDS, SKEW, make_assertion
from edge_attention.trust.certificates import ends, load_der, new_key, serial, signing_request
from edge_attention.trust.tokens import make_token


def test_an_assertion_that_was_caught_gets_no_certificate_for_another_key(tmp_path):
    def inside(house):
        node = house.enrol(house.token(), "a")
        caught, evil = house.assertion(node), new_key()
        with pytest.raises(PermissionDenied, match=r"not for the key of the certificate of node 'a'"):
            house.renew(caught, evil)
        (line,) = house.audited("refused")
        assert (line["subject"], line["method"]) == ("node/a", "TrustService.Renew")
        assert "127.0.0.1" in line["peer"]
        renewed = load_der(house.renew(caught, node.key).certificate, "certificate")
        assert renewed.public_key() == node.key.public_key()
        assert len(house.audited("renewed")) == 1
        with pytest.raises(FailedPrecondition, match="an access token has none"):
            house.renew(house.token("access", "viewer").text, node.key)
        assert len(house.audited("refused")) == 2

    in_house(tmp_path, inside)


def test_who_was_overruled_by_a_token_for_its_name_is_shut_out_at_once(tmp_path):
    async def scenario():
        async with TrustHouse(tmp_path).serving() as house:
            named = {"name": "stolen", "uses": 1}
            old = await asyncio.to_thread(house.enrol, house.token(**named), "stolen")
            shown = house.assertion(old)
            peer = house.trust.access.authenticate(f"Bearer {shown}", "x")
            ended = asyncio.Event()

            async def stream():
                with GuardedCall(house.trust.guard._calls, peer, "EdgeLinkService.Connect", "x"):
                    await asyncio.sleep(3600)

            call = asyncio.create_task(stream())
            call.add_done_callback(lambda _: ended.set())
            await asyncio.sleep(0)
            watching = asyncio.create_task(house.trust.watch())
            new = await asyncio.to_thread(house.enrol, house.token(**named), "stolen")
            await asyncio.wait_for(ended.wait(), 180)
            watching.cancel()
            assert isinstance(call.exception(), Revoked)
            with pytest.raises(Revoked, match="certificate of node 'stolen' was revoked"):
                house.trust.access.authenticate(f"Bearer {shown}", "x")
            assert house.trust.access.authenticate(f"Bearer {house.assertion(new)}", "x").name == "stolen"

    asyncio.run(scenario())


def test_who_is_revoked_is_noticed_whatever_else_fails(tmp_path, monkeypatch, caplog):
    async def scenario():
        async with TrustHouse(tmp_path).serving() as house:
            failed = threading.Event()

            def broken():
                failed.set()
                raise ValueError("a defect")

            monkeypatch.setattr(house.trust._server, "keep", broken)
            noticed = asyncio.Event()
            watching = asyncio.create_task(house.trust.watch())
            await asyncio.to_thread(house.enrol, house.token(), "a")
            monkeypatch.setattr(house.trust.guard, "changed", noticed.set)
            assert await asyncio.to_thread(failed.wait, 30)
            house.registry.revoke_certificates("a", "node", time.time())
            await asyncio.wait_for(noticed.wait(), 180)
            watching.cancel()
            assert "a defect" in caplog.text

    asyncio.run(scenario())


def test_without_the_record_of_what_was_revoked_it_does_not_start(tmp_path):
    folder = folder_of(tmp_path)

    def revoked(house):
        node = house.enrol(house.token(), "a")
        house.registry.revoke_certificates("a", "node", time.time())
        return node

    node = in_house(tmp_path, revoked)
    for file in folder.glob("trust.db*"):
        file.unlink()
    for start in (lambda: TrustHouse(tmp_path), lambda: Authority.open(folder)):
        with pytest.raises(
            FailedPrecondition,
            match=r"trust\.db is missing.* again: rm -f .*trust\.db\.sums; touch .*trust\.db",
        ):
            start()
    done = CliRunner().invoke(main, ["--state", str(tmp_path), "token", "create"])
    assert done.exit_code == 1
    assert "trust.db is missing" in done.output
    (folder / "trust.db").touch()  # as the sentence says

    def again(house):
        with pytest.raises(Unauthenticated, match="certificate of node 'a' is not known here"):
            house.renew(house.assertion(node), node.key)
        assert house.enrol(house.token(), "a", node.key).name == "a"

    in_house(tmp_path, again)


@pytest.mark.parametrize("there", [["authority.key"], ["authority.key", "trust.db"]])
def test_killed_while_the_authority_was_made_it_is_made_anew(tmp_path, there):
    Authority.open(tmp_path / "whole")
    half = tmp_path / "half"
    half.mkdir()
    for name in there:
        (half / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    made = Authority.open(half)
    assert Authority.open(half).fingerprint == made.fingerprint
    Registry(half).close()
    (half / "authority.pem").unlink()
    with pytest.raises(FailedPrecondition, match="restore the folder"):
        Authority.open(half)


def test_a_stranger_s_signing_request_is_not_looked_at(tmp_path):
    def inside(house):
        stranger = make_token("join", house.authority.fingerprint[:32])
        with pytest.raises(Revoked, match="is not known here"):
            house.enrol(stranger, "a", request=b"damaged")
        with pytest.raises(InvalidArgument, match="signing request is damaged"):
            house.enrol(house.token(), "a", request=b"damaged")

    in_house(tmp_path, inside)


def test_an_assertion_is_taken_no_longer_because_it_was_taken_before(tmp_path):
    house = TrustHouse(tmp_path)
    key, now = new_key(), time.time()
    made = house.authority.issue_peer(key.public_key(), "node", "a", timedelta(days=1))
    row = CertificateRow(serial(made), "node", "a", "", "", now, ends(made), None)
    with house.registry._transaction():
        house.registry._insert(row, now)
    clock = [now + SECONDS + SKEW - 2]
    proof = CertificateProof(house.authority.certificate)
    access = Access(house.registry, proof, None, house.audit, lambda: clock[0])
    shown = "Bearer " + make_assertion(key, made, house.authority.fingerprint, now)
    assert access.authenticate(shown, "x").name == "a"
    clock[0] += 3
    with pytest.raises(Unauthenticated, match="by this aggregator's clock"):
        access.authenticate(shown, "x")
    house.close()


def test_what_nobody_foresaw_is_a_refusal_and_one_line_of_the_log(tmp_path, caplog):
    house = TrustHouse(tmp_path)

    class Fails:
        def check(self, shown, now):
            raise ZeroDivisionError("as a library may")

    access = Access(house.registry, Fails(), None, house.audit)
    for _ in range(3):
        with pytest.raises(Unauthenticated, match="could not be checked"):
            access.authenticate("Bearer a.b.c", "x")
    (line,) = [record for record in caplog.records if "ZeroDivisionError" in record.getMessage()]
    assert line.exc_info is None
    house.close()


def test_refusals_do_not_flood_the_log(tmp_path, caplog, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(rates.time, "monotonic", lambda: clock[0])
    house = TrustHouse(tmp_path)

    def refuse():
        with pytest.raises(Unauthenticated):
            house.trust.access.authenticate("Bearer a.b.c", "x", "/" + "y" * 10_000)

    for _ in range(1000):
        refuse()
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(lines) == audits.BURST
    assert len(lines[0]) < 1500
    clock[0] = 1.0
    refuse()
    assert f"({1000 - int(audits.BURST)} more before)" in caplog.records[-1].getMessage()
    house.close()


def test_who_enrols_again_and_again_gets_the_certificate_it_has(tmp_path):
    def inside(house):
        token, key = house.token(), new_key()
        first = house.enrol(token, "a", key)
        assert house.enrol(token, "a", key).certificate == first.certificate
        assert house.enrol(token, "b", key).certificate != first.certificate
        another = house.token(uses=1)  # answered with what there is, which takes nothing, as often as asked
        for _ in range(2):
            assert house.enrol(another, "a", key).certificate == first.certificate
        assert house.registry.token(another.id).used == 0
        assert [line.get("again") for line in house.audited("enrolled")] == [None, True, None, True, True]
        # An old one is followed by a new one.
        with house.registry._transaction():
            house.registry._database.execute("UPDATE certificates SET issued = issued - 8 * 86400")
        second = house.enrol(token, "a", key)
        assert second.certificate != first.certificate
        assert house.renew(house.assertion(second), key).name == "a"

    in_house(tmp_path, inside)


def test_a_token_and_a_certificate_are_used_so_often_and_no_oftener(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(rates.time, "monotonic", lambda: clock[0])

    def inside(house):
        token, key = house.token(), new_key()
        node = house.enrol(token, "a", key)
        data = signing_request(key, "a")
        request = EnrolRequest(token.text, data, "a", "")
        peer = house.trust.access.authenticate(f"Bearer {house.assertion(node)}", "x")
        for allowed, ask in (
            (int(ENROLMENTS[0]) - 1, lambda: house.trust._api._enrol(request)),
            (int(RENEWALS[0]), lambda: house.trust._api._renew(RenewRequest(data), peer)),
        ):
            for _ in range(allowed):
                ask()
            with pytest.raises(Unavailable, match=r"too many .* at a time"):
                ask()
        with pytest.raises(Unavailable, match="too many enrolments with token"):
            house.enrol(token, "b")
        house.enrol(house.token(), "b")
        clock[0] += 10
        house.enrol(token, "c")

    in_house(tmp_path, inside)
