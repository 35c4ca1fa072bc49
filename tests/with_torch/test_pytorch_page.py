"""docs/pytorch.md as written: from classes and files to trained state_dicts and their accuracy."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from sklearn.datasets import make_classification  # noqa: E402

from edge_attention import Client, read_job  # noqa: E402
from edge_attention.cli.local_fleet import LocalFleet  # noqa: E402

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pytorch.md").read_text(encoding="utf-8")


def block(name):
    found = re.search(rf"<!-- test: {re.escape(name)} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"docs/pytorch.md has no block {name!r}"
    return found[1]


def rows(count=4000):
    x, y = make_classification(
        count, 16, n_informative=10, n_redundant=2, n_classes=3, class_sep=1.6, random_state=3
    )
    return x.astype(np.float32), y


def write(path, x, y):
    header = ",".join([*(f"f{i}" for i in range(16)), "label"])
    np.savetxt(path, np.column_stack([x, y]), "%.6g", ",", header=header, comments="")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run(command, folder, **options):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def environment():
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def test_from_a_class_and_four_csv_files_to_a_trained_state_dict(tmp_path, environment):
    x, y = rows()
    order = np.argsort(x[:3200, 0])  # sites differ
    for name, part in zip("abcd", np.split(order, [500, 1200, 2100]), strict=True):
        write(tmp_path / f"site-{name}.csv", x[part], y[part])
    write(tmp_path / "test.csv", x[3200:], y[3200:])
    port = str(free_port())
    for name in ("model.py", "job.toml", "result.py"):
        (tmp_path / name).write_text(block(name).replace("50051", port))
    commands = block("commands").strip().splitlines()
    assert len(commands) <= 5
    assert sum("edge-attention up" in line for line in commands) == 1
    fleet, said = None, {}
    try:
        for line in commands:
            program, *words = shlex.split(line.replace("50051", port))
            if program == "python":
                said[words[0]] = run([sys.executable, *words], tmp_path, env=environment)
                continue
            assert program == "edge-attention"
            command = [sys.executable, "-u", "-m", "edge_attention.cli.entry", *words]
            if words[0] != "up":
                here = environment | {"EDGE_ATTENTION_AGGREGATOR": f"127.0.0.1:{port}"}
                said[words[0]] = run(command, tmp_path, env=here)
                continue
            fleet = subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
            )
            for told in fleet.stdout:
                if told.startswith("ready:"):
                    break
            else:
                raise AssertionError("the fleet did not start")
    finally:
        if fleet is not None:
            fleet.terminate()
            fleet.wait(120)
    assert "parameters train" in said["model.py"]
    assert "dropout is off" in said["model.py"]
    *_, loaded, accuracy = said["result.py"].strip().splitlines()
    state = torch.load(tmp_path / "trained.pt")
    assert loaded.startswith(f"{len(state)} tensors loaded from run churn")
    assert float(accuracy.removeprefix("accuracy ").rstrip("%")) > 70  # guessing gets a third
    sys.path.insert(0, str(tmp_path))
    try:
        from model import Tab

        Tab().load_state_dict(state)  # every key, and no other
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("model", None)


def test_encoders_and_heads_go_out_and_back(tmp_path, environment):
    for name in ("fusion.py", "fusion.toml"):
        (tmp_path / name).write_text(block(name))
    run([sys.executable, "fusion.py"], tmp_path, env=environment)
    x, y = rows(1000)
    ids = np.array([f"row-{i}" for i in range(1000)])
    for name, columns in (("left", slice(0, 10)), ("right", slice(10, 16))):
        data = {f"f{i}": x[:, i] for i in range(16)[columns]}
        header = ",".join(["id", *data])
        lines = [
            ",".join([one, *(f"{v:.6g}" for v in row)]) for one, row in zip(ids, x[:, columns], strict=True)
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *lines]) + "\n")
    labels = [f"{one},{label}" for one, label in zip(ids, y, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,label", *labels]) + "\n")
    with LocalFleet(state=tmp_path / "state") as fleet:
        fleet.start_aggregator()
        with Client(fleet.address) as client:
            job = read_job(tmp_path / "fusion.toml")
            wanted = {graph.release for graph in client.plan(job) if graph.release}
            for name in ("left", "right"):
                data = {"columns": tmp_path / f"{name}.csv"}
                data |= {"labels": tmp_path / "labels.csv"} if name == "right" else {}
                fleet.start_node(name, data=data, allow_release=sorted(wanted | {"attention", "alignment"}))
            rounds = list(client.train(job))
        names: dict = {}
        sys.path.insert(0, str(tmp_path))
        try:
            code = block("fused.py").replace("127.0.0.1:50051", fleet.address)
            exec(compile(code, "docs/pytorch.md", "exec"), names)
        finally:
            sys.path.remove(str(tmp_path))
            sys.modules.pop("fusion", None)
    encoders = [names[one].eval() for one in ("left", "right")]
    with torch.no_grad():
        xs = [torch.tensor(x[:, :10]), torch.tensor(x[:, 10:])]
        logits = names["together"](encoders, names["head"].eval(), names["queries"], xs)
    accuracy = float((logits.argmax(1).numpy() == y).mean())
    evaluation = next(one.evaluation for one in reversed(rounds) if one.evaluation is not None)
    assert accuracy > 0.6
    assert accuracy == pytest.approx(evaluation.share("correct"), abs=0.1)  # of held-out rows
