"""What a job would be refused for by what nodes have: `train --plan` says it, and `train` says the same."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from fleets import command
from onnx import TensorProto, helper, numpy_helper

CLIENT = "edge_attention.cli.main"
JOB = """
name = "{name}"
dataset = "{dataset}"
strategy = "fedavg"
rounds = 3
holdout = 0.2
patience_seconds = 15
[model]
file = "{file}"
loss = {{ name = "cross_entropy", output = "logits" }}
inputs = {{ labels = "{labels}" }}

[local]
optimizer = {{ name = "sgd", lr = 0.05 }}
batch = 32
epochs = 1
"""
JOBS = {
    "good": ("rows", "mlp.onnx", "label"),
    "badcol": ("rows", "mlp.onnx", "target"),
    "baddata": ("row", "mlp.onnx", "label"),
    "wrongshape": ("rows", "wrongshape.onnx", "label"),
}


def perceptron(features):
    """x [batch, features] -> logits [batch, 3], with a hidden layer."""
    rng = np.random.default_rng(0)
    sizes = (features, 32, 3)
    weights = {f"w{i}": rng.standard_normal(sizes[i : i + 2]).astype(np.float32) / 4 for i in range(2)}
    weights |= {f"b{i}": np.full(sizes[i + 1], 0.01 * (i + 1), np.float32) for i in range(2)}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w1", "b1"], ["logits"]),
        ],
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", features])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("jobs")
    (found / "mlp.onnx").write_bytes(perceptron(16))
    (found / "wrongshape.onnx").write_bytes(perceptron(12))
    for name, (dataset, file, labels) in JOBS.items():
        (found / f"{name}.toml").write_text(JOB.format(name=name, dataset=dataset, file=file, labels=labels))
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((120, 16)).astype(np.float32), rng.integers(3, size=120)
    np.savez(found / "good.npz", x=x, label=y)
    np.savez(found / "strings.npz", x=x, label=np.array(["cat", "dog", "cow"])[y])
    return found


def run(fleet, folder, *words):
    """(exit code, stdout, stderr) of a command; lines as one."""
    done = command(CLIENT, "--aggregator", fleet.address, *words, cwd=folder, timeout=120)
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def problems(fleet, folder, job):
    """Node -> what a run would be refused for; by both commands the same."""
    code, out, err = run(fleet, folder, "train", f"{job}.toml", "--plan", "--json")
    assert err == ""
    told = json.loads(out)
    assert code == (1 if told["problems"] else 0)
    same = run(fleet, folder, "plan", f"{job}.toml", "--json")
    assert (same[0], json.loads(same[1]), same[2]) == (code, told, err)
    return {problem["node"]: problem["text"] for problem in told["problems"]}


def test_the_plan_says_what_training_says(fleet, folder):
    own = fleet()
    own.nodes("a", "b", flags=("--allow-own-data",), data={"rows": folder / "good.npz"})
    assert problems(own, folder, "good") == {}
    found = problems(own, folder, "badcol")
    assert set(found) == {"a", "b"}
    assert "has no column 'target'; it has: " in found["a"]
    code, _, err = run(own, folder, "train", "badcol.toml")
    assert (code, "has no column 'target'" in err) == (1, True), err
    found = problems(own, folder, "wrongshape")
    assert set(found) == {"a", "b"}
    assert "is float32 [16] a row, input 'x' takes float32 [12]" in found["b"]
    code, _, err = run(own, folder, "train", "wrongshape.toml")
    assert (code, "float32 [12]" in err) == (1, True), err
    found = problems(own, folder, "baddata")
    assert set(found) == {""}
    assert "no node here has a dataset 'row' (did you mean 'rows'?)" in found[""]
    code, out, _ = run(own, folder, "train", "badcol.toml", "--plan")
    assert code == 1
    assert "A run of badcol.toml would be refused:" in out
    assert "  a: " in out


def test_what_has_the_wrong_type_is_said_of_who_has_it(fleet, folder):
    own = fleet()
    for name, file in (("a", "good"), ("b", "strings")):
        own.nodes(name, flags=("--allow-own-data",), data={"rows": folder / f"{file}.npz"})
    found = problems(own, folder, "good")
    assert set(found) == {"b"}
    assert "'label'" in found["b"]
    code, _, err = run(own, folder, "train", "good.toml")
    assert (code, "'label'" in err) == (1, True), err
