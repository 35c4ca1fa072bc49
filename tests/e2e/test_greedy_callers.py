"""What one caller can make the aggregator hold, and what a good one beside it notices of that.

The aggregator is a process of its own whose memory is watched; what is asked is legal, and asked over bare
gRPC where our client would not ask so.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import grpc
import numpy as np
import psutil
import pytest
from fleets import SPEC, Fleet, exact, queries, tokens, until

from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.errors import (
    EdgeAttentionError,
    InvalidArgument,
    MessageTooLarge,
    Overloaded,
    ResourceExhausted,
)
from edge_attention.core.messages import attention as wire
from edge_attention.wire import services
from edge_attention.wire.errors import from_rpc

MIB = 1024 * 1024
ROOM = 400 * MIB
"""By which the aggregator may grow, whatever is asked: generous, and far from the gigabytes it once took."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with Fleet(tmp_path_factory.mktemp("bounds"), "--metrics-port", "0", state=True) as fleet:
        fleet.nodes("a", "b", flags=("--memory-limit", "512MB"))
        yield fleet


class Peak:
    """The most the aggregator's own memory grew while the block ran; pages of files do not count."""

    def __init__(self, fleet):
        self._process = psutil.Process(fleet.child(AGGREGATOR).pid)

    def _now(self):
        memory = self._process.memory_info()
        return memory.rss - memory.shared

    def __enter__(self):
        self._before = self.grown = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.02):
            self.grown = max(self.grown, self._now())

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.grown -= self._before


class Good:
    """A caller that attends, one call after the other, and checks each answer."""

    def __init__(self, fleet, name):
        self._fleet, self._name = fleet, name
        self.calls = 0
        self.wrong = []

    def __enter__(self):
        self._stop, ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._call, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(60)
        return self

    def _call(self, ready):
        keys, values = tokens(1000)
        with self._fleet.client() as client:
            context = client.create_context(self._name, **SPEC)
            context.append(keys, values)
            while not self._stop.is_set():
                asked = queries(1, seed=self.calls)
                try:
                    exact(context.attend(asked, deadline=120), asked, keys, values)
                except (EdgeAttentionError, AssertionError) as error:
                    self.wrong.append(error)
                self.calls += 1
                ready.set()
                time.sleep(0.02)
            context.drop()

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(60)


@contextlib.contextmanager
def channel(fleet):
    options = [("grpc.max_receive_message_length", 64 * MIB)]
    with grpc.insecure_channel(fleet.address, options=options) as made:
        yield made


def call(made, method, request, timeout=60):
    """The response, or the error it ended with."""
    try:
        return method.response.decode(
            made.unary_unary(method.path)(method.request.encode(request), timeout=timeout)
        )
    except grpc.RpcError as error:
        return from_rpc(error)


def test_a_context_whose_answers_would_be_gigabytes_is_refused_by_name(fleet):
    """Case 23: 1,024 heads of 4,096, one query of which is 16 MB."""
    with channel(fleet) as made:
        for heads, key_heads, key_dim, value_dim in ((1024, 1, 1, 4096), (1024, 1024, 4096, 1)):
            spec = wire.ContextSpec("bomb", heads, key_heads, key_dim, value_dim)
            error = call(made, services.CREATE_CONTEXT, wire.CreateContextRequest(spec))
            assert isinstance(error, InvalidArgument)
            assert "bound width is 262,144" in error.message
        spec = wire.ContextSpec("bomb", 256, 256, 1024, 1024)
        error = call(made, services.CREATE_CONTEXT, wire.CreateContextRequest(spec))
        assert "bound token-bytes is 1,048,576" in error.message


