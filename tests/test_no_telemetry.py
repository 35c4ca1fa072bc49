"""ONNX Runtime tells nobody: not from the daemons, not from a client's program."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SESSION = """
import {module}, onnxruntime
from edge_attention.graphs.attention import library
onnxruntime.InferenceSession(library.load("attention_decode"), providers=["CPUExecutionProvider"])
"""


def files_of(module, home, **environment):
    """What a program that imports `module` first leaves in its home folder."""
    home.mkdir()
    # CI and tests switch telemetry off by themselves; the child must not look like either.
    kept = {
        name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
    }
    env = kept | {"HOME": str(home)} | environment
    done = subprocess.run(
        [sys.executable, "-B", "-c", SESSION.format(module=module)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return sorted(path.name for path in home.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "module", ["edge_attention", "edge_attention.client.sync", "edge_node.main", "aggregator.main"]
)
def test_no_id_of_the_device_is_made(module, tmp_path):
    assert files_of(module, tmp_path / "home") == []


def test_the_operator_may_have_it_otherwise(tmp_path):
    """And so the test above can fail: this is what ONNX Runtime does when nobody tells it not to."""
    import onnxruntime

    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 29):
        pytest.skip(f"onnxruntime {onnxruntime.__version__} has no telemetry on Linux; 1.29 and newer have")
    assert "deviceid" in files_of("edge_attention", tmp_path / "home", ORT_DISABLE_TELEMETRY="0")
