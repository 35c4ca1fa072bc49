"""The three commands: help, exit codes, refusals, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest
from fleets import command

AGGREGATOR, NODE, CLIENT = "aggregator.main", "edge_node.main", "edge_attention.cli.main"


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [
        (AGGREGATOR, (), ["--listen", "--state", "--metrics-port", "EDGE_AGGREGATOR_"]),
        (NODE, (), ["--aggregator", "--name", "--data", "--allow-release", "--memory-limit", "EDGE_NODE_"]),
        (
            CLIENT,
            (),
            ["nodes", "contexts", "attend", "train", "parameters", "up", "demo", "doctor", "EDGE_ATTENTION_"],
        ),
        (CLIENT, ("nodes",), ["--json"]),
        (CLIENT, ("doctor",), ["--aggregator", "--context", "--idle", "--json"]),
        (CLIENT, ("contexts",), ["create", "append", "drop"]),
        (CLIENT, ("attend",), ["--json"]),
        (CLIENT, ("train",), ["--plan", "--watch", "--json"]),
        (CLIENT, ("parameters",), ["--version", "--output"]),
        (CLIENT, ("up",), ["--nodes"]),
        (CLIENT, ("demo",), ["--json"]),
    ],
)
def test_help_names_what_there_is(module, arguments, expected):
    done = command(module, *arguments, "--help")
    assert done.returncode == 0, done.stderr
    for word in expected:
        assert word in done.stdout


@pytest.mark.parametrize("module", [AGGREGATOR, NODE, CLIENT])
def test_a_version_and_an_option_that_is_none(module):
    assert command(module, "--version").returncode == 0
    assert command(module, "--no-such-option").returncode == 2


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0"])
def test_the_aggregator_does_not_listen_beyond_this_machine(address):
    done = command(AGGREGATOR, "--listen", address)
    assert done.returncode == 1
    assert "refusing to listen" in done.stderr
    assert "TLS" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_nor_do_its_metrics():
    done = command(AGGREGATOR, "--listen", "127.0.0.1:0", "--metrics-port", "0", "--metrics-host", "0.0.0.0")
    assert done.returncode == 1
    assert "refusing to listen" in done.stderr


def test_two_aggregators_do_not_share_a_state_or_a_port(fleet):
    own = fleet(state=True)
    second = command(AGGREGATOR, "--listen", "127.0.0.1:0", "--state", own.state)
    assert second.returncode == 1
    assert f"in use by another aggregator (process {own.child('aggregator').pid})" in second.stderr
    third = command(AGGREGATOR, "--listen", own.address)
    assert third.returncode == 1
    assert "the port is taken" in third.stderr
    with own.client() as client:
        assert client.nodes() == []


def test_an_option_is_also_an_environment_variable():
    done = command(AGGREGATOR, env={**os.environ, "EDGE_AGGREGATOR_LISTEN": "0.0.0.0:1"})
    assert "refusing to listen" in done.stderr
    done = command(NODE, env={**os.environ, "EDGE_NODE_NAME": "a b"})
    assert (done.returncode, "is not a name" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "x=/nowhere.csv"), "/nowhere.csv"),
        (("--data", "x"), "x"),
        (("--allow-release", "everything"), "attention"),
        (("--name", "../x"), "is not a name"),
        (("--provider", "abacus"), "abacus"),
        (("--memory-limit", "lots"), "lots"),
    ],
)
def test_a_node_that_cannot_start_says_why(arguments, said):
    done = command(NODE, "--aggregator", "127.0.0.1:1", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_client_without_an_aggregator_says_so():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = command(CLIENT, "--aggregator", f"127.0.0.1:{port}", "nodes")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_node_without_an_aggregator_waits_and_leaves_when_asked(fleet, tmp_path):
    own = fleet()
    own.kill("aggregator")
    node = own.start_node("early", wait=False)
    node.wait_for("trying again until it answers")
    assert node.running
    own.start_aggregator()
    own.wait_ready("early")
    os.kill(node.pid, signal.SIGINT)
    assert node.process.wait(120) == 0


def test_nodes_lists_the_fleet(shared):
    done = command(CLIENT, "--aggregator", shared.address, "nodes", "--json")
    assert done.returncode == 0, done.stderr
    listed = {node["name"]: node for node in json.loads(done.stdout)}
    assert listed["a"]["state"] == "ready"
    assert listed["a"]["provider"] == "CPUExecutionProvider"
    assert [dataset["name"] for dataset in listed["a"]["datasets"]] == ["rows"]
