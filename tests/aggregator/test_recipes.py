"""A recipe brings its own: another one is a file, and a line where the server is put together."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from dialled import caller, node
from house import House
from toy_recipe import ROLL_CALL, toy

from aggregator.engine.recipe import Recipe
from aggregator.http.routes import ServiceStatus
from aggregator.http.snapshot import Snapshots
from aggregator.observe.page import PagePart
from aggregator.recipes import RECIPES
from aggregator.server import ServerSettings, running
from aggregator.trust.endpoint import Endpoint
from aggregator.trust.trust import TrustSettings
from edge_attention.core.errors import Internal, PermissionDenied, Unauthenticated
from edge_attention.core.messages.fleet import DescribeAggregatorRequest, ListNodesRequest
from edge_attention.trust.dial import Dial
from edge_attention.trust.tokens import read_token
from edge_attention.wire.services import DESCRIBE_AGGREGATOR, LIST_NODES

WITH_TOY = (*RECIPES, toy)


def test_a_toy_recipe_is_served_audited_counted_and_on_the_page(tmp_path):
    async def scenario():
        settings = ServerSettings("127.0.0.1", 0, tmp_path, "127.0.0.1", 0, 10.0, 60.0)
        async with (
            running(settings, WITH_TOY) as port,
            node(port, "a"),
            node(port, "b"),
            caller(port) as client,
            aiohttp.ClientSession() as http,
        ):
            answer = await client.unary(ROLL_CALL, ListNodesRequest(), 60)
            about = await client.unary(DESCRIBE_AGGREGATOR, DescribeAggregatorRequest(), 60)
            base = f"http://127.0.0.1:{about.http_port}"
            metrics = await (await http.get(f"{base}/metrics")).text()
            state = await (await http.get(f"{base}/api/state")).json()
            listed = await (await http.get(f"{base}/recipes.js")).text()
            script = await http.get(f"{base}/recipes/roll-call.js")
            assert script.content_type == "text/javascript"
            assert await script.text() == Path(__file__).with_name("toy_page.js").read_text()
        return {one.name for one in answer.nodes}, metrics, state, listed

    nodes, metrics, state, listed = asyncio.run(scenario())
    assert nodes == {"a", "b"}
    assert "edge_attention_aggregator_roll_call_answers_total 2.0" in metrics
    assert state["tiles"] == {"Roll call": {"value": "2 of 2", "more": "were here when asked"}}
    assert state["called"] == {"a": 1, "b": 1}
    assert state["contexts"] == {}, "the others are there as well"
    paths = re.findall(r'from "/recipes/([^"]+)";', listed)
    assert paths == ["attention.js", "inference.js", "training.js", "roll-call.js"], (
        "as the server adds them up"
    )
    (line,) = [
        line
        for line in map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
        if line["event"] == "roll_called"
    ]
    assert (line["outcome"], line["nodes"]) == ("ok", 2)


def test_a_toy_recipes_role_is_asked_for(tmp_path):
    async def scenario():
        boot = tmp_path / "boot"
        trust = TrustSettings(bootstrap=boot)
        settings = ServerSettings("127.0.0.1", 0, tmp_path / "state", "127.0.0.1", None, 10.0, 60.0, trust)
        async with running(settings, WITH_TOY) as port:
            async with caller(port, boot / "viewer-token") as viewer:
                await viewer.unary(LIST_NODES, ListNodesRequest(), 60)
                with pytest.raises(PermissionDenied, match="RollCall needs the role user"):
                    await viewer.unary(ROLL_CALL, ListNodesRequest(), 60)
            async with caller(port, boot / "operator-token") as operator:
                assert (await operator.unary(ROLL_CALL, ListNodesRequest(), 60)).nodes == ()
            stranger = Dial(f"127.0.0.1:{port}", token=read_token(boot / "viewer-token", "access"))
            stranger._metadata = tuple
            client = stranger.caller()
            with pytest.raises(Unauthenticated):
                await client.unary(ROLL_CALL, ListNodesRequest(), 60)
            await client.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("role", [None, "", "anybody"])
def test_an_aggregator_with_a_method_that_has_no_role_does_not_start(tmp_path, role, tls):
    def careless(engine):
        made = toy(engine)
        return replace(made, endpoints=tuple(replace(one, role=role) for one in made.endpoints))

    async def scenario():
        trust = TrustSettings() if tls else None
        settings = ServerSettings("127.0.0.1", 0, tmp_path, "127.0.0.1", None, 10.0, 60.0, trust)
        async with running(settings, (*RECIPES, careless)):
            raise AssertionError("it must not start")

    with pytest.raises(Internal, match="RollCall would be served without a role"):
        asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "endpoints", "said"),
    [
        ("thief", (Endpoint(LIST_NODES, None, "viewer"),), "ListNodes would be served twice"),
        ("training", (), "two recipes are called 'training'"),
    ],
)
def test_a_recipe_that_takes_what_is_anothers_does_not_start(name, endpoints, said):
    async def scenario():
        settings = ServerSettings("127.0.0.1", 0, None, "127.0.0.1", None, 10.0, 60.0)
        async with running(settings, (*RECIPES, lambda engine: Recipe(name, endpoints))):
            raise AssertionError("it must not start")

    with pytest.raises(Internal, match=said):
        asyncio.run(scenario())


def test_two_recipes_whose_names_make_one_path_do_not_start(tmp_path):
    async def scenario():
        settings = ServerSettings("127.0.0.1", 0, None, "127.0.0.1", 0, 10.0, 60.0)
        script = Path(__file__).with_name("toy_page.js")
        async with running(settings, (toy, lambda engine: Recipe("roll-call", script=script))):
            raise AssertionError("it must not start")

    with pytest.raises(Internal, match=r"two recipes would have the script /recipes/roll-call\.js"):
        asyncio.run(scenario())


def test_two_parts_of_the_page_with_one_section_are_told_apart():
    """Of the page's own sections and of other recipes': neither hides the other in silence."""
    with House() as house:
        pages = {"thief": lambda fleet: PagePart(sections={"nodes": {}})}
        taken = Snapshots(house.membership, pages, ServiceStatus(), house.metrics, {})
        with pytest.raises(Internal, match="have a section 'nodes'"):
            taken.take()


BELOW = ("engine", "trust", "observe", "store", "fleet", "bounds", "serving", "http", "api")


@pytest.mark.parametrize("folder", BELOW)
def test_nothing_below_or_beside_a_recipe_imports_one(folder):
    root = Path(__file__).resolve().parents[2] / "aggregator" / folder
    files = list(root.rglob("*.py"))
    assert files
    for path in files:
        text = path.read_text(encoding="utf-8")
        for recipe in ("attention", "training", "checkup"):
            assert f"aggregator.{recipe}" not in text, f"{path} imports {recipe}"
