"""Changes told to all who watch; those who are slow, or too many, cost no memory."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.http import feed as feeds
from aggregator.http.feed import WAITING, WATCHERS, Feed, changes
from edge_attention.core.errors import ResourceExhausted, Unavailable

SECTIONS = st.fixed_dictionaries(
    {name: st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3)) for name in ("nodes", "runs")}
)


@given(SECTIONS, SECTIONS)
def test_changes_lead_from_one_snapshot_to_the_other(before, after):
    told = changes(before, after)
    page = {section: dict(values) for section, values in before.items()}
    for section, values in told.items():
        for key, value in values.items():
            if value is None:
                del page[section][key]
            else:
                page[section][key] = value
    assert page == after
    assert (told == {}) == (before == after)


def parsed(data):
    kind, _, text = data.decode().strip().partition("\n")
    return kind.removeprefix("event: "), json.loads(text.removeprefix("data: "))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(feeds, "TICK_SECONDS", 0.001)


def watched(scenario):
    async def whole():
        state = {"nodes": {"a": 0}}
        feed = Feed(lambda: {"nodes": dict(state["nodes"])})
        try:
            async with asyncio.timeout(180):
                await scenario(feed, state["nodes"])
        finally:
            feed.close()

    asyncio.run(whole())


def test_every_watcher_is_told_what_changed_and_nothing_else(quick):
    async def scenario(feed, nodes):
        one, other = feed.watch(), feed.watch()
        assert feed.whole()["nodes"] == {"a": 0}
        nodes["b"] = 1
        for watcher in (one, other):
            (kind, data), *more = [parsed(d) for d in await watcher.take(20)]
            assert (kind, data["nodes"], more) == ("change", {"b": 1}, [])
        del nodes["a"]
        assert [parsed(d)[1]["nodes"] for d in await one.take(20)] == [{"a": None}]
        assert await one.take(0.05) == []

    watched(scenario)


def test_a_watcher_that_lags_is_told_to_start_over_and_keeps_little(quick):
    async def scenario(feed, nodes):
        slow, quick = feed.watch(), feed.watch()
        for i in range(3 * WAITING):
            nodes["a"] = i + 1
            assert await quick.take(20)
        assert not quick.lagging
        assert slow.lagging
        assert await slow.take(20) == []
        assert feed.whole()["nodes"] == {"a": 3 * WAITING}

    watched(scenario)


def test_watchers_are_capped_and_leave_room_when_they_go(quick):
    async def scenario(feed, nodes):
        all_of_them = [feed.watch() for _ in range(WATCHERS)]
        with pytest.raises(ResourceExhausted, match="close one"):
            feed.watch()
        feed.leave(all_of_them[0])
        feed.watch()

    watched(scenario)


def test_one_who_watches_with_many_pages_leaves_some_to_others(quick):
    async def scenario(feed, nodes):
        own = [feed.watch("viewer/ana") for _ in range(WATCHERS // 2)]
        with pytest.raises(ResourceExhausted, match="32 pages of yours"):
            feed.watch("viewer/ana")
        with pytest.raises(ResourceExhausted, match="pages of yours"):
            feed.require_room("viewer/ana")
        feed.watch("operator/ben")
        feed.leave(own[0])
        feed.leave(own[1])
        feed.watch("viewer/ana")

    watched(scenario)


def test_a_snapshot_that_fails_once_does_not_end_the_feed(quick, caplog):
    async def scenario(feed, nodes):
        watcher = feed.watch()
        good, tries = feed._take, []

        def take():
            tries.append(1)
            if len(tries) == 1:
                raise RuntimeError("odd")
            return good()

        feed._take = take
        nodes["b"] = 1
        assert parsed((await watcher.take(20))[0])[1]["nodes"] == {"b": 1}
        assert "could not be told" in caplog.text

    watched(scenario)


def test_closing_ends_every_watch_and_lets_nobody_in():
    async def scenario(feed, nodes):
        watcher = feed.watch()
        feed.close()
        await watcher.take(20)
        assert watcher.closed
        with pytest.raises(Unavailable, match="stopping"):
            feed.watch()

    watched(scenario)
