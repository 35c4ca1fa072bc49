"""What the doctor says of facts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_attention.core.messages.attention import Context, ContextSpec, Segment
from edge_attention.core.messages.box import Box
from edge_attention.core.messages.fleet import DescribeAggregatorResponse, Node, NodeState, ProbeNodeResponse
from edge_attention.doctor import box_findings as b
from edge_attention.doctor import connection_findings as c
from edge_attention.doctor import context_findings as x
from edge_attention.doctor import node_findings as n
from edge_attention.doctor.box_findings import Trial
from edge_attention.doctor.connection_findings import ClockReading, Port, Speaks
from edge_attention.doctor.finding import Finding, Grade, duration, size, worst

MIB, GIB = 2**20, 2**30
CPU = "CPUExecutionProvider"
BOX = Box("box-1", 1.0, 4, 4, 0.0, 8 * GIB, 6 * GIB, 0, "auto", (CPU,), {"numpy": "2.1"}, 30.0)
NODE = Node("a", NodeState.READY, CPU, 4, GIB, 0, (), 0.5, "1.0", 0, (), BOX, 1, 60.0, 0.01)
ABOUT = DescribeAggregatorResponse("1.0", 1, 3600.0, 10.0, 3.0, 30.0, 15.0, 0, BOX)


def statuses(*findings: Finding) -> list[str]:
    for finding in findings:
        assert finding.measured
        assert (finding.status in (Grade.WARNING, Grade.FAILED)) <= bool(finding.fix), (
            "what is wrong has a fix"
        )
        assert not (finding.status is Grade.OK and finding.fix), "what is right needs none"
        assert not finding.fix.endswith("."), "one sentence, as the others"
    return [finding.status.value for finding in findings]


# This box


@pytest.mark.parametrize(
    ("version", "wanted", "fit"),
    [
        ("1.22", ">=1.22", True),
        ("1.22.0", ">=1.22,<2", True),
        ("1.9", ">=1.22", False),
        ("2.0.1", ">=1.22,<2", False),
        ("7.0.0rc1", ">=6.31.1,<8", True),
        ("6.31.0", ">=6.31.1,<8", False),
        ("", ">=1", False),
        ("1.0", "", True),
    ],
)
def test_versions_compare_as_numbers(version, wanted, fit):
    assert b.fits(version, wanted) is fit


def test_a_package_that_is_too_old_is_named():
    needs = {"numpy": ">=1.26", "grpcio": ">=1.76"}
    bad = b.packages("this box", {"numpy": "2.0", "grpcio": "1.60.1"}, needs)
    assert statuses(bad) == ["failed"]
    assert "grpcio 1.60.1 (needs >=1.76)" in bad.measured
    assert "numpy" not in bad.measured
    missing = b.packages("this box", {"numpy": "2.0"}, needs)
    assert "grpcio none" in missing.measured
    assert statuses(
        missing, b.packages("x", {"numpy": "2.0", "grpcio": "1.76"}, needs), b.packages("x", {}, needs)
    ) == ["failed", "ok", "skipped"]


def test_the_runtime_must_be_right_and_not_only_run():
    good = Trial("auto", CPU, CPU, (CPU,), 0.01, 1e-7)
    assert statuses(
        b.runtime("x", good),
        b.runtime("x", replace(good, error=0.1)),
        b.runtime("x", replace(good, error=float("nan"))),
        b.runtime("x", replace(good, problem="no such op")),
    ) == ["ok", "failed", "failed", "failed"]


@pytest.mark.parametrize(
    ("wanted", "used", "available", "devices", "status", "said"),
    [
        ("auto", CPU, [CPU], [], "ok", "cpu"),
        ("", CPU, [CPU], [], "ok", "cpu"),
        ("auto", CPU, [CPU], ["nvidia"], "warning", "NVIDIA"),
        ("auto", "CUDAExecutionProvider", ["CUDAExecutionProvider", CPU], ["nvidia"], "ok", "cuda"),
        ("cpu", CPU, [CPU], ["nvidia"], "ok", "as asked"),
        ("cuda", "CUDAExecutionProvider", ["CUDAExecutionProvider", CPU], [], "ok", "as asked"),
        ("cuda", CPU, [CPU], [], "failed", "this build has cpu"),
        ("cuda", CPU, ["CUDAExecutionProvider", CPU], ["nvidia"], "failed", "cannot be loaded"),
    ],
)
def test_a_provider_asked_for_must_be_used(wanted, used, available, devices, status, said):
    finding = b.provider("x", wanted, used, available, devices)
    assert statuses(finding) == [status]
    assert said in finding.measured + finding.fix


@pytest.mark.parametrize(
    ("wanted", "box", "status"),
    [
        (4, BOX, "ok"),
        (5, BOX, "warning"),
        (4, replace(BOX, usable_processors=2), "warning"),
        (2, replace(BOX, processor_limit=1.5), "warning"),
        (1, replace(BOX, processor_limit=0.5), "ok"),
        (8, replace(BOX, processors=0, usable_processors=0), "skipped"),
    ],
)
def test_threads_against_processors(wanted, box, status):
    assert statuses(b.threads("x", wanted, box)) == [status]


def test_the_advice_on_threads_would_be_taken():
    limited = replace(BOX, processor_limit=1.5)
    finding = b.threads("x", 16, limited)
    threads = int(finding.fix.partition("--threads ")[2].partition(":")[0])
    assert statuses(b.threads("x", threads, limited)) == ["ok"]


@pytest.mark.parametrize("room", [100 * MIB, 512 * MIB, 8 * GIB, 64 * GIB])
def test_the_advice_on_memory_would_be_taken(room):
    box = replace(BOX, memory_limit=room, memory=64 * GIB)
    finding = b.memory("x", room, box)
    assert statuses(finding) == ["failed"]
    best = int(finding.fix.partition("--memory-limit ")[2].partition("MiB")[0]) * MIB
    assert 0 < best < room
    if room > 2 * b.BASE:
        assert statuses(b.memory("x", best, box)) == ["ok"]


def test_memory_against_the_control_group_and_not_only_ram():
    assert statuses(
        b.memory("x", 4 * GIB, BOX),
        b.memory("x", 4 * GIB, replace(BOX, memory_limit=2 * GIB)),
        b.memory("x", 9 * GIB, BOX),
        b.memory("x", GIB, replace(BOX, memory=0)),
    ) == ["ok", "failed", "failed", "skipped"]
    assert "control group" in b.memory("x", 4 * GIB, replace(BOX, memory_limit=2 * GIB)).measured


def test_memory_that_others_hold():
    assert statuses(
        b.free_memory("x", 4 * GIB, BOX),
        b.free_memory("x", 7 * GIB, BOX),
        b.free_memory("x", GIB, replace(BOX, memory_available=100 * MIB)),
        b.free_memory("x", GIB, replace(BOX, memory_available=0)),
    ) == ["ok", "warning", "failed", "skipped"]


def test_who_keeps_the_clock():
    found = [b.clock_source("x", *facts) for facts in ((True, 0.01), (False, None), (None, None))]
    assert statuses(*found) == ["ok", "warning", "skipped"]


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, ""),
        ({"http_proxy": "http://p:1"}, "http_proxy"),
        ({"HTTP_PROXY": "http://p:1"}, ""),
        ({"http_proxy": "http://p:1", "https_proxy": "http://q:1"}, "https_proxy"),
        ({"grpc_proxy": "http://p:1", "https_proxy": "http://q:1"}, "grpc_proxy"),
        ({"http_proxy": "http://p:1", "no_proxy": "other, .example"}, ""),
        ({"http_proxy": "http://p:1", "no_proxy": "other"}, "http_proxy"),
        ({"http_proxy": "http://p:1", "no_proxy": ".example", "no_grpc_proxy": "other"}, "http_proxy"),
    ],
)
def test_the_proxy_grpc_would_take(environment, variable):
    url, name = b.proxy_for("hub.example", environment, loopback=False)
    assert name == variable
    assert bool(url) is bool(variable)
    assert b.proxy_for("127.0.0.1", environment, loopback=True) == ("", "")


def test_a_proxys_password_is_not_printed():
    finding = b.proxy("x", "hub", "http://me:secret@proxy:3128", "http_proxy")
    assert statuses(finding, b.proxy("x", "hub", "", "")) == ["warning", "ok"]
    assert "proxy:3128" in finding.measured
    assert "secret" not in str(finding)


# The way to the aggregator


def test_each_step_of_the_way_is_named():
    nowhere = Port("hub", 1, problem="name or service not known")
    silent = Port("hub", 1, ("1.2.3.4",), problem="1.2.3.4: no answer in time")
    refused = replace(silent, refused=True, problem="1.2.3.4: connection refused")
    there = Port("hub", 1, ("1.2.3.4",), 0.001, "1.2.3.4", 0.002)
    assert statuses(c.name(nowhere), c.name(there), c.name(replace(there, resolve_seconds=3.0))) == [
        "failed",
        "ok",
        "warning",
    ]
    assert statuses(c.reachable(silent), c.reachable(refused), c.reachable(there)) == [
        "failed",
        "failed",
        "ok",
    ]
    proxied = [
        c.name(nowhere, proxied=True),
        c.reachable(silent, proxied=True),
        c.reachable(there, proxied=True),
    ]
    assert statuses(*proxied) == ["skipped", "skipped", "ok"]
    assert "start the aggregator" in c.reachable(refused).fix
    assert "firewall" in c.reachable(silent).fix
    assert statuses(c.reachable(replace(there, connect_seconds=3.0))) == ["warning"]


@pytest.mark.parametrize(
    ("speaks", "http2", "tls", "status", "said"),
    [
        (Speaks.PLAINTEXT, True, False, "ok", ""),
        (Speaks.TLS, True, True, "ok", ""),
        (Speaks.TLS, True, False, "failed", "--token"),
        (Speaks.PLAINTEXT, True, True, "failed", "--tls"),
        (Speaks.TLS, False, True, "failed", "gRPC port"),
        (Speaks.OTHER, False, False, "failed", "gRPC port"),
        (Speaks.NOTHING, False, True, "failed", "gRPC port"),
    ],
)
def test_both_sides_must_speak_alike(speaks, http2, tls, status, said):
    port = Port("hub", 1, ("1.2.3.4",), 0.0, "1.2.3.4", 0.0, False, speaks, http2, "it says something")
    finding = c.protocol(port, tls=tls)
    assert statuses(finding) == [status]
    assert said in finding.fix


def test_health():
    found = [c.health("SERVING", 0.01, ""), c.health("NOT_SERVING", 0.01, ""), c.health("", 1.0, "no answer")]
    assert statuses(*found) == ["ok", "failed", "failed"]


def test_the_http_port():
    found = [c.http_port(c.HttpAnswer(9464, status, "refused")) for status in (200, 404, 503, 0)]
    assert statuses(*found) == ["ok", "ok", "warning", "skipped"]


@pytest.mark.parametrize(
    ("ahead", "within", "status"),
    [
        (0.5, 0.1, "ok"),
        (-0.5, 0.1, "ok"),
        (3.0, 0.1, "warning"),
        (-3.0, 0.1, "warning"),
        (3.0, 2.5, "ok"),  # it may be the line that is slow
        (-90.0, 1.0, "failed"),
        (90.0, 1.0, "failed"),
    ],
)
def test_clocks(ahead, within, status):
    assert statuses(c.clock("x", ClockReading(ahead, within))) == [status]
    assert ("behind" in c.clock("x", ClockReading(ahead, within)).measured) is (ahead < 0)


def test_a_clock_that_is_not_told_is_not_judged():
    assert statuses(c.clock("x", None), n.clock(replace(NODE, clock_seconds=None))) == ["skipped"] * 2


def test_releases():
    assert statuses(
        c.software(ABOUT, "1.0", 1),
        c.software(ABOUT, "1.1", 1),
        c.software(ABOUT, "2.0", 2),
        c.software(None, "1.0", 1),
        n.software(NODE, "1.0"),
        n.software(NODE, "1.1"),
    ) == ["ok", "warning", "failed", "warning", "ok", "warning"]


def test_keepalive_of_both_sides():
    assert statuses(
        c.keepalive(30.0, 15.0, ABOUT),
        c.keepalive(10.0, 10.0, ABOUT),
        c.keepalive(30.0, 60.0, ABOUT),
    ) == ["ok", "failed", "failed"]


def test_a_short_idle_stream_does_not_claim_much():
    short, long, cut = (
        c.idle(2.0, True, 2.0, ""),
        c.idle(120.0, True, 120.0, ""),
        c.idle(120.0, False, 61.0, "reset"),
    )
    assert statuses(short, long, cut) == ["ok", "ok", "failed"]
    assert "--idle 120" in short.measured
    assert "--idle" not in long.measured
    assert "61 s" in cut.measured


# Nodes


def test_whether_anybody_is_there():
    lost = replace(NODE, state=NodeState.LOST)
    assert statuses(n.nodes([], "hub:1"), n.nodes([lost], "hub:1"), n.nodes([lost, NODE], "hub:1")) == [
        "warning",
        "failed",
        "ok",
    ]


def test_a_node_whose_certificate_was_revoked_is_not_told_to_start_again():
    away = [replace(NODE, state=s, revoked_at=0.0) for s in (NodeState.SUSPECT, NodeState.LOST)]
    found = [n.state(node, 10.0) for node in away]
    assert statuses(*found) == ["failed", "failed"]
    for finding in found:
        assert "its certificate was revoked at 1970-01-01 00:00:00 UTC by an operator" in finding.measured
        assert "token create --role node --name a" in finding.fix
        assert "--store" not in finding.fix
    assert n.state(replace(NODE, revoked_at=0.0), 10.0).status is Grade.OK


def test_states():
    found = [n.state(replace(NODE, state=s), 10.0) for s in NodeState]
    assert dict(zip([s.value for s in NodeState], statuses(*found), strict=True)) == {
        "ready": "ok",
        "suspect": "warning",
        "lost": "failed",
        "draining": "warning",
    }


def test_a_node_that_keeps_coming_back():
    assert statuses(
        n.reconnects(NODE, 3600.0),
        n.reconnects(replace(NODE, registrations=2), 3600.0),
        n.reconnects(replace(NODE, registrations=11), 3600.0),
        n.reconnects(replace(NODE, registrations=11), 30 * 86_400.0),
        n.reconnects(replace(NODE, registrations=0), 3600.0),
    ) == ["ok", "ok", "warning", "ok", "skipped"]


def test_a_node_of_an_older_release_is_not_judged_by_what_it_does_not_say():
    old = replace(NODE, box=None)
    found = [n.provider(old), n.threads(old), n.memory(old), n.packages(old, {"numpy": ">=1"})]
    assert statuses(*found) == ["skipped"] * 4


def test_a_node_is_judged_by_its_own_box():
    asked = replace(NODE, box=replace(BOX, provider_asked="cuda"))
    assert statuses(
        n.provider(NODE),
        n.provider(asked),
        n.threads(replace(NODE, threads=64)),
        n.memory(replace(NODE, memory_limit=8 * GIB)),
    ) == ["ok", "failed", "warning", "failed"]


def test_a_store_that_is_full():
    found = [n.stored(replace(NODE, memory=int(share * GIB))) for share in (0.0, 0.89, 0.95, 0.99)]
    assert statuses(*found) == ["ok", "ok", "warning", "failed"]


def test_the_way_to_a_node():
    probe = ProbeNodeResponse((0.001, 0.002, 0.009), (0.0001,) * 3, 0.1005, 0.2005, MIB)
    assert statuses(n.round_trip("a", probe), n.bandwidth("a", probe)) == ["ok", "ok"]
    assert n.round_trip("a", probe).data["median"] == 0.002
    # Half of the quickest round trip is not the bytes'.
    assert n.bandwidth("a", probe).data["down"] == pytest.approx(10 * MIB)
    assert n.bandwidth("a", probe).data["up"] == pytest.approx(5 * MIB)
    slow = ProbeNodeResponse((0.4,) * 3, (0.0001,) * 3, 9.2, 0.3, MIB)
    assert statuses(n.round_trip("a", slow), n.bandwidth("a", slow)) == ["warning", "warning"]
    assert statuses(n.bandwidth("a", replace(probe, down_seconds=None, up_seconds=None, bytes=0))) == [
        "skipped"
    ]


def test_nodes_that_share_a_box():
    four = [replace(NODE, name=name, threads=1) for name in "abcd"]
    assert statuses(*n.shared_boxes(four)) == ["ok", "ok"]
    threads, memory = n.shared_boxes([replace(node, threads=2, memory_limit=4 * GIB) for node in four])
    assert statuses(threads, memory) == ["warning", "warning"]
    assert threads.data["threads"] == 8
    assert "--threads 1" in threads.fix
    crowded = replace(BOX, processors=2)
    few, _ = n.shared_boxes([replace(node, box=crowded) for node in four])
    assert (few.status, few.fix) == (Grade.WARNING, "run fewer nodes on it"), "one thread is the least"
    each = int(memory.fix.partition("--memory-limit ")[2].partition("MiB")[0]) * MIB
    assert statuses(*n.shared_boxes([replace(node, memory_limit=each) for node in four])) == ["ok", "ok"]


def test_a_box_of_one_node_or_of_nobody_knows_which_is_not_shared():
    apart = [NODE, replace(NODE, name="b", box=replace(BOX, id="box-2"))]
    lost = [NODE, replace(NODE, name="b", state=NodeState.LOST)]
    unknown = [replace(NODE, name=name, box=replace(BOX, id="")) for name in "ab"]
    assert n.shared_boxes(apart) == n.shared_boxes(lost) == n.shared_boxes(unknown) == []


# Contexts

SPEC = ContextSpec("memory", 4, 2, 64, 64)  # 1,024 bytes a token


def context(*segments: tuple[int, tuple[str, ...], tuple[str, ...]], replicas: int = 1) -> Context:
    made, at = [], 0
    for number, (tokens, holders, live) in enumerate(segments):
        made.append(Segment(f"s{number}", range(at, at + tokens), holders, live))
        at += tokens
    return Context(replace(SPEC, replicas=replicas), at, tuple(made))


def test_tokens_that_nobody_answers_for():
    whole = context((600, ("a",), ("a",)), (400, ("b",), ("b",)))
    gone = context((600, ("a",), ("a",)), (400, ("b",), ()))
    thin = context((1000, ("a", "b"), ("a",)), replicas=2)
    assert statuses(*map(x.coverage, (whole, gone, thin, context()))) == ["ok", "failed", "warning", "ok"]
    assert "400 of 1,000 tokens" in x.coverage(gone).measured
    assert x.coverage(gone).data["holders"] == ["b"]
    assert x.coverage(thin).data["holders"] == ["b"]


def test_shards_take_whole_tiles():
    one = context((1, ("a",), ("a",)), (513, ("a", "b"), ("a", "b")))
    assert x.placed(one) == {"a": 3 * 512 * 1024, "b": 2 * 512 * 1024}
    assert statuses(x.shards(NODE, [one]), x.shards(NODE, [])) == ["ok", "ok"]
    small = x.shards(replace(NODE, memory_limit=MIB), [one])
    assert statuses(small) == ["failed"]
    limit = int(small.fix.partition("--memory-limit ")[2].partition("MiB")[0]) * MIB
    assert statuses(x.shards(replace(NODE, memory_limit=limit), [one])) == ["ok"]


def test_room_for_more_is_the_aggregators_own_rule():
    tile = 512 * 1024
    full = replace(NODE, name="full", memory_limit=MIB, memory=MIB - 2 * tile + 1)
    assert x.room(context(), full) == 0
    assert x.room(context(), replace(full, memory=0)) == 512
    assert statuses(
        x.growth(context(), [NODE]),
        x.growth(context(), [NODE, full]),
        x.growth(context(), [full]),
        x.growth(context(replicas=2), [NODE, full]),
        x.growth(context(), []),
    ) == ["ok", "warning", "failed", "failed", "skipped"]


def test_small_contexts_are_pointed_at():
    small = x.rule_of_thumb(context((600, ("a",), ("a",)), (400, ("b",), ("b",))))
    assert small is not None
    assert statuses(small) == ["skipped"]
    assert "--context memory" in small.fix
    assert x.rule_of_thumb(context((600, ("a",), ("a",)))) is None
    assert x.rule_of_thumb(context((9000, ("a",), ("a",)), (9000, ("b",), ("b",)))) is None


# Words


def test_the_worst_is_what_counts():
    made = {s: Finding("c", "s", s, "m", "f") for s in Grade}
    assert worst(made.values()) is Grade.FAILED
    assert worst([made[Grade.OK], made[Grade.WARNING]]) is Grade.WARNING
    assert worst([made[Grade.SKIPPED]]) is worst([]) is Grade.OK


def test_numbers_for_people():
    assert [size(v) for v in (0, 1023, 1024, 1.5 * MIB, 3 * GIB)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 MiB",
        "3.0 GiB",
    ]
    said = [duration(v) for v in (0.00042, 0.0123, 0.123, 1.5, 61, 600, 7200, 400_000)]
    assert said == ["0.42 ms", "12 ms", "123 ms", "1.5 s", "61 s", "10 min", "2 h", "4.6 days"]