def test_an_answer_that_would_not_fit_is_refused_before_a_node_is_asked(fleet):
    with Good(fleet, "beside-wide") as good, Peak(fleet) as peak, fleet.client() as client:
        wide = client.create_context("wide", query_heads=1024, key_heads=1, key_dim=1, value_dim=256)
        wide.append(np.ones((4, 1, 1), np.float32), np.ones((4, 1, 256), np.float32))
        with channel(fleet) as made:
            for count, named in ((1000, ResourceExhausted), (8, MessageTooLarge)):
                request = wire.AttendRequest("wide", np.zeros((count, 1024, 1), np.float32), weights=True)
                error = call(made, services.ATTEND, request)
                assert isinstance(error, named), error
                assert "ask for fewer queries at a time" in error.message
            tall = client.create_context("tall", query_heads=1, key_heads=1, key_dim=1, value_dim=1)
            tall.append(np.ones((4, 1, 1), np.float32), np.ones((4, 1, 1), np.float32))
            request = wire.AttendRequest("tall", np.zeros((900_000, 1, 1), np.float32))
            error = call(made, services.ATTEND, request)
            assert isinstance(error, ResourceExhausted)
            assert "bound attend-queries: 900,000 queries" in error.message
        # Nothing of it stays, and what does fit is answered.
        assert wide.attend(np.zeros((3, 1024, 1), np.float32)).exact
        wide.drop()
        tall.drop()
    assert not good.wrong, good.wrong[0]
    assert peak.grown < ROOM


def test_appends_that_stay_open_lie_on_the_disk_and_one_caller_has_no_more_than_its_share(fleet):
    """Case 23: 12 appends of 240 MB, none of which ever ends."""
    spec = {"query_heads": 1, "key_heads": 1, "key_dim": 1024, "value_dim": 1024}
    part = np.zeros((120, 1, 1024), np.float32)
    message = services.APPEND.request.encode(wire.AppendRequest("heavy", "", part, part))
    release = threading.Event()

    def endless():
        for _ in range(250):
            yield message
        release.wait(600)

    spool = fleet.folder / "state" / "spool"

    def lie():
        found = 0
        for file in spool.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has just been removed
                found += file.stat().st_size
        return found

    with (
        Good(fleet, "beside-appends") as good,
        Peak(fleet) as peak,
        fleet.client() as client,
        channel(fleet) as made,
    ):
        client.create_context("heavy", **spec)
        append = made.stream_unary(services.APPEND.path)
        calls = [append.future(endless(), timeout=600) for _ in range(12)]
        # A half of the bound for whoever is alone: 8 of 12.
        until(lambda: lie() >= 2000 * MIB - 240 * MIB or sum(c.done() for c in calls) >= 3, "room", 300)
        until(lambda: sum(c.done() for c in calls) >= 3, "a refusal", 200)
        refused = []
        for one in calls:
            if one.done():
                with pytest.raises(grpc.RpcError) as raised:
                    one.result()
                refused.append(from_rpc(raised.value))
        assert all(isinstance(error, Overloaded) for error in refused), refused
        assert all("bound append-bytes" in error.message and error.retry_after > 0 for error in refused)
        assert lie() <= 2 * 1024 * MIB
        # Beside it another caller appends and is not refused.
        with fleet.client() as other:
            mine = other.create_context("mine", **SPEC)
            keys, values = tokens(3000, seed=3)
            mine.append(keys, values)
            asked = queries(2)
            exact(mine.attend(asked), asked, keys, values)
            mine.drop()
        for one in calls:
            one.cancel()
        release.set()
        until(lambda: not lie(), "what was given up to be removed")
        client.context("heavy").drop()
    assert good.calls > 5
    assert not good.wrong, good.wrong[0]
    assert peak.grown < ROOM


