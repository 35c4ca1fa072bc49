"""The checker of dashboards finds what is wrong with one: else that it finds nothing would say nothing."""

from __future__ import annotations

import json
import re

import panels
import pytest
from real_prometheus import RunningPrometheus

BOARD = {
    "uid": "board",
    "annotations": {
        "list": [{"name": "wrong annotation", "expr": "sum("}, {"name": "quiet", "expr": 'up{job="none"}'}]
    },
    "templating": {
        "list": [
            {"name": "datasource", "type": "datasource"},
            {
                "name": "job",
                "type": "query",
                "multi": False,
                "query": {"query": "label_values(scrape_samples_scraped, job)"},
            },
            {"name": "none", "type": "query", "multi": True, "query": {"query": "label_values(absent, x)"}},
        ]
    },
    "panels": [
        {"type": "row", "title": "Row", "panels": [{"type": "stat", "title": "In a row", "targets": []}]},
        *(
            {"type": "timeseries", "title": title, "targets": [{"expr": expr, "instant": instant}]}
            for title, expr, instant in (
                ("good", 'up{job="$job"}', False),
                ("good now", 'up{job="${job:regex}", instance=~"$none"}', True),
                ("good rate", "rate(scrape_duration_seconds[$__rate_interval])", False),
                ("empty", "no_such_metric", False),
                ("empty now", "no_such_metric", True),
                ("allowed", "no_such_metric", True),
                ("allowed but wrong", "no_such_metric{", True),
                ("not a number", "0 * up / 0", False),
                ("infinite", "vector(1) / 0", True),
                ("wrong", "rate(up)", True),
                ("unknown", 'up{x="$y"}', True),
                ("a range", "up[5m]", True),
                ("a number", "1", True),
            )
        ),
    ],
}
ALLOWED = {
    ("board", "allowed"): "may",
    ("board", "allowed but wrong"): "may",
    ("board", "gone"): "was there once",
}


@pytest.fixture(scope="module")
def watching(prometheus, tmp_path_factory):
    """Scrapes nobody: nobody listens at that port. `up` is 0."""
    with RunningPrometheus(prometheus, tmp_path_factory.mktemp("prometheus"), "127.0.0.1:1") as watching:
        watching.until("rate(scrape_duration_seconds[1m]) >= 0")
        yield watching


def test_it_finds_what_is_wrong_and_nothing_else(watching, tmp_path):
    (tmp_path / "board.json").write_text(json.dumps(BOARD))
    found = {f.panel: f.problem for f in panels.check(watching.url, ALLOWED, tmp_path)}
    expected = {
        "gone": "no such panel",
        "$none": "no values of the label x",
        "empty": "no data",
        "empty now": "no data",
        "allowed but wrong": "refused: .*parse error",
        "not a number": "only NaN",
        "infinite": "only NaN",
        "wrong": "refused: .*range vector",
        "unknown": "no variable 'y'",
        "a number": "the result is a scalar",
        "a range": "the result is a matrix",
        "wrong annotation": "refused: .*parse error",
    }
    assert set(found) == set(expected)
    for panel, pattern in expected.items():
        assert re.search(pattern, found[panel]), (panel, found[panel])


def test_the_command_says_what_it_found(watching, tmp_path, capsys):
    board = {**BOARD, "annotations": {"list": []}, "templating": {"list": []}, "panels": BOARD["panels"][4:5]}
    (tmp_path / "board.json").write_text(json.dumps(board))
    assert panels.main([watching.url, "--dashboards", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "board: empty: no data: no_such_metric" in said
    assert "no such panel" in said  # those that may be empty are of the real dashboards


def test_no_dashboards_is_an_error(watching, tmp_path):
    with pytest.raises(FileNotFoundError, match="make dashboards"):
        panels.check(watching.url, {}, tmp_path)
