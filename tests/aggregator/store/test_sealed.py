"""Folders that say what their files are."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from aggregator.store.sealed import SEAL, require_sealed, seal
from edge_attention.core.errors import DataLoss, FailedPrecondition


def changed(path):
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["schedule.json", "graphs/a.onnx"])
@pytest.mark.parametrize("harm", [changed, lambda p: p.write_bytes(b""), lambda p: p.unlink(), a_folder])
def test_whatever_befalls_a_file_is_found_and_names_it(tmp_path, name, harm):
    (tmp_path / "graphs").mkdir()
    (tmp_path / "schedule.json").write_text("{}")
    (tmp_path / "graphs" / "a.onnx").write_bytes(b"onnx")
    require_sealed(tmp_path)  # an earlier release wrote it
    seal(tmp_path)
    require_sealed(tmp_path)
    harm(tmp_path / name)
    with pytest.raises(DataLoss, match=str(tmp_path / name)):
        require_sealed(tmp_path)
    seal(tmp_path)
    require_sealed(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1', json.dumps({"a": 1})])
def test_a_damaged_seal_is_said(tmp_path, text):
    (tmp_path / "a").write_text("a")
    (tmp_path / SEAL).write_text(text)
    with pytest.raises(DataLoss, match=str(tmp_path)):
        require_sealed(tmp_path)


@pytest.mark.parametrize("name", ["a", SEAL])
@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (errno.EMFILE, FailedPrecondition, "let this process open more files"),
        (errno.EACCES, FailedPrecondition, "let the user that runs the aggregator read"),
        (errno.EIO, DataLoss, "cannot be read"),
    ],
)
def test_what_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch, name, code, kind, said):
    (tmp_path / "a").write_text("a")
    seal(tmp_path)
    given = Path.open

    def refused(path, *how, **more):
        if path == tmp_path / name:
            raise OSError(code, os.strerror(code), str(path))
        return given(path, *how, **more)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(kind, match=f"{tmp_path / name} .*{said}"):
        require_sealed(tmp_path)
