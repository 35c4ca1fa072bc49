"""Roles, tokens and audit lines of what is called over HTTP as others have it."""

from __future__ import annotations

import asyncio
import json

import pocket_models
import pytest
from ports import until

from aggregator.bounds.bounds import CALLS
from aggregator.bounds.budget import Budgets
from aggregator.inference.protocol.data_plane import DataPlane

ASKED = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
INFER = "/v2/models/waits/infer"


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def offered(house):
    """A model that never answers, one that does, and what runs scenarios in front of them."""
    house.budgets = Budgets()
    house.waits = pocket_models.waits()
    house.source = pocket_models.PocketModels(house.waits, pocket_models.simple())
    plane = DataPlane([house.source], house.budgets)
    house.go = lambda scenario: house.run(scenario, offers=(plane,), budgets=house.budgets)
    return house


def test_each_call_needs_its_role(offered):
    user = offered.user()

    async def scenario(port):
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert (await port.get(path)).status == 200
        viewers = ("/v2", "/v2/models/simple", "/v2/models/simple/stats", "/v2/models/simple/config")
        for path in viewers:
            answer = await port.get(path)
            assert (answer.status, list(answer.json)) == (401, ["error"])
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert (await port.get(path, headers=bearer(offered.viewer))).status == 200
        # A path that is not there says so to nobody without a token.
        assert (await port.get("/v2/nowhere")).status == 401
        assert (await port.get("/v2/nowhere", headers=bearer(offered.viewer))).json.keys() == {"error"}

        refused = await port.post("/v2/models/simple/infer", json={}, headers=bearer(offered.viewer))
        assert refused.status == 403
        assert "needs the role user" in refused.json["error"]
        assert (await port.post("/v2/models/simple/infer", json={}, headers=bearer(user))).status == 400
        unload = "/v2/repository/models/simple/unload"
        assert (await port.post(unload, headers=bearer(user))).status == 403
        assert (await port.post("/v2/repository/index", headers=bearer(offered.viewer))).status == 200
        assert (await port.post(unload, headers=bearer(offered.operator))).status == 200
        assert (await port.post(unload, headers=bearer(offered.operator))).status == 404

    offered.go(scenario)
    lines = [line for line in offered.audited() if line["event"] == "model_unloaded"]
    assert [(line["outcome"], line["model"]) for line in lines] == [("ok", "simple"), ("failed", "simple")]
    assert lines[0]["subject"].startswith("operator/")
    assert "no such model" in lines[1]["reason"]
    refused = [line["method"] for line in offered.audited() if line["event"] == "refused"]
    assert "POST /v2/repository/models/simple/unload" in refused


def test_the_model_is_told_who_asks(offered):
    async def scenario(port):
        asking = asyncio.create_task(port.post(INFER, json=ASKED, headers=bearer(offered.user())))
        await until(lambda: offered.waits.asked)
        assert offered.waits.asked[0].caller == "user/ana"
        assert offered.budgets[CALLS].of("user/ana") == 1
        asking.cancel()

    offered.go(scenario)
    assert offered.budgets[CALLS].used == 0


def test_a_call_ends_with_its_token(offered):
    token = offered.user()

    async def scenario(port):
        asking = asyncio.create_task(port.post(INFER, json=ASKED, headers=bearer(token)))
        await until(lambda: offered.waits.asked)
        offered.revoke(token)
        offered.notice()
        answer = await asking
        assert answer.status == 401
        assert "revoked" in answer.json["error"]
        assert offered.waits.cancelled == 1

    offered.go(scenario)


def test_a_long_body_of_who_may_not_is_not_asked_for(offered):
    async def scenario(port):
        for token in (offered.viewer, "eat_nonsense"):
            reader, writer = await asyncio.open_connection(*port.where, ssl=port.tls)
            writer.write(
                f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                "Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n".encode()
            )
            async with asyncio.timeout(180):
                head = await reader.readuntil(b"\r\n\r\n")
            assert head.split()[1] in (b"401", b"403")
            writer.close()

    offered.go(scenario)
    assert len([line for line in offered.audited() if line["event"] == "refused"]) == 2


def test_a_signed_in_browser_may_look_and_no_more(offered):
    async def scenario(port):
        signed = await port.post("/signin", data={"token": offered.viewer})
        cookie = {"Cookie": signed.headers["Set-Cookie"].partition(";")[0]}
        assert (await port.get("/v2/models/simple", headers=cookie)).status == 200
        answer = await port.post(INFER, data=json.dumps(ASKED), headers=cookie)
        assert answer.status == 403

    offered.go(scenario)
