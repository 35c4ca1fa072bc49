"""What Prometheus and probes ask of the HTTP port."""

from __future__ import annotations

import time

import pytest
from ports import run
from prometheus_client.parser import text_string_to_metric_families

from aggregator.http.routes import FORGOTTEN_SECONDS
from aggregator.http.server import page_url
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.fleet import NodeState


def test_alive_at_once_and_ready_only_while_it_serves():
    async def scenario(port):
        assert (await port.get("/healthz")).status == 200
        starting = await port.get("/readyz")
        assert (starting.status, starting.text) == (503, "starting\n")
        port.server.serving()
        assert (await port.get("/readyz")).status == 200
        port.server.draining()
        draining = await port.get("/readyz")
        assert (draining.status, draining.text) == (503, "draining\n")
        assert (await port.get("/healthz")).status == 200

    run(scenario)


def test_metrics_are_what_the_registry_holds_and_can_be_asked_for_by_name():
    async def scenario(port):
        port.house.metrics.registrations.labels("new").inc(3)
        answer = await port.get("/metrics")
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        families = {f.name: f for f in text_string_to_metric_families(answer.text)}
        samples = families["edge_attention_aggregator_registrations"].samples
        counted = {s.labels["outcome"]: s.value for s in samples if s.name.endswith("_total")}
        assert counted["new"] == 3.0
        some = await port.get("/metrics?name[]=edge_attention_aggregator_contexts")
        assert {f.name for f in text_string_to_metric_families(some.text)} == {
            "edge_attention_aggregator_contexts"
        }
        open_metrics = await port.get("/metrics", headers={"Accept": "application/openmetrics-text"})
        assert open_metrics.headers["Content-Type"].startswith("application/openmetrics-text")
        assert open_metrics.text.endswith("# EOF\n")

    run(scenario)


def test_discovery_names_this_port_as_the_caller_does_and_a_path_for_each_node():
    async def scenario(port):
        assert (await port.get("/sd")).json == []
        port.house.node("a")
        port.house.node("b.1").lose()
        gone = port.house.node("c")
        gone.lose()
        gone.member.heard = time.monotonic() - FORGOTTEN_SECONDS - 1
        answer = await port.get("/sd", headers={"Host": "localhost:9464"})
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.json == [
            {
                "targets": ["localhost:9464"],
                "labels": {"__metrics_path__": f"/nodes/{n}/metrics", "node": n, "instance": n},
            }
            for n in ("a", "b.1")
        ]

    run(scenario)


def test_a_node_is_scraped_through_this_port():
    async def scenario(port):
        box = port.house.node("a")
        assert (await port.get("/nodes/b/metrics")).status == 404
        silent = await port.get("/nodes/a/metrics")
        assert silent.status == 503
        assert "sent no metrics" in silent.text
        text = b"# HELP edge_attention_node_connected 1\n# TYPE edge_attention_node_connected gauge\n"
        box.member.metrics = text + b"edge_attention_node_connected 1.0\n"
        answer = await port.get("/nodes/a/metrics")
        assert (answer.status, answer.body) == (200, box.member.metrics)
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        box.disconnect()
        assert box.member.state is NodeState.SUSPECT
        assert (await port.get("/nodes/a/metrics")).status == 200
        box.lose()
        lost = await port.get("/nodes/a/metrics")
        assert lost.status == 503
        assert "'a' is lost" in lost.text

    run(scenario)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9464",
        "10.0.0.1",
        "[::2]:80",
        "",
        "127.0.0.1.x",
        "[",
        "[::1",
        "localhost.",
    ],
)
def test_without_sign_in_another_name_than_loopback_is_refused(host):
    async def scenario(port):
        for path in ("/", "/metrics", "/sd", "/healthz"):
            answer = await port.get(path, headers={"Host": host})
            assert answer.status == 403
            assert "localhost" in answer.text
            assert b"Edge Attention" not in answer.body

    run(scenario)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9464", "[::1]:9464", "x.localhost", "127.9.9.9:1"])
def test_loopback_names_are_answered(host):
    async def scenario(port):
        assert (await port.get("/metrics", headers={"Host": host})).status == 200

    run(scenario)


def test_every_answer_has_the_headers_that_keep_it_to_itself():
    async def scenario(port):
        for path in ("/", "/metrics", "/signin", "/nothing", "/nodes/x/metrics", "/style.css"):
            answer = await port.get(path)
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] in ("no-store", "no-cache")

    run(scenario)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_beyond_loopback_it_does_not_listen_without_tls(host):
    with pytest.raises(FailedPrecondition, match="TLS"):
        run(None, host=host)


def test_where_the_page_is():
    assert page_url("127.0.0.1", 9464, tls=False) == "http://127.0.0.1:9464/"
    assert page_url("0.0.0.0", 9464, tls=True) == "https://localhost:9464/"
    assert page_url("::1", 1, tls=False) == "http://[::1]:1/"
