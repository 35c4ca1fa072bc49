"""The path from a file to a trained model that docs/federated.md shows, on real processes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edge_attention import Client, read_job
from edge_attention.cli.local_fleet import LocalFleet

pytestmark = pytest.mark.e2e
PAGE = (Path(__file__).parents[2] / "docs" / "federated.md").read_text(encoding="utf-8")


def block(name):
    found = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"docs/federated.md has no block {name!r}"
    return found[1]


def test_from_a_file_to_a_trained_model(tmp_path):
    def python(code):
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )

    prepared = python(block("prepare"))
    assert prepared.returncode == 0, prepared.stderr
    (tmp_path / "job.toml").write_text(block("job"))
    with LocalFleet(state=tmp_path / "state") as fleet:
        fleet.start_aggregator()
        with Client(fleet.address) as client:
            planned = client.plan(read_job(tmp_path / "job.toml"))
        releases = [planned.job_release]
        assert {graph.role for graph in planned if graph.release} == {"update", "evaluate", "labels"}
        for line in block("nodes").splitlines():
            words = shlex.split(line)
            flags = dict(zip(words[1::2], words[2::2], strict=True))
            dataset, file = flags["--data"].split("=")
            fleet.start_node(
                flags["--name"], "--store", str(tmp_path / flags["--store"]),
                data={dataset: tmp_path / file}, allow_release=releases,
            )  # fmt: skip
        done = python(block("client").replace("127.0.0.1:50051", fleet.address))
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    number, _, share = last.split()
    assert number == "20"
    assert float(share.rstrip("%")) > 75  # guessing gets a third
    # The file the page's code has written is ready to serve.
    data = np.load(tmp_path / "a.npz")
    session = onnxruntime.InferenceSession(tmp_path / "trained.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"features": data["features"]})
    assert (logits.argmax(1) == data["label"]).mean() > 0.75
