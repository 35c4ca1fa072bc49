"""A file that the process may not read: who it is is said, and a way that opens the file to nobody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_attention.core.errors import InvalidArgument
from edge_attention.tables import reading


def test_who_may_not_read_it_is_said_and_nothing_is_opened_to_all(tmp_path, monkeypatch):
    file = tmp_path / "rows.csv"
    file.write_text("x\n1\n")

    def refused(path: Path, options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reading, "_reader", lambda suffix: refused)
    with pytest.raises(InvalidArgument, match=f"runs as user {os.geteuid()}, .*setfacl") as raised:
        reading.read_table(file)
    assert "o+r" not in raised.value.message
