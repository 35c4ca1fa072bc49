"""`edge-attention doctor` against real fleets in the states it is to name."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading

import pytest
from fleets import SPEC, command, states, tokens, until

CLIENT = "edge_attention.cli.main"

OF_A_BOX = {"packages", "runtime", "provider", "threads", "memory", "free memory", "clock source", "proxy"}
OF_THE_WAY = {"name", "port", "protocol", "health", "version", "clock", "keepalive", "idle stream"}
OF_A_NODE = {
    "state", "version", "packages", "clock", "connection", "provider", "threads", "memory", "store", "shards",
    "round trip", "bandwidth",
}  # fmt: skip


class Report:
    """What `doctor --json` said."""

    def __init__(self, *arguments, **options):
        self.done = command(CLIENT, *arguments, "--json", **options)
        assert self.done.returncode in (0, 1), self.done.stderr
        assert self.done.stderr == ""
        told = json.loads(self.done.stdout)
        self.status, self.findings = told["status"], told["findings"]
        assert (self.status == "failed") == (self.done.returncode == 1)

    def of(self, subject):
        return {f["check"]: f for f in self.findings if f["subject"] == subject}

    def with_status(self, status):
        return {(f["check"], f["subject"]) for f in self.findings if f["status"] == status}


def doctor(fleet, *arguments, idle="0.1"):
    return Report("--aggregator", fleet.address, "doctor", "--idle", idle, *arguments)


def text(fleet, *arguments):
    return command(CLIENT, "doctor", "--aggregator", fleet.address, "--idle", "0", *arguments)


def test_a_healthy_fleet(fleet):
    own = fleet()
    own.nodes("a", "b", flags=("--memory-limit", "256MB"))
    with own.client() as client:
        context = client.create_context("memory", **SPEC)
        context.append(*tokens(2000))
        found = doctor(own, "--context", "memory", "--queries", "2")
        assert found.done.returncode == 0
        assert not found.with_status("failed")
        # The machine may be short of processors or without a time server, and one node may be faster.
        mild = {"clock source", "shared threads", "free memory", "fewer nodes", "shared memory"}
        assert {check for check, _ in found.with_status("warning")} <= mild
        assert found.of("this box").keys() == OF_A_BOX
        assert found.of("aggregator").keys() == OF_THE_WAY | {"packages", "disk"}
        for name in "ab":
            assert found.of(f"node {name}").keys() == OF_A_NODE
            probed = found.of(f"node {name}")["bandwidth"]["data"]
            assert probed["bytes"] >= 256 * 1024
            assert probed["down"] > 0
        assert found.of("context memory").keys() == {"coverage", "growth", "fewer nodes"}
        fewer = found.of("context memory")["fewer nodes"]["data"]
        assert sum(fewer["placed"].values()) == 2000
        assert [len(estimate["nodes"]) for estimate in fewer["estimates"]] == [1, 2]
        assert all(node["kernel_seconds"] > 0 for node in fewer["nodes"].values())
        assert 0 < fewer["stages"]["node_run"] < fewer["measured_seconds"]
        # What the doctor asks with is the client's own.
        assert client.aggregator().lease_seconds == 10
        probe = client.probe("b", round_trips=2, size=1000)
        assert (len(probe.round_trip_seconds), probe.bytes) == (2, 1000)


def test_the_table_says_the_same(fleet):
    own = fleet()
    own.nodes("a", flags=("--memory-limit", "256MB"))
    done = text(own)
    assert done.returncode == 0, done.stdout
    for word in ("this box", "aggregator", "node a", "SERVING", "round trip", "bandwidth"):
        assert word in done.stdout
    assert "FAILED" not in done.stdout


def test_a_node_with_too_many_threads(fleet):
    own = fleet()
    own.start_node("a", "--threads", "512", "--memory-limit", "256MB")
    found = doctor(own)
    assert found.done.returncode == 0, "a warning is no failure"
    assert ("threads", "node a") in found.with_status("warning")
    assert "--threads" in found.of("node a")["threads"]["fix"]
    done = text(own)
    assert done.returncode == 0
    assert "threads of node a" in done.stdout.splitlines()[-1], "warnings are named"


def test_a_killed_node(fleet):
    own = fleet("--lease", "4")
    own.nodes("a", "b", flags=("--memory-limit", "256MB"))
    with own.client() as client:
        context = client.create_context("memory", **SPEC)
        context.append(*tokens(2000))
        own.kill("b")
        until(lambda: states(client)["b"] == "lost", "node b lost")
        found = doctor(own, "--context", "memory")
    assert found.done.returncode == 1
    assert found.with_status("failed") == {
        ("state", "node b"),
        ("coverage", "context memory"),
        ("fewer nodes", "context memory"),
    }
    assert found.of("context memory")["coverage"]["data"]["holders"] == ["b"]
    assert found.of("node b").keys() == {"state"}, "what it said of itself is no longer so"
    done = text(own)
    assert done.returncode == 1
    assert "state of node b, coverage of context memory" in done.stdout


def test_a_node_that_hangs(fleet):
    """Every wait has a deadline: the node is connected, and answers nothing."""
    own = fleet("--lease", "60")
    own.nodes("a", "b", flags=("--memory-limit", "256MB"))
    own.freeze("b")
    found = doctor(own, "--timeout", "10")
    assert ("round trip", "node b") in found.with_status("failed")
    assert "has not answered in time" in found.of("node b")["round trip"]["measured"]
    assert found.of("node a")["round trip"]["status"] == "ok"


def test_an_aggregator_that_hangs(fleet):
    own = fleet()
    own.freeze("aggregator")
    found = doctor(own, "--timeout", "0.5")
    assert found.done.returncode == 1
    assert {check for check, _ in found.with_status("failed")} == {"protocol"}
    assert found.of("this box").keys() == OF_A_BOX


def test_a_tiny_memory_limit(fleet):
    own = fleet()
    # A tile of 512 tokens takes 98,304 bytes, and twice that while it arrives.
    own.nodes("a", flags=("--memory-limit", "250000"))
    with own.client() as client:
        context = client.create_context("memory", **SPEC)
        assert doctor(own).of("context memory")["growth"]["status"] == "ok"
        context.append(*tokens(512))
        found = doctor(own)
        assert found.with_status("failed") == {("growth", "context memory")}
        assert "--memory-limit" in found.of("context memory")["growth"]["fix"]
        assert "shards" in found.of("node a")


def test_a_provider_that_is_not_there(fleet):
    own = fleet()
    node = own.start_node("a", "--provider", "migraphx", "--threads", "1", "--memory-limit", "256MB")
    found = doctor(own)
    assert ("provider", "node a") in found.with_status("failed"), node.last_lines()
    asked = found.of("node a")["provider"]["data"]
    assert (asked["asked"], asked["used"]) == ("migraphx", "CPUExecutionProvider")
    on_this_box = Report("doctor", "--provider", "migraphx", "--aggregator", own.address)
    assert ("provider", "this box") in on_this_box.with_status("failed")


def test_a_memory_limit_that_cannot_be(fleet):
    found = Report("doctor", "--memory-limit", "100TB")
    assert ("memory", "this box") in found.with_status("failed")


def test_several_nodes_that_ask_for_more_than_their_box_has(fleet):
    own = fleet()
    for name in "ab":
        own.start_node(name, "--threads", str(os.cpu_count()), "--memory-limit", "256MB", wait=False)
    for name in "ab":
        own.wait_ready(name)
    found = doctor(own)
    assert ("shared threads", "box of a, b") in found.with_status("warning")
    assert found.of("box of a, b")["shared threads"]["data"]["nodes"] == ["a", "b"]


def test_a_node_that_came_back(fleet):
    own = fleet()
    own.nodes("a", flags=("--memory-limit", "256MB"))
    own.kill("a")
    own.nodes("a", flags=("--memory-limit", "256MB"))
    found = doctor(own)
    assert "has come back 1 time" in found.of("node a")["connection"]["measured"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Router:
    """A router between: passes bytes on to `port`, forgets a connection that is quiet for `quiet` seconds.

    `cut` ends all connections there are. `proxy`: one that is asked with CONNECT, whatever for.
    """

    def __init__(self, port, quiet=60.0, proxy=False):
        self._port, self._quiet, self._proxy = port, quiet, proxy
        self.asked = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._pairs = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()

    def cut(self):
        for pair in list(self._pairs):
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                if self._proxy:
                    self.asked.append(near.recv(4096))
                    near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                far = socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=self._pass, args=(near, far), daemon=True).start()

    def _pass(self, near, far):
        self._pairs.add((near, far))
        other = {near: far, far: near}
        with near, far, contextlib.suppress(OSError):
            while ready := select.select([near, far], [], [], self._quiet)[0]:
                for end in ready:
                    data = end.recv(65_536)
                    if not data:
                        return
                    other[end].sendall(data)
        self._pairs.discard((near, far))


def test_a_router_that_forgets_idle_streams(fleet):
    own = fleet()
    port = int(own.address.rpartition(":")[2])
    with Router(port, quiet=2.0) as router:
        found = Report("doctor", "--aggregator", router.address, "--idle", "30")
    idle = found.of("aggregator")["idle stream"]
    assert idle["status"] == "failed"
    assert 1.5 < idle["data"]["after_seconds"] < 30
    assert "idle" in idle["fix"]


def test_a_proxy_that_grpc_goes_through(fleet):
    own = fleet()
    own.nodes("a", flags=("--memory-limit", "256MB"))
    clean = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    arguments = ("doctor", "--aggregator", "hub.invalid:50051", "--idle", "0.1", "--timeout", "5")
    with Router(int(own.address.rpartition(":")[2]), proxy=True) as router:
        found = Report(*arguments, env={**clean, "http_proxy": f"http://me:secret@{router.address}"})
        assert router.asked[0].startswith(b"CONNECT hub.invalid:50051 ")
    assert ("proxy", "this box") in found.with_status("warning")
    assert not found.with_status("failed"), "what this box cannot do itself, the proxy does"
    assert found.of("aggregator")["health"]["status"] == "ok"
    assert found.of("node a")["round trip"]["status"] == "ok"
    assert "secret" not in found.done.stdout
    direct = Report(*arguments, env=clean)
    assert direct.with_status("failed") == {("name", "aggregator")}


def test_a_node_whose_connection_does_not_hold(fleet):
    own = fleet()
    port = int(own.address.rpartition(":")[2])
    with Router(port) as router, own.client() as client:
        flags = ("--aggregator", router.address, "--threads", "1", "--memory-limit", "256MB")
        own.start_node("a", *flags)
        for times in (2, 3, 4, 5):
            router.cut()
            until(lambda n=times: client.nodes()[0].registrations >= n, "the node's return")
        until(lambda: states(client)["a"] == "ready", "node a ready")
        found = doctor(own)
    assert ("connection", "node a") in found.with_status("warning")
    assert found.of("node a")["connection"]["data"]["registrations"] >= 5


def test_no_aggregator_where_one_was_named():
    found = Report("doctor", "--aggregator", f"127.0.0.1:{free_port()}")
    assert found.done.returncode == 1
    assert found.with_status("failed") == {("port", "aggregator")}
    assert "start the aggregator" in found.of("aggregator")["port"]["fix"]
    assert found.of("this box").keys() == OF_A_BOX, "the box is checked nonetheless"
    named = Report("doctor", env={**os.environ, "EDGE_ATTENTION_AGGREGATOR": f"127.0.0.1:{free_port()}"})
    assert named.done.returncode == 1


def test_no_aggregator_and_nobody_said_there_was_one():
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 50051)) == 0:
            pytest.skip("something listens at 127.0.0.1:50051: stop it to run this test")
    env = {k: v for k, v in os.environ.items() if k != "EDGE_ATTENTION_AGGREGATOR"}
    found = Report("doctor", env=env)
    assert found.of("aggregator")["port"]["status"] == "skipped"
    assert "only this box was checked" in found.of("aggregator")["port"]["measured"]
    assert found.of("this box").keys() == OF_A_BOX
    assert Report("doctor", "--context", "memory", env=env).done.returncode == 1, "that was asked for"


def test_a_name_that_does_not_resolve():
    found = Report("doctor", "--aggregator", "no-such-host.invalid:50051", "--timeout", "5")
    assert found.with_status("failed") == {("name", "aggregator")}


def test_a_port_that_speaks_something_else(fleet):
    own = fleet("--metrics-port", str(port := free_port()))
    assert doctor(own).of("aggregator")["http port"]["status"] == "ok"
    found = Report("doctor", "--aggregator", f"127.0.0.1:{port}", "--timeout", "2")
    assert found.with_status("failed") == {("protocol", "aggregator")}
    assert "gRPC port" in found.of("aggregator")["protocol"]["fix"]
    assert own.child("aggregator").running


def test_a_context_that_is_not_there(fleet):
    own = fleet()
    own.nodes("a", flags=("--memory-limit", "256MB"))
    found = doctor(own, "--context", "nowhere")
    assert found.with_status("failed") == {("fewer nodes", "context nowhere")}


def test_help_teaches():
    done = command(CLIENT, "doctor", "--help")
    assert done.returncode == 0
    for word in ("--aggregator", "--context", "--idle", "--json", "Examples", "Exit codes", "docs/doctor.md"):
        assert word in done.stdout
    assert command(CLIENT, "doctor", "--idle", "-1").returncode == 2
