"""deploy/prometheus: promtool's checks, the rules' tests; rules, tests and runbook name the same alerts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import metric_names
import pytest
import yaml

from aggregator.http.runbook import as_html

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/prometheus"
ALERTS = {
    "EdgeBoundReached",
    "EdgeAggregatorDown",
    "EdgeAnswersPartial",
    "EdgeCertificateEnding",
    "EdgeMemoryNearLimit",
    "EdgeNoQuorum",
    "EdgeNodeDiskFilling",
    "EdgeNodeLost",
    "EdgeNotFinite",
    "EdgeStateDiskFilling",
    "EdgeStragglers",
    "EdgeTrainingStalled",
}

PAGE = (
    '{{ if match "^https?://" $externalLabels.page }}{{ $externalLabels.page }}'
    "{{ else }}https://localhost:9464{{ end }}"
)
"""What links of alerts begin with: the page's address, if prometheus.yml says it."""


def rules(kind):
    """All rules that have the key `kind` (alert or record)."""
    files = [yaml.safe_load(file.read_text()) for file in sorted((FOLDER / "rules").glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"] if kind in rule]


def cases():
    return [
        test
        for file in sorted((FOLDER / "tests").glob("*.yml"))
        for test in yaml.safe_load(file.read_text())["tests"]
    ]


def run(promtool, *arguments):
    done = subprocess.run([promtool, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def installed(folder):
    """A copy of deploy/prometheus whose credentials are at a place this test may write."""
    shutil.copytree(FOLDER, folder / "prometheus")
    for name in ("authority.pem", "viewer-token"):
        (folder / name).write_text("for a check of the configuration\n")
    file = folder / "prometheus/prometheus.yml"
    file.write_text(file.read_text().replace("/run/edge-attention/", f"{folder}/"))
    return file


def test_the_configuration_is_valid(promtool, tmp_path):
    code, said = run(promtool, "check", "config", installed(tmp_path))
    assert code == 0, said
    assert "2 rule files found" in said


def test_the_configuration_needs_its_credentials(promtool, tmp_path):
    file = installed(tmp_path)
    (tmp_path / "viewer-token").unlink()
    code, said = run(promtool, "check", "config", file)
    assert code != 0
    assert "viewer-token" in said


def test_in_a_checkout_its_syntax_can_be_checked_as_the_page_says(promtool):
    command = "promtool check config --syntax-only deploy/prometheus/prometheus.yml"
    assert command in (FOLDER.parents[1] / "docs/observability.md").read_text()
    code, said = run(promtool, "check", "config", "--syntax-only", FOLDER / "prometheus.yml")
    assert code == 0, said


def test_the_rules_are_valid(promtool):
    files = sorted((FOLDER / "rules").glob("*.yml"))
    code, said = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", *files)
    assert code == 0, said


@pytest.mark.parametrize("file", sorted((FOLDER / "tests").glob("*.yml")), ids=lambda file: file.stem)
def test_the_rules_do_what_their_tests_say(promtool, file):
    code, said = run(promtool, "test", "rules", file)
    assert code == 0, said


def test_a_wrong_expectation_fails(promtool, tmp_path):
    """promtool would also pass a test file that tests nothing."""
    shutil.copytree(FOLDER, tmp_path / "prometheus")
    file = tmp_path / "prometheus/tests/recording.yml"
    text = file.read_text()
    assert "value: 0.75" in text
    file.write_text(text.replace("value: 0.75", "value: 0.74"))
    code, said = run(promtool, "test", "rules", file)
    assert code != 0
    assert "0.75" in said.replace("7.5E-01", "0.75")


def test_there_is_every_alert():
    assert {rule["alert"] for rule in rules("alert")} == ALERTS


def test_every_alert_is_tested_firing_and_not():
    fires, silent = set(), set()
    for test in cases():
        for case in test.get("alert_rule_test", ()):
            (fires if case["exp_alerts"] else silent).add(case["alertname"])
    assert fires == ALERTS
    assert silent == ALERTS


def test_every_recording_rule_is_tested():
    tested = " ".join(case["expr"] for test in cases() for case in test.get("promql_expr_test", ()))
    for rule in rules("record"):
        assert rule["record"] in tested, rule["record"]


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_and_what_to_do(rule):
    assert rule["labels"]["severity"], rule
    summary, description = rule["annotations"]["summary"], rule["annotations"]["description"]
    assert summary.endswith((".", "}}.")), summary
    assert len(description) > 80, description
    assert description.endswith((".", "{{ end }}")), description
    assert re.search(r"\{\{.*\$labels\.(node|run|name|instance)", summary), f"{summary} names nothing"


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: rule["alert"])
def test_an_alert_has_its_paragraph_in_the_runbook(rule):
    anchor = rule["alert"].lower()
    base, _, place = rule["annotations"]["runbook_url"].partition("/runbook#")
    assert (base, place) == (PAGE, anchor)
    runbook = (ROOT / "docs/runbook.md").read_text()
    assert f'<h2 id="{anchor}">' in as_html(runbook), "where the link points on the aggregator's page"
    section = re.search(rf"^## {rule['alert']}\n(.*?)(?=^## |\Z)", runbook, re.MULTILINE | re.DOTALL)
    assert section, f"docs/runbook.md has no heading {rule['alert']}"
    for word in ("**Means.**", "**Look.**", "**Do.**", "```console"):
        assert word in section[1], f"{rule['alert']}: no {word}"


def test_the_runbook_lists_every_alert_and_none_that_is_none():
    listed = re.findall(r"^\| \[(Edge\w+)\]\(#(\w+)\)", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    assert {name for name, _ in listed} == ALERTS
    assert all(place == name.lower() for name, place in listed)
    headings = set(re.findall(r"^## (Edge\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE))
    assert headings == ALERTS


def test_rules_use_metrics_there_are():
    exposed = metric_names.exposed()
    recorded = {rule["record"] for rule in rules("record")}
    for rule in rules("expr"):
        found = list(metric_names.used(rule["expr"]))
        assert found, rule
        for name, labels in found:
            if name in exposed:
                assert labels <= exposed[name], f"{name} has no {labels - exposed[name]}: {rule['expr']}"
            else:
                assert name in recorded | metric_names.PROMETHEUS, f"no metric {name}: {rule['expr']}"


def test_nodes_are_found_and_not_believed():
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert set(jobs) == {"edge-attention-aggregator", "edge-attention-nodes"}
    nodes = jobs["edge-attention-nodes"]
    assert "static_configs" not in nodes
    assert [sd["url"] for sd in nodes["http_sd_configs"]] == ["https://aggregator:9464/sd"]
    assert nodes["honor_labels"] is False
    assert nodes["honor_timestamps"] is False
    for place in (*jobs.values(), *nodes["http_sd_configs"]):
        assert place["tls_config"] == {"ca_file": "/run/edge-attention/authority.pem"}
        given = {"type": "Bearer", **place["authorization"]}
        assert given == {"type": "Bearer", "credentials_file": "/run/edge-attention/viewer-token"}
    # Prometheus 2.42 sends a token without its type to service discovery, unless told.
    assert nodes["http_sd_configs"][0]["authorization"]["type"] == "Bearer"
