"""Both daemons' metrics over real work: every name there is, values that can be, labels that end."""

from __future__ import annotations

import shutil
import subprocess
import time
import urllib.request

import labs
import pytest
import schools
from fleets import SPEC, Fleet, certified, exact, queries, tokens, until
from labs import LABS
from prometheus_client.parser import text_string_to_metric_families
from schools import Schools

from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.federated import ConsensusSpec
from edge_attention.core.messages.training import TrainingRound

PORT = ("--metrics-port", "0")
PREFIX = {"aggregator": "edge_attention_aggregator_", "node": "edge_attention_node_"}
NODE = {
    "build_info", "tasks_total", "run_seconds", "task_seconds", "bytes_total", "refused_releases_total",
    "store_bytes", "memory_limit_bytes", "connected", "reconnects_total", "provider_info", "threads",
    "tasks_running", "certificate_expiry_timestamp_seconds",
}  # fmt: skip
SERVICE = {
    "build_info", "nodes", "node_up", "node_silent_seconds", "registrations_total", "contributions_total",
    "bytes_total", "attends_total", "attend_seconds", "attend_bound", "attend_mass",
    "attend_wait_seconds_total", "attend_straggler_seconds_total", "attend_slowest_total", "merge_seconds",
    "node_run_seconds", "contexts", "context_tokens", "queued_programs", "credit_bytes", "refusals_total",
    "nonfinite_total",
}  # fmt: skip
RUNS = {
    "runs", "rounds_total", "round_seconds", "run_round", "run_version", "run_waiting", "run_missing_nodes",
    "run_loss", "run_metric", "run_last_commit_timestamp_seconds",
}  # fmt: skip
FEDERATED = {"updates_total", "update_staleness_versions", "run_consensus_loss"}


class Page:
    """A daemon's metrics now. page[name, label=value, ...] is the sum over the series that fit."""

    def __init__(self, fleet, child=AGGREGATOR):
        port = fleet.child(child).wait_for(r"metrics on \S+:(\d+)")[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as page:
            self.text = page.read().decode()
        self.prefix = PREFIX["aggregator" if child == AGGREGATOR else "node"]
        self.samples = [s for f in text_string_to_metric_families(self.text) for s in f.samples]

    def series(self, name, **labels):
        full = name if name.startswith("process_") else self.prefix + name
        return [s for s in self.samples if s.name == full and labels.items() <= s.labels.items()]

    def __call__(self, name, **labels):
        found = self.series(name, **labels)
        assert found, f"no series {name} {labels}"
        return sum(sample.value for sample in found)

    def values(self, label):
        """Every value the label has, in any series."""
        return {s.labels[label] for s in self.samples if label in s.labels}

    @property
    def names(self):
        """With a value, without our prefix; histograms as they are called."""
        return {s.name.removeprefix(self.prefix).removesuffix("_count") for s in self.samples}


def lint(page):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here: it comes with Prometheus (Debian: apt-get install prometheus)")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page.text, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Labs a, b, c, whose client has attended, trained, erred, and attended again without c."""
    with Fleet(tmp_path_factory.mktemp("metrics"), *PORT, "--lease", "3") as own, own.client() as client:
        files = labs.write(own.folder)
        planned = client.plan(labs.job(5))
        for lab in LABS:
            allowed = labs.releases(client, lab, planned)
            own.start_node(lab, "--threads", "1", *PORT, data=files[lab], allow_release=allowed, wait=False)
        for lab in LABS:
            own.wait_ready(lab)
        context = client.create_context("notes", **SPEC)
        keys, values = tokens(900)
        for n, lab in enumerate(LABS):
            part = slice(300 * n, 300 * (n + 1))
            context.append(keys[part], values[part], node=lab)
        for _ in range(20):
            exact(context.attend(queries(2)), queries(2), keys, values)
        own.run = client.train(labs.job(5, evaluate_every=1))
        own.rounds = [event for event in own.run.events() if isinstance(event, TrainingRound)]
        gone = client.create_context("made-up", **SPEC)
        gone.drop()
        for n in range(50):  # what clients make up becomes no label
            for wrong in (
                lambda n=n: client.context(f"made-up-{n}"),
                lambda n=n: context.append(keys, values, node=f"made-up-{n}"),
                lambda n=n: client.run(f"made-up-{n}").state,
                lambda: gone.attend(queries(1)),
            ):
                with pytest.raises(EdgeAttentionError):
                    wrong()
        own.before = Page(own)
        own.nodes_before = {lab: Page(own, lab) for lab in LABS}
        own.kill("c")
        until(lambda: Page(own)("node_up", node="c") == 0, "c's going")
        certified(context.attend(queries(2), deadline=6.0), queries(2), keys, values)
        own.after = until(lambda: (page := Page(own))("nodes", state="lost") == 1 and page, "c's lease's end")
        yield own


def test_every_name_of_the_aggregator_is_there(fleet):
    names = fleet.after.names
    assert names >= SERVICE | RUNS
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "python_info"} <= names
    assert not [name for name in names if name.endswith("_created")]


