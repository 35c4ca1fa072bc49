"""A real fleet on loopback, at work, seen through the repository's Prometheus files and dashboards."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import metric_names
import numpy as np
import panels
import pytest
from fleets import SPEC, queries, tokens
from real_prometheus import RunningPrometheus
from schools import Schools, job

from edge_attention.core.errors import EdgeAttentionError, NotFound
from edge_attention.core.messages.federated import ConsensusSpec
from edge_attention.core.messages.training import LocalSpec, LossSpec, OptimizerSpec
from edge_attention.graphs.builders import attention_patches
from edge_attention.jobs.federated_job import FederatedModel

pytestmark = pytest.mark.e2e

NODES = ("a", "b", "c")
MODEL = Path(__file__).parent.parent / "graphs" / "axes" / "exports" / "bert.onnx"
IDS = np.arange(1, 7)[None]
ONLY_WITH_TLS = ("certificate_expiry_timestamp_seconds", "certificates_issued_total", "enrolments_total")
HERE_NOT_EMPTY = {
    ("edge-attention-fleet", "Calls refused"),
    ("edge-attention-training", "Consensus losses"),
    *(key for key in panels.MAY_BE_EMPTY if key[0] == "edge-attention-models"),
}
"""Panels a healthy fleet may leave empty, but not this one."""


class Work:
    """Attends to a context, a model in three parts and one training run, going on until the block ends."""

    def __init__(self, schools):
        self.schools, self._over = schools, threading.Event()
        tasks = (self._attend, self._infer, self._mistake)
        self._threads = [threading.Thread(target=task) for task in tasks]
        self.failed = []

    def __enter__(self):
        with self.schools.fleet.client() as client:
            context = client.create_context("memory", **SPEC)
            for index, node in enumerate(NODES):
                context.append(*tokens(2_000, seed=index), node=node)
            client.deploy(MODEL, "bert", plan="tokens", dimensions={"sequence": 6})
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
                    context.attend(queries(2), deadline=60.0)
                except EdgeAttentionError as error:
                    self.failed.append(error)

    def _infer(self):
        with self.schools.fleet.client() as client:
            model = client.model("bert")
            while not self._over.wait(0.2):
                try:
                    model.infer({"input_ids": IDS, "attention_mask": np.ones_like(IDS)}, deadline=60.0)
                except EdgeAttentionError as error:
                    self.failed.append(error)

    def _mistake(self):
        """What a client does wrong now and then."""
        with self.schools.fleet.client() as client:
            while not self._over.wait(1.0):
                with contextlib.suppress(NotFound):
                    client.context("no-such-context").attend(queries(1))


@pytest.fixture(scope="module")
def watched(prometheus, tmp_path_factory):
    """Three nodes at work, and the Prometheus that watches them."""
    folder = tmp_path_factory.mktemp("observed")
    with Schools(folder, "--metrics-port", "0", "--lease", "3", names=NODES, store=True) as schools:
        said = schools.fleet.child("aggregator").wait_for(r"metrics on (\S+:\d+)")
        work = Work(schools)
        schools.allow(work.job())
        schools.start()
        with work, RunningPrometheus(prometheus, folder, said[1]) as watching:
            yield schools, work, watching


def test_every_panel_shows_something(watched):
    _, work, watching = watched
    empty = {**panels.MAY_BE_EMPTY, **panels.EMPTY_WITHOUT_TLS}
    findings = panels.wait(watching.url, 600, {k: v for k, v in empty.items() if k not in HERE_NOT_EMPTY})
    assert not findings, "\n".join(map(str, findings))
    assert not work.failed
    # How full the disk is, is this machine's.
    assert not watching.now('ALERTS{alertname!~"Edge(State|Node)DiskFilling"}')


def test_nodes_are_found_through_the_aggregator(watched):
    _, _, watching = watched
    watching.until('count(up{job="edge-attention-nodes"} == 1) == 3')
    assert watching.now('up{job="edge-attention-nodes"}') == {
        f"instance={node},job=edge-attention-nodes,node={node}": 1.0 for node in NODES
    }


@pytest.fixture(scope="module")
def everything(watched):
    """The names of all metrics of a fleet without TLS, once each has been seen."""
    _, _, watching = watched
    without = {f"edge_attention_aggregator_{name}" for name in ONLY_WITH_TLS}
    names = set(metric_names.exposed()) - without
    for name in names:
        watching.until(f"count({name})")
    return names


def test_metrics_have_the_labels_that_rules_and_dashboards_go_by(watched, everything):
    _, _, watching = watched
    for name, labels in metric_names.exposed().items():
        if name in everything:
            job = "nodes" if name.startswith("edge_attention_node_") else "aggregator"
            for series in watching.query(f'{name}{{job="edge-attention-{job}"}}', instant=True):
                found = set(series["metric"]) - {"__name__"}
                assert found == labels - ({"node"} if name.startswith("process_") else set()), name


def test_answers_are_text_that_prometheus_3_takes_too(watched):
    """Prometheus 3 refuses an answer without a content type it knows; 2.42 does not."""
    _, _, watching = watched
    targets = watching.targets()
    assert len(targets) == 1 + len(NODES)
    for target in targets:
        with urllib.request.urlopen(target["scrapeUrl"], timeout=120) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4"), target["scrapeUrl"]


@pytest.mark.usefixtures("everything")
def test_series_are_few(watched):
    """docs/observability.md says how many."""
    _, _, watching = watched
    samples = watching.now("max by (job) (max_over_time(scrape_samples_scraped[10m]))")
    assert samples["job=edge-attention-aggregator"] < 750
    assert samples["job=edge-attention-nodes"] < 150


def test_a_lost_node_is_seen_and_what_is_partial_has_a_bound(watched):
    schools, _, watching = watched
    schools.fleet.kill("c")
    pending = watching.until('ALERTS{alertname="EdgeNodeLost"}')
    assert [re.search(r"node=(\w+)", labels)[1] for labels in pending] == ["c"]
    watching.until('up{job="edge-attention-nodes", node="c"} == 0')
    watching.until('increase(edge_attention_aggregator_attends_total{outcome="partial"}[1m]) > 0')
    bound = next(
        panel
        for panel in panels.panels(json.loads((panels.FOLDER / "attention.json").read_text()))
        if panel["title"] == "Certified bound of partial answers"
    )
    for target in bound["targets"]:
        watching.until(f"{panels.substitute(target['expr'], {'__rate_interval': '1m'})} > 0")
    schools.start("c")
    watching.until('up{job="edge-attention-nodes", node="c"} == 1')
    watching.until('absent(ALERTS{alertname="EdgeNodeLost"})')
