"""A real fleet on loopback, at work, seen through the repository's Prometheus files and dashboards."""

from __future__ import annotations

import contextlib
import re
import threading
import urllib.request
from dataclasses import replace

import panels
import pytest
from fleets import SPEC, queries, tokens
from real_prometheus import RunningPrometheus
from schools import Schools, job

from edge_attention.core.errors import EdgeAttentionError, NotFound
from edge_attention.core.federated_job import ConsensusSpec
from edge_attention.core.jobs import LocalSpec, LossSpec, OptimizerSpec
from edge_attention.federated_job import FederatedModel
from edge_attention.graphs.builders import attention_patches

pytestmark = pytest.mark.e2e

NODES = ("a", "b", "c")
HERE_NOT_EMPTY = {
    ("edge-attention-fleet", "Calls refused"),
    ("edge-attention-training", "Consensus losses"),
}
"""Panels a healthy fleet may leave empty, but not this one."""


class Work:
    """Attends to a context and one training run, going on until the block ends."""

    def __init__(self, schools):
        self.schools, self._over = schools, threading.Event()
        self._threads = [threading.Thread(target=self._attend), threading.Thread(target=self._mistake)]
        self.failed = []

    def __enter__(self):
        with self.schools.fleet.client() as client:
            context = client.create_context("memory", **SPEC)
            for index, node in enumerate(NODES):
                context.append(*tokens(2_000, seed=index), node=node)
        self.run = self.schools.client.train(self.job())
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(EdgeAttentionError):
            self.run.stop()

    def job(self):
        model = attention_patches(8, 8, 2, 10, dim=8)
        return replace(
            job(rounds=1_000_000, nodes=NODES),
            model=FederatedModel(model, LossSpec("cross_entropy", "logits", "labels"), {"labels": "label"}),
            local=LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=16, steps=2),
            holdout=0.2,
            evaluate_every=5,
            consensus=ConsensusSpec("attention", {"image": self.schools.tested.image[:8]}),
        )

    def _attend(self):
        with self.schools.fleet.client() as client:
            context = client.context("memory")
            while not self._over.wait(0.05):
                try:
                    context.attend(queries(2), deadline=1.0)
                except EdgeAttentionError as error:
                    self.failed.append(error)

    def _mistake(self):
        """What a client does wrong now and then."""
        with self.schools.fleet.client() as client:
            while not self._over.wait(1.0):
                with contextlib.suppress(NotFound):
                    client.context("no-such-context").attend(queries(1))


@pytest.fixture
def watched(prometheus, tmp_path):
    """Three nodes at work, and the Prometheus that watches them."""
    with Schools(tmp_path, "--metrics-port", "0", "--lease", "3", names=NODES) as schools:
        said = schools.fleet.child("aggregator").wait_for(r"metrics on (\S+:\d+)")
        work = Work(schools)
        schools.allow(work.job())
        schools.start()
        with work, RunningPrometheus(prometheus, tmp_path, said[1]) as watching:
            yield schools, work, watching


def test_every_panel_shows_the_fleet_and_a_lost_node_is_seen(watched):
    schools, work, watching = watched
    empty = {**panels.MAY_BE_EMPTY, **panels.EMPTY_WITHOUT_TLS}
    findings = panels.wait(watching.url, 150, {k: v for k, v in empty.items() if k not in HERE_NOT_EMPTY})
    assert not findings, "\n".join(map(str, findings))
    assert not work.failed

    # Found through the aggregator, under their own names.
    assert watching.now('up{job="edge-attention-nodes"}') == {
        f"instance={node},job=edge-attention-nodes,node={node}": 1.0 for node in NODES
    }
    assert not watching.now("ALERTS")

    schools.fleet.kill("c")
    pending = watching.until('ALERTS{alertname="EdgeNodeLost"}')
    assert [re.search(r"node=(\w+)", labels)[1] for labels in pending] == ["c"]
    watching.until('up{job="edge-attention-nodes", node="c"} == 0')
    watching.until('increase(edge_attention_aggregator_attends_total{outcome="partial"}[1m]) > 0')
    # What only partial answers have.
    bound = ("edge-attention-attention", "Certified bound of partial answers")
    findings = panels.wait(watching.url, 60, {})
    assert bound not in {(finding.board, finding.panel) for finding in findings}

    schools.start("c")
    watching.until('up{job="edge-attention-nodes", node="c"} == 1')
    watching._until(lambda: not watching.now('ALERTS{alertname="EdgeNodeLost"}'), "the alert ends")


def test_scrapes_are_text_that_prometheus_3_takes_too(watched):
    """Prometheus 3 refuses an answer without a content type it knows; 2.42 does not."""
    _, _, watching = watched
    watching.until('up{job="edge-attention-nodes"} == 1')
    targets = watching._get("targets", {"state": "active"})["activeTargets"]
    assert {target["labels"]["job"] for target in targets} == {
        "edge-attention-aggregator",
        "edge-attention-nodes",
    }
    for target in targets:
        with urllib.request.urlopen(target["scrapeUrl"], timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4"), target["scrapeUrl"]