def test_every_name_of_a_node_is_there(fleet):
    names = fleet.nodes_before["a"].names
    assert names >= NODE
    assert "process_resident_memory_bytes" in names
    assert not [name for name in names if name.endswith("_created")]


def test_promtool_finds_nothing_in_either(fleet):
    for page in (fleet.before, fleet.after, *fleet.nodes_before.values()):
        lint(page)


def test_attends_are_counted_by_stage(fleet):
    page = fleet.before
    assert page("attends_total", outcome="exact") == 20
    stages = {s.labels["stage"] for s in page.series("attend_seconds_count")}
    assert stages == {"client", "plan", "turn", "queue", "node_run", "network", "merge", "all"}
    seconds = {stage: page("attend_seconds_sum", stage=stage) for stage in stages}
    for stage in stages:
        assert page("attend_seconds_count", stage=stage) == 20, stage
        assert 0 <= seconds[stage] < 60
    # The stages are parts of the whole; a little besides is in none of them.
    parts = sum(seconds[s] for s in ("plan", "turn", "queue", "network"))
    assert 0 < parts <= seconds["all"]
    assert seconds["client"] > 0
    assert seconds["node_run"] < page("attend_wait_seconds_total") <= seconds["all"]
    assert 0 <= page("attend_straggler_seconds_total") < page("attend_wait_seconds_total")
    assert page("attend_slowest_total") == 20
    assert page("merge_seconds_count") == 20


def test_attention_is_shared_between_the_nodes(fleet):
    assert {s.labels["node"] for s in fleet.before.series("attend_mass")} == set(LABS)
    assert fleet.before("attend_mass") == pytest.approx(1.0, abs=1e-4)
    assert all(0.05 < s.value < 0.9 for s in fleet.before.series("attend_mass"))


def test_a_partial_answer_shows_and_whom_it_lacked(fleet):
    before, after = fleet.before, fleet.after
    assert before("attends_total", outcome="partial") == 0
    assert after("attends_total", outcome="partial") == 1
    assert after("attend_bound_count") == 1
    assert 0 < after("attend_bound_sum") < 100
    assert after("node_up", node="c") == 0
    assert after("node_up", node="a") == 1
    assert after("node_silent_seconds", node="c") > 3
    assert after("node_silent_seconds", node="c") > after("node_silent_seconds", node="a")
    assert not after.series("queued_programs", node="c")
    assert [after("nodes", state=state) for state in ("ready", "lost")] == [2, 1]


def test_what_moves_is_counted(fleet):
    page = fleet.before
    assert page("nodes", state="ready") == 3
    assert page("registrations_total", outcome="new") == 3
    assert page("contributions_total", outcome="folded") >= 60
    assert page("contexts") == 1
    assert page("context_tokens") == 900
    assert page("bytes_total", direction="sent", kind="stream") > 10_000
    assert page("credit_bytes", node="a") > 1 << 20
    assert page("queued_programs") == 0
    assert page("nonfinite_total") == 0
    assert page("node_run_seconds_count") >= 60
    assert page("process_resident_memory_bytes") > 1 << 20
    assert page("build_info") == 1


