"""What an attacker tried: with what a peer showed, with what a stranger may send, with files that are gone."""

from __future__ import annotations

import asyncio

import pytest
from trust_house import TrustHouse, in_house

from aggregator.trust.guard import Call
from edge_attention.core.errors import FailedPrecondition, PermissionDenied, Revoked
from edge_attention.trust.certificates import load_der, new_key


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
                with Call(house.trust.guard._calls, peer, "EdgeLinkService.Connect", "x"):
                    await asyncio.sleep(3600)

            call = asyncio.create_task(stream())
            call.add_done_callback(lambda _: ended.set())
            await asyncio.sleep(0)
            watching = asyncio.create_task(house.trust.watch())
            new = await asyncio.to_thread(house.enrol, house.token(**named), "stolen")
            await asyncio.wait_for(ended.wait(), 30)
            watching.cancel()
            assert isinstance(call.exception(), Revoked)
            with pytest.raises(Revoked, match="certificate of node 'stolen' was revoked"):
                house.trust.access.authenticate(f"Bearer {shown}", "x")
            assert house.trust.access.authenticate(f"Bearer {house.assertion(new)}", "x").name == "stolen"

    asyncio.run(scenario())
