"""The page's data, from a house with real nodes in it."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import small_job
from house import House, until
from ports import run

from aggregator.attention.page import ranges
from aggregator.http import feed, live
from aggregator.http.feed import WATCHERS
from edge_attention.core.errors import NotFound
from edge_attention.core.messages.attention import AttendRequest, ContextSpec

SPEC = ContextSpec("memory", query_heads=4, key_heads=2, key_dim=16, value_dim=8)


async def fill(house, **tokens):
    """Append so many tokens at each node, in order."""
    await house.contexts.create(SPEC)
    random = np.random.default_rng(0)
    for node, count in tokens.items():
        keys = random.standard_normal((count, 2, 16)).astype(np.float32)
        values = random.standard_normal((count, 2, 8)).astype(np.float32)
        await house.appender.append("memory", node, keys, values)


def attend(house, context="memory", **changed):
    queries = np.random.default_rng(1).standard_normal((3, 4, 16)).astype(np.float32)
    return house.attender.attend(AttendRequest(context, queries, **changed))


class Stream:
    """Server-sent events, as they come."""

    def __init__(self, response):
        self.response = response

    async def event(self):
        lines = []
        while line := (await self.response.content.readline()).decode():
            if line == "\n":
                fields = dict(one.split(": ", 1) for one in lines)
                if "event" in fields:
                    return fields["event"], json.loads(fields["data"])
                lines = []
            else:
                lines.append(line.rstrip("\n"))
        return None, None

    async def until(self, good):
        """The first change `good` is true of."""
        while True:
            kind, data = await self.event()
            assert kind is not None, "the stream ended"
            if kind == "change" and good(data):
                return data


def test_an_aggregator_with_nothing_in_it():
    async def scenario(port):
        state = (await port.get("/api/state")).json
        assert state["you"] is None
        assert state["aggregator"]["self"]["address"] == "127.0.0.1:50051"
        assert state["aggregator"]["self"]["phase"] == "starting"
        for section in ("troubles", "nodes", "contexts", "runs", "curves", "queries", "rounds", "spans"):
            assert state[section] == {}

    run(scenario)


def test_who_holds_what_and_what_is_out_of_reach():
    async def scenario(port):
        port.house.node("a", releases=["attention"])
        b = port.house.node("b")
        await fill(port.house, a=300, b=200)
        state = (await port.get("/api/state")).json
        context = state["contexts"]["memory"]
        assert context["tokens"] == 500
        assert context["holders"] == {"a": [[0, 300]], "b": [[300, 500]]}
        assert context["held"] == {"a": 300, "b": 200}
        assert context["away"] == []
        assert state["nodes"]["a"]["state"] == "ready"
        assert state["nodes"]["a"]["since"] is None
        b.lose()
        state = (await port.get("/api/state")).json
        assert state["nodes"]["b"]["state"] == "lost"
        turns = state["nodes"]["b"]["turns"]
        assert turns[0][1:] == ["registered", "ready"]
        assert [became for _, _, became in turns] == ["ready", "suspect"], "lost is what the test has made it"
        assert abs(turns[0][0] - state["now"]) < 3600, "seconds since 1970"
        assert state["contexts"]["memory"]["away"] == [[300, 500]]
        assert "200 tokens of 'memory'" in state["troubles"]["nodes/missed"]["text"]

    run(scenario)


def test_queries_exact_partial_and_failed():
    async def scenario(port):
        port.house.node("a")
        b = port.house.node("b")
        await fill(port.house, a=300, b=200)
        assert (await attend(port.house)).exact
        b.lose()
        assert not (await attend(port.house, deadline_seconds=5.0)).exact
        await until(lambda: len(port.house.attend_activity.queries) == 2)
        with pytest.raises(NotFound, match="nowhere"):
            await attend(port.house, "nowhere")
        state = (await port.get("/api/state")).json
        one, two, three = state["queries"].values()
        assert [q["outcome"] for q in (one, two, three)] == ["exact", "partial", "failed"]
        assert abs(sum(one["mass"].values()) - 1) < 1e-2
        assert set(one["mass"]) == {"a", "b"}
        assert one["bound"] is None
        assert set(one["seconds"]) >= {"plan", "wait", "merge", "node_run", "all"}
        assert two["share"] == 0.6
        assert two["bound"] > 0
        assert "200 tokens of b" in two["why"][0]
        assert "nowhere" in three["why"][0]
        spans = state["spans"].values()
        assert [sum(s[o] for s in spans) for o in ("exact", "partial", "failed")] == [1, 1, 1]

    run(scenario)


def test_a_run_with_its_curve_masses_and_rounds():
    async def scenario(port):
        house = port.house
        job, models = small_job.job(rounds=4, evaluate_every=2)
        for model in models.values():
            house.state.put_blob(model)
        planned = (await house.runs.plan(job)).graphs
        for lab in "ab":
            released = sorted({g.release for g in planned if g.node == lab and g.release})
            house.node(lab, datasets=small_job.datasets(lab), releases=released)
        id = (await house.runs.start(job)).id
        await until(lambda: house.runs.describe(id).state.value != "running")
        state = (await port.get("/api/state")).json
        assert state["runs"][id]["state"] == "finished", state["runs"][id]["detail"]
        assert (state["runs"][id]["round"], state["runs"][id]["version"]) == (4, 4)
        curves = state["curves"][id]
        assert curves["loss"]["x"] == [1, 2, 3, 4]
        assert all(value > 0 for value in curves["loss"]["y"]["loss"])
        assert curves["evaluation"]["x"] == [2, 4]
        assert set(curves["evaluation"]["y"]) == {"loss", "correct"}
        assert set(curves["mass"]["y"]) == {"a", "b"}
        assert {f"{id}/{n}" for n in (1, 2, 3, 4)} == set(state["rounds"])

    run(scenario)


def test_the_next_process_draws_the_curves_again(tmp_path):
    async def train(house):
        job, models = small_job.job(rounds=6, evaluate_every=3)
        for model in models.values():
            house.state.put_blob(model)
        planned = (await house.runs.plan(job)).graphs
        for lab in "ab":
            released = sorted({g.release for g in planned if g.node == lab and g.release})
            house.node(lab, datasets=small_job.datasets(lab), releases=released)
        id = (await house.runs.start(job)).id
        await until(lambda: house.runs.describe(id).state.value != "running")
        return id

    with House(tmp_path) as house:
        id = asyncio.run(train(house))
        drawn = house.run_activity.runs[id]
    with House(tmp_path) as house:
        house.runs.recall()
        again = house.run_activity.runs[id]
        assert again.loss.x == [1, 2, 3, 4, 5, 6]
        for name in ("loss", "evaluation", "mass"):
            assert getattr(again, name).series() == getattr(drawn, name).series()
        lines = house.run_activity.rounds
        assert [(line.run, line.number, line.time) for line in lines] == [(id, n, None) for n in range(1, 7)]
        (run,) = house.runs.overview(5)
        assert (run.id, run.state.value, run.round) == (id, "finished", 6)
        assert [row.round for row in house.state.records(id, 0, 2)] == [2, 4, 6]


def test_events_begin_with_the_whole_and_go_on_with_changes(monkeypatch):
    monkeypatch.setattr(feed, "TICK_SECONDS", 0.01)

    async def scenario(port):
        port.house.node("a")
        async with port.client.get(port.base + "/api/events") as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            assert response.headers["Cache-Control"] == "no-store"
            stream = Stream(response)
            kind, whole = await stream.event()
            assert kind == "state"
            assert set(whole["nodes"]) == {"a"}
            b = port.house.node("b")
            assert (await stream.until(lambda d: "b" in d.get("nodes", {})))["nodes"]["b"]["state"] == "ready"
            b.lose()
            lost = await stream.until(lambda d: d.get("nodes", {}).get("b", {}).get("state") == "lost")
            assert "a" not in lost["nodes"]
            port.server.serving()
            await stream.until(lambda d: d.get("aggregator", {}).get("self", {}).get("phase") == "serving")
            # At its end it is ended, not cut off.
            await port.server.close()
            while (await stream.event())[0] is not None:
                pass

    run(scenario)


def test_a_stream_without_news_says_that_it_is_alive(monkeypatch):
    monkeypatch.setattr(live, "ALIVE_SECONDS", 0.01)

    async def scenario(port):
        async with port.client.get(port.base + "/api/events") as response:
            stream = Stream(response)
            kinds = [(await stream.event())[0] for _ in range(3)]
            assert kinds[0] == "state"
            assert "alive" in kinds

    run(scenario)


def test_watchers_too_many_are_told_so_and_a_head_request_says_why():
    async def scenario(port):
        opened = [await port.client.get(port.base + "/api/events") for _ in range(WATCHERS)]
        for response in opened:
            assert (await Stream(response).event())[0] == "state"
        refused = await port.get("/api/events")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert "close one" in refused.text
        assert (await port.get("/api/events", "HEAD")).status == 503
        opened[0].close()
        async with asyncio.timeout(180):
            while (await port.get("/api/events", "HEAD")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    run(scenario)


def test_token_ranges_are_joined_and_bounded():
    assert ranges([range(10, 20), range(0, 10), range(30, 40)], 40) == [[0, 20], [30, 40]]
    scattered = [range(i, i + 1) for i in range(0, 10_000, 2)]
    told = ranges(scattered, 10_000, limit=50)
    assert len(told) <= 50
    assert told[0][0] == 0
    assert told[-1][1] == 9_999
