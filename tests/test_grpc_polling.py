"""gRPC is told to do without threads of its own for sockets, where it knows the words for that."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from edge_attention import grpc_polling
from edge_attention.grpc_polling import poll_directly

BEGIN = "import grpc; grpc.insecure_channel('127.0.0.1:1').close()"
TOLD = f"from edge_attention.grpc_polling import poll_directly; poll_directly(); {BEGIN}"


@pytest.fixture
def experiments(monkeypatch):
    monkeypatch.setenv("GRPC_EXPERIMENTS", "none")
    monkeypatch.delenv("GRPC_EXPERIMENTS")


def test_the_operator_has_the_last_word(monkeypatch):
    monkeypatch.setenv("GRPC_EXPERIMENTS", "theirs")
    poll_directly()
    assert os.environ["GRPC_EXPERIMENTS"] == "theirs"


def test_a_later_grpc_is_told_nothing(monkeypatch, experiments):
    monkeypatch.setattr(grpc_polling, "_NEWEST", (1, 0))
    poll_directly()
    assert "GRPC_EXPERIMENTS" not in os.environ


def test_one_of_a_version_that_nobody_knows_is_told_nothing(monkeypatch, experiments, tmp_path):
    place = SimpleNamespace(origin=str(tmp_path / "grpc.zip" / "__init__.py"))
    monkeypatch.setattr(grpc_polling, "find_spec", lambda name: place)
    poll_directly()
    assert "GRPC_EXPERIMENTS" not in os.environ


def test_this_grpc_knows_the_words():
    """It complains of none, as it does of one that it does not know."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    for code, given, complains in ((TOLD, {}, False), (BEGIN, {"GRPC_EXPERIMENTS": "-nonesuch"}, True)):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment | given
        )
        assert done.returncode == 0
        assert ("experiment" in done.stderr) is complains, done.stderr
