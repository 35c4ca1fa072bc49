"""What `python -m benchmarks.infer_beside` lacks it says first; what it measured is a table."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks import infer_beside


def _programs(folder: Path) -> Path:
    for name in infer_beside.PROGRAMS:
        (folder / name).touch(mode=0o755)
    return folder


@pytest.fixture
def _all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("_all_installed")
def test_nothing_is_lacking_where_all_is_there(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.touch()
    assert infer_beside.lacking(None, None) is None
    assert infer_beside.lacking(_programs(tmp_path), gguf) is None


@pytest.mark.parametrize(("name", "pip"), infer_beside.PACKAGES.items())
def test_a_missing_package_is_named_before_anything_runs(
    name: str, pip: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else object())
    monkeypatch.setattr(infer_beside, "_measured", lambda *given: pytest.fail("it began"))
    with pytest.raises(SystemExit) as ended:
        infer_beside.main([])
    assert ended.value.code == 2
    assert f"error: not installed: {pip}; pip install" in capsys.readouterr().err


@pytest.mark.usefixtures("_all_installed")
def test_missing_programs_and_models_are_named(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    assert "go together" in str(infer_beside.lacking(tmp_path, None))
    assert "go together" in str(infer_beside.lacking(None, gguf))
    assert "no program llama-bench nor ggml-rpc-server" in str(infer_beside.lacking(tmp_path, gguf))
    (tmp_path / "llama-bench").touch(mode=0o755)
    assert "no program ggml-rpc-server" in str(infer_beside.lacking(tmp_path, gguf))
    assert f"--gguf {gguf} is no file" in str(infer_beside.lacking(_programs(tmp_path), gguf))


def test_a_row_for_each_with_both_lengths() -> None:
    one = {"times": 1.4, "mb": 0.6, "held": [157.0, 178.2], "killed": "ActorDiedError", "seconds": 0.04}
    found = {128: {"Ray": one}, 512: {"Ray": {**one, "times": 1.52, "mb": 2.4, "seconds": 0.7}}}
    head, line, row = infer_beside.table(found).splitlines()
    killed = "ActorDiedError, 0.0 s, 0.7 s"
    assert row == f"| Ray | 1.40 times | 1.52 times | 0.6 and 2.4 | 157, 178; 157, 178 | {killed} |"
    assert head.count("|") == line.count("|") == row.count("|")
