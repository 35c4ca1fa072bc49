"""deploy/grafana: the dashboards are as built, well formed, and ask for metrics there are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import metric_names
import panels
import pytest
import yaml
from test_prometheus_files import FOLDER as PROMETHEUS
from test_prometheus_files import rules

ROOT = Path(__file__).parents[2]
BOARDS = {file.stem: json.loads(file.read_text()) for file in sorted(panels.FOLDER.glob("*.json"))}
each = pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))


def build(*arguments):
    command = [sys.executable, "-m", "deploy.grafana.build", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def sdk():
    pytest.importorskip(
        "grafana_foundation_sdk", reason="pip install -e '.[dev]' brings grafana-foundation-sdk"
    )


def test_the_dashboards_are_as_built(sdk):
    done = build("--check")
    assert done.returncode == 0, done.stderr


def test_a_changed_dashboard_is_stale(sdk, monkeypatch, tmp_path, capsys):
    from deploy.grafana import build as module

    for name, text in module.written().items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    module.main(["--check"], standalone_mode=False)
    (tmp_path / "fleet.json").write_text(
        (tmp_path / "fleet.json").read_text().replace("Nodes ready", "Nodes")
    )
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        module.main(["--check"], standalone_mode=False)
    assert ended.value.code == 1
    assert "fleet.json, old.json" in capsys.readouterr().err
    module.main([], standalone_mode=False)
    module.main(["--check"], standalone_mode=False)
    assert not (tmp_path / "old.json").exists()


def test_a_gap_in_a_line_is_refused(sdk):
    from deploy.grafana.layout import Board, Query, Row, build, number

    panel = number("Five", "Five columns.", Query("up"), unit="short", span=5)
    with pytest.raises(ValueError, match="the last line is 5 columns wide"):
        build(Board("odd", "Odd", "One panel.", [Row("Row", [panel])]))


def test_there_are_five():
    assert set(BOARDS) == {"fleet", "attention", "models", "training", "node"}
    assert {board["uid"] for board in BOARDS.values()} == {f"edge-attention-{slug}" for slug in BOARDS}


@each
def test_ids_are_unique_and_panels_do_not_overlap(board):
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


@each
def test_titles_are_unique_and_panels_explain_themselves(board):
    found = list(panels.panels(board))
    titles = [panel["title"] for panel in found]
    assert len(set(titles)) == len(titles)
    for panel in found:
        assert len(panel["description"]) > 15, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs), panel["title"]


@each
def test_queries_use_metrics_there_are(board):
    exposed = metric_names.exposed()
    recorded = {rule["record"] for rule in rules("record")}
    for panel, expr in panels.queries(board):
        found = list(metric_names.used(expr))
        assert found, f"{panel}: {expr} names no metric"
        for name, labels in found:
            if name in exposed:
                assert labels <= exposed[name], f"{panel}: {name} has no label {labels - exposed[name]}"
            else:
                assert name in recorded | metric_names.PROMETHEUS, f"{panel}: no metric {name}"


@each
def test_variables_are_defined(board):
    names = {name for name, *_ in panels.variables(board)}
    known = dict.fromkeys(names | {"__rate_interval", "__range", "__interval"}, "x")
    for _, expr in panels.queries(board):
        panels.substitute(expr.replace("$node", "${node:regex}"), known)


@each
def test_dashboards_lead_to_each_other(board):
    (link,) = board["links"]
    assert link["type"] == "dashboards"
    assert link["tags"] == ["edge-attention"]
    assert "edge-attention" in board["tags"]
    uids = {f"/d/{other['uid']}?" for other in BOARDS.values()}
    for panel in panels.panels(board):
        for address in panel["fieldConfig"]["defaults"].get("links", ()):
            assert address["url"].startswith(tuple(uids)), address


def test_every_metric_is_on_some_dashboard_or_in_some_rule():
    asked = [expr for board in BOARDS.values() for _, expr in panels.queries(board)]
    asked += [rule["expr"] for rule in rules("expr")]
    names = {name for expr in asked for name, _ in metric_names.used(expr)}
    assert not {
        name for name in metric_names.exposed() if name not in names and not name.endswith(("_sum", "_count"))
    }


def test_grafana_finds_them():
    folder = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards/edge-attention.yml").read_text())["providers"]
    interval = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    for board in BOARDS.values():
        chosen = {v["name"]: v["current"] for v in board["templating"]["list"] if v["type"] == "datasource"}
        assert chosen["datasource"]["value"] == source["uid"]
