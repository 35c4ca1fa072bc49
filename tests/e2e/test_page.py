"""The live page in a real browser, in front of real processes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import struct
import sys
import threading
from pathlib import Path

import browsers
import pytest
import schools
from browsers import Browser
from fleets import SPEC, queries, tokens, until
from schools import Schools

from aggregator.recipes import RECIPES
from aggregator.server import ServerSettings, running
from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.messages.fleet import DescribeAggregatorRequest, ListNodesRequest
from edge_attention.core.messages.training import LocalSpec, OptimizerSpec, RunState
from edge_attention.wire.services import DESCRIBE_AGGREGATOR

sys.path.append(str(Path(__file__).resolve().parents[1] / "aggregator"))
import dialled
from toy_recipe import ROLL_CALL, toy

NODES = ("a", "b", "c")
LEASE = ("--lease", "3")
TOKENS = 600


def page_of(fleet):
    return fleet.child(AGGREGATOR).wait_for(r"page at (\S+)")[1]


def size_of(png):
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.fixture(scope="module")
def browser():
    with Browser() as made:
        yield made


@pytest.fixture
def lively(tmp_path):
    """Three nodes with tokens of a context, and a job they let train."""
    browsers.find()
    with Schools(tmp_path, *LEASE, "--metrics-port", "0", names=NODES, store=True) as own:
        job = schools.job(rounds=30, nodes=NODES, holdout=0.2, evaluate_every=5)
        rate = LocalSpec(OptimizerSpec("sgd", {"lr": 1e30}), batch=16, steps=10)
        steep = schools.job(rounds=5, name="steep", nodes=NODES, local=rate)
        own.allow(job, steep)
        own.start()
        own.job, own.steep = job, steep
        context = own.client.create_context("memory", **SPEC)
        keys, values = tokens(TOKENS)
        for i, node in enumerate(NODES):
            part = slice(i * TOKENS // 3, (i + 1) * TOKENS // 3)
            context.append(keys[part], values[part], node=node)
        own.context = context
        yield own


def test_nodes_queries_and_a_run_are_shown_as_they_happen(lively, browser, tmp_path):
    browser.go(page_of(lively.fleet))
    browser.wait("^live$", "#connection")
    browser.wait("All is well", "h1")
    for node in NODES:
        browser.wait("ready", f"#nodes-table tr[data-node={node}]")
    assert browser.count("#nodes-table tbody tr") == 3
    labels = browser.run(
        "return [...document.querySelectorAll('[data-context=memory] svg')].map(e => e.ariaLabel)"
    )
    assert labels == [f"{node} holds tokens {i * 200} to {(i + 1) * 200}" for i, node in enumerate(NODES)]

    # A query, a training run: they come up without a reload.
    browser.run("window.notReloaded = true")
    assert lively.context.attend(queries(4)).exact
    browser.wait("memory.*exact", "#queries-table tbody tr")
    browser.wait("a.*b.*c", "#masses")
    run = lively.client.train(lively.job)
    card = f"[data-run={run.id}]"
    browser.wait_for(card)
    assert list(run)[-1].number == 30
    assert run.describe().state is RunState.FINISHED
    browser.wait("finished", card)
    browser.wait("30 of 30", card)
    until_drawn = f"{card} .losses path.curve"
    browser.wait_for(until_drawn)
    assert browser.count(until_drawn) == 2, "the loss, and the held-out loss"
    steps = browser.run(
        f"return document.querySelector('{until_drawn}').getAttribute('d').match(/[ML]/g).length"
    )
    assert steps == 30
    browser.wait(r"30\s+0\.", "#rounds-table tbody tr")
    assert browser.run("return window.notReloaded") is True

    made = browsers.folder(tmp_path)
    for shot in browser.shots(made, "page"):
        assert size_of(shot)[0] == (390 if "phone" in shot.name else 1280)
    assert browser.complaints() == []


def test_a_node_that_is_killed_is_wrong_in_words_and_right_when_it_is_back(lively, browser, tmp_path):
    browser.go(page_of(lively.fleet))
    browser.wait("All is well", "h1")
    lively.fleet.kill("b")
    browser.wait("lost", "#nodes-table tr[data-node=b]")
    browser.wait("thing", "h1")
    browser.wait("Node b is lost. Nobody else that is here holds its 200 tokens of 'memory'", "#troubles")
    browser.wait("start edge-node --name b", "#troubles")
    browser.wait("out of reach", "[data-context=memory]")
    # Those who do not see it are told.
    browser.wait("Node b is lost", "#news")
    assert not lively.context.attend(queries(2), deadline=60.0).exact
    browser.wait("partial.*of the tokens; off by at most.*node 'b' is lost", "#queries-table tbody tr")
    run = lively.client.train(lively.job)
    browser.wait(r"Round 1 waits for b|Waits for", f"[data-run={run.id}] .waits")
    browser.shots(browsers.folder(tmp_path), "page-node-lost")

    lively.begin("b")
    lively.fleet.wait_ready("b")
    browser.wait("ready", "#nodes-table tr[data-node=b]")
    browser.wait("finished", f"[data-run={run.id}]")
    until(lambda: not browser.count("[data-trouble='nodes/missed']"), "the end of the trouble")
    browser.wait("Node b is ready", "#news")
    assert browser.complaints() == []


def test_what_was_wrong_is_told_apart_from_what_is_and_can_be_put_away(lively, browser, tmp_path):
    url = page_of(lively.fleet)
    browser.go(url)
    browser.wait("All is well", "h1")
    run = lively.client.train(lively.steep)
    until(lambda: run.describe().state is RunState.FAILED, "the run that diverges")
    reason, card = run.describe().detail, f"[data-run={run.id}]"
    assert reason.startswith("the update of every node")
    reason = f"T{reason[1:]}"  # as a sentence begins
    browser.wait(f"What was wrong.*Run {run.id} failed after round", "#past")
    assert browser.text("h1") == "All is well", "nothing is wrong now"
    browser.wait("start it anew", card)
    browser.wait(f"runs delete {run.id}", card)
    assert "train resume" not in browser.text(), "it would end so again"
    assert browser.text().count(reason) == 1
    browser.run("document.querySelector('#past a').click()")
    browser.wait(f"Run {run.id}", "#own-title")
    assert browser.text().count(reason) == 1
    browser.run("document.querySelector('#own > p a').click()")
    browser.wait("^Fleet$", "#fleet-title")

    # A bad day: two nodes at once, of one cause.
    for node in ("b", "c"):
        lively.fleet.kill(node)
    alone = "Nodes b and c are lost. Nobody else that is here holds their 400 tokens of 'memory'"
    browser.wait(alone, "#troubles")
    assert browser.count("#troubles [data-trouble]") == 1, "one sentence for all of one cause"
    browser.wait("Nodes b and c are lost|Node c is lost", "#news")
    assert not lively.context.attend(queries(2), deadline=60.0).exact
    browser.wait("partial.*of the tokens", "#queries-table tbody tr")
    browser.shots(browsers.folder(tmp_path), "page-bad-day")

    browser.run("document.querySelector('#past button').focus()")
    browser.press("\ue007")  # Enter
    until(lambda: not browser.count("#past *"), "the end of what was wrong")
    assert browser.run("return document.activeElement.id") == "main", "the keyboard goes on from here"
    browser.go(url)
    browser.wait(alone, "#troubles")
    assert not browser.count("#past *"), "it stays away"
    run.delete()
    until(lambda: not browser.count(card), "the end of the run that was deleted")
    assert browser.complaints() == []


def test_a_run_a_context_and_a_node_have_pages_of_their_own(lively, browser, tmp_path):
    assert lively.context.attend(queries(2)).exact
    run = lively.client.train(lively.job)
    assert list(run)[-1].number == 30
    browser.go(page_of(lively.fleet))
    browser.wait("finished", f"[data-run={run.id}]")
    made = browsers.folder(tmp_path)

    browser.run("document.querySelector('#nodes-table tr[data-node=b] a').click()")
    browser.wait("Node b", "#own-title")
    browser.wait("200", "#own-body [data-node=b]")
    browser.wait("ready: registered", "#own-body")
    browser.wait("memory", "#contexts [data-context=memory]")
    assert browser.run("return document.activeElement.id") == "main"
    assert not browser.run("return document.getElementById('fleet').offsetParent"), "the one page makes way"
    lively.fleet.kill("b")
    browser.wait("lost: ", "#own-body")
    browser.shots(made, "page-node")
    lively.begin("b")
    lively.fleet.wait_ready("b")

    browser.run("document.querySelector('[data-context=memory] a').click()")
    browser.wait("Context memory", "#own-title")
    browser.wait("exact", "#queries-table tbody tr")
    browser.wait("a.*b.*c", "#masses")
    browser.shots(made, "page-context")

    url = f"{page_of(lively.fleet)}#run/{run.id}"
    browser.go(url)
    browser.wait(f"Run {run.id}", "#own-title")
    until(lambda: browser.count("#rounds-table tbody tr") == 30, "all of its rounds")
    browser.wait_for(f"[data-run={run.id}] .losses path.curve")
    browser.shots(made, "page-run")
    lively.fleet.kill(AGGREGATOR)
    lively.fleet.start_aggregator(*LEASE, "--metrics-port", "0")
    url = f"{page_of(lively.fleet)}#run/{run.id}"
    browser.go(url)
    browser.wait(r"earlier.*30\s.*earlier.*29\s", "#rounds-table tbody")
    browser.wait_for(f"[data-run={run.id}] .losses path.curve")
    browser.go(url.replace(run.id, "none-123456"))
    browser.wait("There is no run of this name", "#own-body")
    ids = browser.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    browser.run("document.querySelector('#sections a').click()")
    browser.wait("^Fleet$", "#fleet-title")
    assert browser.complaints() == []


def test_names_stay_on_a_line_and_cards_side_by_side_end_together(lively, browser):
    name = "ward-7-vital-signs-" * 2 + "of-the-night"
    keys, values = tokens(40)
    context = lively.client.create_context(name, **SPEC)
    context.append(keys, values, node="a")
    browser.go(page_of(lively.fleet))
    assert lively.context.attend(queries(2)).exact
    browser.wait("a.*b.*c", "#masses")  # of queries close behind each other only the first is looked at
    assert context.attend(queries(2)).exact
    browser.wait("ward-7.*memory", "#queries-table tbody")
    lines = """
        return [...document.querySelectorAll('.name')].filter(e => e.offsetParent && !e.closest('details'))
            .map(e => [e.innerText, e.offsetHeight / parseFloat(getComputedStyle(e).lineHeight)])"""
    try:
        for size in browsers.SIZES:
            browser.look(size, "light")
            assert browser.run("return document.documentElement.scrollWidth") <= browsers.SIZES[size][0]
            found = browser.run(lines)
            assert name in [text for text, _ in found]
            assert [text for text, count in found if count > 1.5] == []
    finally:
        browser.look("desktop", "light")
    edges = "return [...document.querySelectorAll('.two .card')].map(e => e.getBoundingClientRect().toJSON())"
    left, right = browser.run(edges)
    assert (left["top"], left["bottom"]) == (right["top"], right["bottom"])
    whole = browser.run("return document.querySelector('#asked .card').getBoundingClientRect().toJSON()")
    assert (left["left"], right["right"]) == (whole["left"], whole["right"]), "no hole beside or below them"


def test_nodes_may_be_called_what_every_object_of_a_script_has(fleet, browser):
    """Each context is on one of them only, so that every name is also looked up where it is not."""
    names = ("a", "constructor", "hasOwnProperty", "toString", "valueOf")
    own = fleet("--metrics-port", "0")
    browser.go(page_of(own))
    browser.wait("^live$", "#connection")
    own.nodes(*names)
    with own.client() as client:
        keys, values = tokens(4)
        context = client.create_context("memory", **SPEC)
        context.append(keys, values, node="a")
        client.create_context("valueOf", **SPEC).append(keys, values, node="constructor")
        assert context.attend(queries(2)).exact
    for name in names:
        browser.wait("ready", f"#nodes-table tr[data-node={name}]")
    browser.wait("memory.*exact", "#queries-table tbody tr")
    browser.wait("All is well", "h1")
    labels = "return [...document.querySelectorAll('[data-context] svg')].map(e => e.ariaLabel)"
    held = [f"{node} holds tokens 0 to 4" for node in ("a", "constructor")]
    until(lambda: sorted(browser.run(labels)) == held, "both contexts on the page")
    browser.wait("Node constructor is ready", "#news")
    tokens_of = (
        "return [...document.querySelectorAll('#nodes-table tbody tr')].map(r => r.cells[3].innerText)"
    )
    assert browser.run(tokens_of) == ["4", "4", "0", "0", "0"]
    assert browser.complaints() == []


def test_an_empty_fleet_teaches_and_a_lost_connection_is_said_and_comes_back(fleet, browser, tmp_path):
    browsers.find()
    own = fleet("--metrics-port", "0", state=True)
    url = page_of(own)
    browser.go(url)
    browser.wait("Ready for its first node", "h1")
    browser.wait(f"edge-node --aggregator {own.address} --name a", "#nodes")
    browser.wait("edge-attention contexts create", "#contexts")
    browser.wait("edge-attention train job.toml --plan", "#runs")
    browser.shots(browsers.folder(tmp_path), "page-empty")
    assert browser.complaints() == []

    own.kill(AGGREGATOR)
    browser.wait("connection lost, trying again", "#connection")
    assert browser.run("return document.body.classList.contains('stale')")
    own.start_aggregator("--metrics-port", url.rstrip("/").rpartition(":")[2])
    browser.wait("^live$", "#connection")
    assert not browser.run("return document.body.classList.contains('stale')")
    own.nodes("late")
    browser.wait("ready", "#nodes-table tr[data-node=late]")


def test_an_aggregator_that_answers_nothing_is_said_to_be_lost_and_is_found_again(fleet, browser):
    """Frozen, as behind a link that swallows all: it takes connections and closes none."""
    own = fleet("--metrics-port", "0")
    browser.go(page_of(own))
    browser.wait("^live$", "#connection")
    own.freeze(AGGREGATOR)
    browser.wait("connection lost, trying again", "#connection")
    own.thaw(AGGREGATOR)
    browser.wait("^live$", "#connection")


def test_it_works_by_keyboard_and_says_what_it_is(shared, browser):
    from selenium.webdriver.common.keys import Keys

    browser.go(page_of(shared))
    browser.wait_for("#nodes-table")
    focused = (
        "const e = document.activeElement; return [e.tagName, e.innerText, getComputedStyle(e).outlineStyle]"
    )
    browser.press(Keys.TAB)
    assert browser.run(focused) == ["A", "Skip to the fleet", "solid"]
    browser.press(Keys.ENTER)
    assert browser.run("return document.activeElement.id") == "main"
    seen = []
    for _ in range(6):
        browser.press(Keys.TAB)
        tag, text, outline = browser.run(focused)
        assert outline == "solid", (tag, text)
        seen.append(tag)
    assert len(set(seen)) > 1, "a table that scrolls, a summary that opens"

    assert browser.run("return document.documentElement.lang") == "en"
    for landmark in ("header", "nav[aria-label]", "main", "footer", "[aria-live=polite]", "[role=status]"):
        assert browser.count(landmark) >= 1, landmark
    assert browser.count("h1") == 1
    assert browser.count("table") == browser.count("table > caption") >= 1
    assert browser.count("th:not([scope])") == 0
    assert browser.count("svg[role=img]:not([aria-label])") == 0
    assert browser.count("section:not([aria-labelledby])") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(shared, browser, theme):
    browser.look("phone", theme)
    try:
        browser.go(page_of(shared))
        browser.wait_for("#nodes-table")
        assert browser.run("return document.documentElement.scrollWidth") <= 390
        back = browser.run("return getComputedStyle(document.body).backgroundColor")
        light = sum(int(part) for part in back[4:-1].split(",")) > 3 * 128
        assert light == (theme == "light")
    finally:
        browser.look("desktop", "light")


def test_a_recipe_draws_its_own_part_of_the_page(browser):
    """The toy recipe beside the others: its section, link, tile, column and news, by its own script alone."""
    ready, stop = threading.Event(), threading.Event()
    found = {}

    async def serve():
        settings = ServerSettings("127.0.0.1", 0, None, "127.0.0.1", 0, 10.0, 60.0)
        async with (
            running(settings, (*RECIPES, toy)) as port,
            dialled.node(port, "a"),
            dialled.caller(port) as client,
        ):
            about = await client.unary(DESCRIBE_AGGREGATOR, DescribeAggregatorRequest(), 60)
            found["url"] = f"http://127.0.0.1:{about.http_port}/"
            found["call"] = lambda: asyncio.run_coroutine_threadsafe(
                client.unary(ROLL_CALL, ListNodesRequest(), 60), loop
            ).result(60)
            loop = asyncio.get_running_loop()
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        browser.go(found["url"])
        browser.wait("^live$", "#connection")
        browser.wait("Roll call", "#sections")
        assert browser.count("section#roll[aria-labelledby=roll-title]") == 1
        assert browser.count("section#memory") == browser.count("section#training") == 1
        browser.wait("0.*nodes have answered", "#tiles")
        found["call"]()
        browser.wait("a.*1", "#called")
        browser.wait("1.*nodes have answered", "#tiles")
        browser.wait("Answers", "#nodes-table thead")
        browser.wait("Node a has answered", "#news")
        assert browser.complaints() == []
    finally:
        stop.set()
        thread.join(60)


def test_signing_in_with_a_token_over_tls(tmp_path, browser):
    trusted = pytest.importorskip("trusted", reason="this release has no TLS")
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    with trusted.TrustedFleet(tmp_path, "--metrics-port", "0") as fleet:
        for node in NODES:
            fleet.trusted_node(node, wait=False)
        for node in NODES:
            fleet.wait_ready(node)
        url = page_of(fleet)
        assert url.startswith("https://")
        shown = x509.load_pem_x509_certificate((tmp_path / "state" / "trust" / "server.pem").read_bytes())
        key = shown.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        spki = base64.b64encode(hashlib.sha256(key).digest()).decode()
        with Browser(spki=spki) as own:
            own.go(url)
            own.wait("Access token")
            assert own.driver.current_url == f"{url}signin"
            own.shots(browsers.folder(tmp_path), "page-sign-in")
            own.run("document.getElementById('token').focus()")
            own.press("eat_no\n")
            own.wait("token", "[role=alert]")
            own.run("document.getElementById('token').focus()")
            own.press(fleet.token("viewer") + "\n")
            own.wait("^live$", "#connection")
            for node in NODES:
                own.wait("ready", f"#nodes-table tr[data-node={node}]")
            own.wait("viewer", "#signout")
            own.run("document.querySelector('#nodes details').open = true")
            own.wait("edge-node --aggregator .* --join-token", "#nodes details")
            assert own.run("return document.cookie") == "", "a script does not get the session"
            own.shots(browsers.folder(tmp_path), "page-tls")
            own.run("document.querySelector('#signout button').click()")
            own.wait("Access token")
            own.go(url)
            own.wait("Access token")

            own.run("document.getElementById('token').focus()")
            own.press(fleet.token("viewer") + "\n")
            own.wait("^live$", "#connection")
            fleet.kill(AGGREGATOR)
            own.wait("connection lost, trying again", "#connection")
            fleet.start_aggregator(*fleet.flags, "--metrics-port", url.rstrip("/").rpartition(":")[2])
            own.wait("Access token")
            assert own.driver.current_url == f"{url}signin", "the sessions ended with the process"