def test_many_large_attends_of_one_caller_queue_and_a_good_one_does_not_notice(fleet):
    wide = {"query_heads": 64, "key_heads": 1, "key_dim": 16, "value_dim": 128}
    with fleet.client() as client:
        context = client.create_context("greedy", **wide)
        random = np.random.default_rng(0)
        for _ in range(4):
            context.append(
                random.standard_normal((2048, 1, 16)).astype(np.float32),
                random.standard_normal((2048, 1, 128)).astype(np.float32),
            )
        asked = random.standard_normal((100, 64, 16)).astype(np.float32)
        request = services.ATTEND.request.encode(wire.AttendRequest("greedy", asked, deadline_seconds=60.0))
        with Good(fleet, "beside-greedy") as good, Peak(fleet) as peak, channel(fleet) as made:
            attend = made.unary_unary(services.ATTEND.path)
            calls = [attend.future(request, timeout=100) for _ in range(40)]
            outcomes = []
            for one in calls:
                try:
                    outcomes.append(services.ATTEND.response.decode(one.result()).exact)
                except grpc.RpcError as error:
                    outcomes.append(from_rpc(error))
        assert any(outcome is True for outcome in outcomes)
        # The rest was refused, or on a slow machine late, and says so.
        assert all(outcome in (True, False) or isinstance(outcome, Overloaded) for outcome in outcomes)
        context.drop()
    assert good.calls > 3
    assert not good.wrong, good.wrong[0]
    assert peak.grown < ROOM


STOPS_READING = """
import asyncio, json, os, signal, sys
import grpc.aio

async def main(address, path, message, count):
    channel = grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
    attend = channel.unary_unary(path)
    calls = [attend(message) for _ in range(count)]
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGSTOP)
    said = await asyncio.gather(*calls, return_exceptions=True)
    texts = [str(one.details()) for one in said if not isinstance(one, bytes)]
    print(json.dumps([len(said) - len(texts), texts]), flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

asyncio.run(main(sys.argv[1], sys.argv[2], open(sys.argv[3], "rb").read(), 200))
"""


def test_answers_that_nobody_reads_have_a_bound(fleet, tmp_path):
    """A caller asks for 200 answers of 3.3 MB each, stops, and reads what is left of them a while later."""
    with fleet.client() as client:
        context = client.create_context("unread", query_heads=64, key_heads=1, key_dim=1, value_dim=128)
        context.append(np.ones((4, 1, 1), np.float32), np.ones((4, 1, 128), np.float32))
        request = wire.AttendRequest("unread", np.zeros((100, 64, 1), np.float32))
        message = tmp_path / "request"
        message.write_bytes(services.ATTEND.request.encode(request))
        program = [sys.executable, "-c", STOPS_READING, fleet.address, services.ATTEND.path, str(message)]
        refused = metric(fleet, 'bound_refusals_total{bound="answer-bytes"}')
        with Good(fleet, "beside-unread") as good, Peak(fleet) as peak:
            with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as reader:
                try:
                    until(
                        lambda: metric(fleet, 'bound_refusals_total{bound="answer-bytes"}') > refused,
                        "refusal",
                    )
                    assert 0 < metric(fleet, 'bound_used_ratio{bound="answer-bytes"}') <= 0.5
                    calls = good.calls
                    until(lambda: good.calls > calls + 3, "a good caller's attends")
                    # What it was told when it reads again: some answers, and the bound's name.
                    reader.send_signal(signal.SIGCONT)
                    count, said = json.loads(reader.stdout.readline())
                finally:
                    reader.kill()
            assert 0 < count < 200
            assert count + len(said) == 200
            assert any("bound answer-bytes" in text for text in said)
            until(lambda: not metric(fleet, 'bound_used_ratio{bound="answer-bytes"}'), "the answers' end", 60)
            until(lambda: not metric(fleet, 'bound_used_ratio{bound="calls"}'), "the calls' end", 60)
        context.drop()
    assert not good.wrong, good.wrong[0]
    assert peak.grown < ROOM + 200 * MIB  # of 1,300: gRPC keeps an answer twice, and some attends run


def metric(fleet, series):
    """The aggregator's value of this series now; 0 where there is none yet."""
    port = re.search(r"metrics on \S*:(\d+)", fleet.said(AGGREGATOR))[1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as answer:
        text = answer.read().decode()
    found = re.search(rf"{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_refusals_are_counted_by_the_name_of_the_bound(fleet):
    assert metric(fleet, 'bound_refusals_total{bound="append-bytes"}') >= 1
    assert metric(fleet, 'bound_used_ratio{bound="append-bytes"}') == 0
    assert metric(fleet, 'turns{kind="attend",what="running"}') == 0
