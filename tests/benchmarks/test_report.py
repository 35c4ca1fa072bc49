"""What the benchmarks print and how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as command
from benchmarks.report import Figure, Report
from benchmarks.turns import Worker, median_ratio


def test_a_figure_over_its_bound_is_missed() -> None:
    report = Report("title", (Figure("at", 1.0, "times", 1.0), Figure("free", 9.0, "ms")))
    assert report.met
    assert "MISSED" not in report.table()
    missed = Report("title", (*report.figures, Figure("over", 1.01, "times", 1.0)))
    assert not missed.met
    (line,) = [line for line in missed.table().splitlines() if "MISSED" in line]
    assert "over" in line


def test_what_was_skipped_is_printed() -> None:
    assert "not measured: no torch" in Report("title", (), ("no torch",)).table()


def test_a_ratio_is_of_the_same_turn() -> None:
    assert median_ratio([1, 20, 3], [1, 10, 1]) == 2


@pytest.mark.parametrize(("value", "code"), [(1.0, 0), (3.0, 1)])
def test_the_exit_code_says_whether_all_bounds_hold(
    value: float, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = Report("title", (Figure("f", value, "times", 2.0),))
    monkeypatch.setitem(sys.modules, "benchmarks.idle", SimpleNamespace(report=lambda quick: report))
    results = tmp_path / "results.json"
    results.write_text('{"idle": {"title": "old"}, "kernel": {"title": "of another day"}}')
    monkeypatch.setattr(sys, "argv", ["benchmarks", "idle", "--json", str(results)])
    assert command.main() == code
    found = json.loads(results.read_text())
    assert found["idle"]["figures"] == [
        {"name": "f", "value": value, "unit": "times", "bound": 2.0, "met": not code}
    ]
    assert found["idle"]["machine"]["cores"] >= 1
    assert found["kernel"] == {"title": "of another day"}, "only what was run is replaced"


def test_a_quick_runs_figures_are_written_only_where_one_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = Report("title", (Figure("f", 1.0, "times", 2.0),))
    monkeypatch.setitem(sys.modules, "benchmarks.idle", SimpleNamespace(report=lambda quick: report))
    results, own = tmp_path / "results.json", tmp_path / "own.json"
    monkeypatch.setattr(command, "RESULTS", results)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "idle", "--quick"])
    assert command.main() == 0
    assert not results.exists()
    monkeypatch.setattr(sys, "argv", ["benchmarks", "idle", "--quick", "--json", str(own)])
    assert command.main() == 0
    assert json.loads(own.read_text())["idle"]["quick"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "idle"])
    assert command.main() == 0
    assert not json.loads(results.read_text())["idle"]["quick"]


def test_what_a_long_one_has_is_kept_where_it_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ended(quick: bool, keep: Callable[[Report], None]) -> Report:
        keep(Report("title", (Figure("first", 1.0, "times"),), ("the second: not yet",)))
        raise KeyboardInterrupt

    results = tmp_path / "results.json"
    monkeypatch.setitem(sys.modules, "benchmarks.idle", SimpleNamespace(report=ended))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "idle", "--json", str(results)])
    with pytest.raises(KeyboardInterrupt):
        command.main()
    found = json.loads(results.read_text())["idle"]
    assert [figure["name"] for figure in found["figures"]] == ["first"]
    assert found["skipped"] == ["the second: not yet"]


def test_an_unknown_benchmark_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit):
        command.main()
    assert "no benchmark speed" in capsys.readouterr().err


def test_a_worker_answers_each_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "twice.py").write_text(
        "from benchmarks.turns import serve\nserve(lambda calls: 2 * calls, first='ready')\n"
    )
    root = str(Path(command.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    worker = Worker("twice")
    assert worker.first == "ready"
    assert [worker.turn(n) for n in (1, 5)] == [2, 10]
    worker.close()
    with pytest.raises(SystemExit, match="twice"):
        Worker("twice_is_not_there")
