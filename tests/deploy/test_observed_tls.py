"""A real fleet with TLS, scraped by a real Prometheus with the authority and token that --bootstrap wrote."""

from __future__ import annotations

import panels
import pytest
from real_prometheus import RunningPrometheus
from trusted import TrustedFleet

pytestmark = pytest.mark.e2e


@pytest.fixture
def trusted(tmp_path):
    """A fleet of node a; its address for Prometheus."""
    fleet = TrustedFleet(tmp_path, "--metrics-port", "0")
    try:
        said = fleet.child("aggregator").wait_for(r"metrics on (\S+:\d+)")
        fleet.trusted_node("a")
        yield fleet, said[1]
    finally:
        fleet.stop()


def test_a_new_box_is_scraped_over_tls_and_its_certificate_watched(trusted, prometheus, tmp_path):
    fleet, target = trusted
    with RunningPrometheus(prometheus, tmp_path, target, fleet.boot) as watching:
        seen_with_its_certificates(fleet, watching)


def seen_with_its_certificates(fleet, watching):
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


def test_a_token_that_is_no_good_is_an_alert(trusted, prometheus, tmp_path):
    fleet, target = trusted
    file = fleet.boot / "viewer-token"
    good = file.read_text()
    file.write_text(fleet.token("join"))
    with RunningPrometheus(prometheus, tmp_path / "bad", target, fleet.boot) as watching:
        watching.until('up{job="edge-attention-aggregator"} == 0')
        watching.until('ALERTS{alertname="EdgeAggregatorDown"}')
        (refused,) = watching.targets()  # nodes are not even found
        assert "401" in refused["lastError"]
    fleet.audited("refused", "is for joining")
    file.write_text(good)
    with RunningPrometheus(prometheus, tmp_path / "good", target, fleet.boot) as watching:
        watching.until('up{job="edge-attention-aggregator"} == 1')
        watching.until('up{job="edge-attention-nodes", node="a"} == 1')
        watching.until('absent(ALERTS{alertname="EdgeAggregatorDown"})')  # pending before the first scrape
