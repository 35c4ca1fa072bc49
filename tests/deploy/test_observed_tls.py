"""A real fleet with TLS, scraped by a real Prometheus with the authority and token that --bootstrap wrote."""

from __future__ import annotations

import panels
import pytest
from real_prometheus import RunningPrometheus
from trusted import TrustedFleet

pytestmark = pytest.mark.e2e


@pytest.fixture
def watched(prometheus, tmp_path):
    fleet = TrustedFleet(tmp_path, "--metrics-port", "0")
    try:
        said = fleet.child("aggregator").wait_for(r"metrics on (\S+:\d+)")
        fleet.trusted_node("a")
        with RunningPrometheus(prometheus, tmp_path, said[1], fleet.boot) as watching:
            yield fleet, watching
    finally:
        fleet.stop()


def test_a_new_box_is_scraped_over_tls_and_its_certificate_watched(watched):
    fleet, watching = watched
    watching.until('up{job="edge-attention-aggregator"} == 1')
    watching.until('up{job="edge-attention-nodes", node="a"} == 1')
    fleet.trusted_node("b")
    watching.until('up{job="edge-attention-nodes", node="b"} == 1')

    left = watching.until('count(edge_attention:certificate_seconds_left{name=~"node/.*"}) == 2', 150)
    assert left
    found = watching.now("edge_attention:certificate_seconds_left")
    assert set(found) == {"name=authority", "name=server", "name=node/a", "name=node/b"}
    week = 7 * 86400
    assert week - 3600 < found["name=node/a"] <= week
    assert not watching.now('ALERTS{alertname="EdgeCertificateEnding"}')

    # What only a fleet with TLS shows. (The rest: test_observed_fleet.py.)
    ours = set(panels.EMPTY_WITHOUT_TLS)
    missing = [f for f in panels.check(watching.url, {}) if (f.board, f.panel) in ours]
    assert not missing, "\n".join(map(str, missing))


def test_a_token_that_is_no_good_is_seen_and_a_good_one_taken_without_a_restart(watched):
    fleet, watching = watched
    watching.until('up{job="edge-attention-aggregator"} == 1')
    file = fleet.boot / "viewer-token"
    good = file.read_text()
    file.write_text(fleet.token("join"))
    watching.until('up{job="edge-attention-aggregator"} == 0')
    watching.until('ALERTS{alertname="EdgeAggregatorDown"}')
    (target,) = [t for t in watching.targets() if t["labels"]["job"] == "edge-attention-aggregator"]
    assert "401" in target["lastError"]
    file.write_text(good)
    watching.until('up{job="edge-attention-aggregator"} == 1')
    watching.until('absent(ALERTS{alertname="EdgeAggregatorDown"})')
