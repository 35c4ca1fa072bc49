"""A new head on an encoder that somebody else has trained, over three nodes, from the command line alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_federated_by_hand import block

from edge_attention.cli.local_fleet import LocalFleet

pytestmark = pytest.mark.e2e
TOKENS, WIDTH, TOPICS = 12, 16, 3
COMMAND = [sys.executable, "-m", "edge_attention.cli.entry", "--aggregator"]


def encoder() -> bytes:
    """As published: open lengths, int8 weights, a fused operator, outputs that nobody here wants."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["e"]),
        helper.make_node("DynamicQuantizeLinear", ["e"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "ws"], ["h"]),
        helper.make_node("FastGelu", ["h"], ["last_hidden_state"], domain="com.microsoft"),
        helper.make_node("Tokenise", ["last_hidden_state"], ["text"], domain="somebody.else"),
    ]
    ids, mask = (
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence_length"])
        for name in ("input_ids", "attention_mask")
    )
    shape = ["batch", "sequence_length", WIDTH]
    out = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, shape)
    text = helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"])
    values = {
        "words": rng.standard_normal((40, WIDTH)).astype(np.float32),
        "w": rng.integers(-99, 99, (WIDTH, WIDTH)).astype(np.int8),
        "ws": np.array(0.01, np.float32),
    }
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "encoder", [ids, mask], [out, text], tensors)
    domains = [("", 17), ("com.microsoft", 1), ("somebody.else", 1)]
    opsets = [helper.make_opsetid(*each) for each in domains]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def texts(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Each topic has words of its own, and some are common to all."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(TOPICS, size=rows)
    own = topic[:, None] * 10 + rng.integers(10, size=(rows, TOKENS))
    ids = np.where(rng.random((rows, TOKENS)) < 0.6, own, 30 + rng.integers(10, size=(rows, TOKENS)))
    mask = (np.arange(TOKENS) < rng.integers(6, TOKENS + 1, size=(rows, 1))).astype(np.int64)
    return {"input_ids": np.where(mask, ids, 0), "attention_mask": mask, "topic": topic}


def command(fleet: LocalFleet, folder: Path, *words: str) -> str:
    done = subprocess.run(
        [*COMMAND, fleet.address, *words],
        cwd=folder, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_an_encoder_of_somebody_else_gets_a_head(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(encoder())
    (tmp_path / "job.toml").write_text(block("head"))
    rows = {"a": 160, "b": 120, "c": 80}
    for seed, (node, count) in enumerate(rows.items()):
        np.savez(tmp_path / f"{node}.npz", **texts(count, seed))
    with LocalFleet(state=tmp_path / "state") as fleet:
        fleet.start_aggregator()
        # Nobody is here to tell the length: the message says what to write into the job.
        refused = subprocess.run(
            [*COMMAND, fleet.address, "train", "job.toml", "--plan"],
            cwd=tmp_path, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert "dimensions = { sequence_length = 64 }" in " ".join(refused.stderr.split())
        said = block("head").replace("[local]", f"dimensions = {{ sequence_length = {TOKENS} }}\n\n[local]")
        (tmp_path / "sized.toml").write_text(said)
        plan = json.loads(command(fleet, tmp_path, "train", "sized.toml", "--plan", "--json"))
        (model,) = plan["models"]
        assert model["trained"] == {"head.weight": WIDTH * TOPICS, "head.bias": TOPICS}
        assert model["frozen"]["w"] == "int8, which has no gradient"
        assert model["cut"] == ["text"]
        assert model["dimensions"] == {"sequence_length": TOKENS}
        for node in rows:
            fleet.start_node(
                node, data={"texts": tmp_path / f"{node}.npz"}, allow_release=plan["allow_release"]["*"]
            )
        # With nodes the columns tell it, and it is the same graphs that were released.
        shown = command(fleet, tmp_path, "train", "job.toml", "--plan")
        assert "2 parameters of 51 numbers train: head" in shown
        assert "sequence_length is 12" in shown
        command(fleet, tmp_path, "train", "job.toml")
        command(fleet, tmp_path, "train", "export", "topics", "--onnx", "topics.onnx")
    trained = onnx.load(tmp_path / "topics.onnx")
    assert [value.name for value in trained.graph.output] == ["logits"]
    weights = {tensor.name: tensor for tensor in trained.graph.initializer}
    before = {tensor.name: tensor for tensor in onnx.load_model_from_string(encoder()).graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(weights["w"]), numpy_helper.to_array(before["w"]))
    session = onnxruntime.InferenceSession(tmp_path / "topics.onnx", providers=["CPUExecutionProvider"])
    fresh = texts(300, 99)
    topic = fresh.pop("topic")
    (logits,) = session.run(["logits"], fresh)
    assert (logits.argmax(1) == topic).mean() > 0.8  # guessing gets a third