def test_a_training_run_shows(fleet):
    page, run, last = fleet.before, fleet.run.id, fleet.rounds[-1]
    assert page("rounds_total") == 5
    assert page("runs") == 0, "it has ended"
    assert page("run_round", run=run) == 5
    assert page("run_version", run=run) == last.version
    assert page("run_waiting", run=run) == page("run_missing_nodes", run=run) == 0
    assert page("run_loss", run=run) == pytest.approx(last.loss)
    share = last.evaluation.metrics["correct"] / last.evaluation.samples
    assert page("run_metric", run=run, metric="correct") == pytest.approx(share)
    assert time.time() - 600 < page("run_last_commit_timestamp_seconds", run=run) <= time.time()
    assert page("round_seconds_count", stage="commit") == 5


def test_refusals_are_counted_by_the_errors_name(fleet):
    assert fleet.before("refusals_total", reason="NotFound") == 4 * 50
    assert fleet.before("attends_total", outcome="failed") == 50


def test_no_label_has_what_a_client_made_up(fleet):
    page = fleet.after
    assert "made-up" not in page.text
    assert page.values("node") == set(LABS)
    assert page.values("run") == {fleet.run.id}
    assert page.values("outcome") <= {
        *("exact", "partial", "failed", "new", "resumed", "refused", "left_out"),
        *("folded", "duplicate", "late", "stale", "damaged"),
        *("stop", "length", "left"),
    }
    assert len(page.values("reason")) < 10
    assert len(page.samples) < 600


def test_a_node_counts_its_own(fleet):
    page = fleet.nodes_before["a"]
    assert page("tasks_total", outcome="ok") >= 20
    assert 0 < page("run_seconds_sum") < page("task_seconds_sum")
    assert page("run_seconds_count") == page("tasks_total")
    assert page("store_bytes", scope="context") > 300 * 4 * 2 * 24
    assert page("memory_limit_bytes") > page("store_bytes")
    assert page("connected") == page("provider_info", provider="CPUExecutionProvider") == page("threads") == 1
    assert page("reconnects_total") == page("tasks_running") == page("refused_releases_total") == 0
    assert page("bytes_total", direction="sent", kind="stream") > 1_000
    assert page("process_cpu_seconds_total") > 0


def test_federated_rounds_show_and_numbers_that_are_none(tmp_path):
    honest, liar = ("a", "b"), "e"
    with Schools(tmp_path, *PORT, names=(*honest, liar)) as own:
        probe = {"image": own.shares["a"].image[:4]}
        consensus = ConsensusSpec(probe=probe, attention="logits")
        job = schools.job(4, nodes=(*honest, liar), consensus=consensus, holdout=0.2, evaluate_every=1)
        own.allow(job)
        own.start(*honest)
        own.start_hostile(liar, "nan")
        run = own.client.train(job)
        rounds = [event for event in run.events() if isinstance(event, TrainingRound)]
        page = Page(own.fleet)
        lint(page)
    never = {"attend_mass", "attend_slowest_total", "refusals_total", "run_metric"}
    assert (SERVICE | RUNS | FEDERATED) - never <= page.names
    assert page("rounds_total") == 4
    assert page("nonfinite_total", what="update") == 1, "it was asked once and never again"
    assert page("updates_total", outcome="folded") == 8
    assert page("updates_total", outcome="refused") == 1
    assert page("update_staleness_versions_count") == 8
    assert page("update_staleness_versions_sum") == 0
    kinds = {s.labels["kind"]: s.value for s in page.series("run_consensus_loss", run=run.id)}
    assert kinds == pytest.approx(rounds[-1].consensus)
    assert kinds.keys() >= {"total", "attention", "parameters", "global"}
    assert page("run_loss", run=run.id) == pytest.approx(rounds[-1].loss)
    assert page("bytes_total", direction="received") > 10_000
