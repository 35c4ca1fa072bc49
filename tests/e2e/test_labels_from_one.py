"""Labels from one in place of from nought, over real processes: who trains reads what is wrong, and where."""

from __future__ import annotations

import numpy as np
import pytest
from fleets import Fleet, command
from onnx import TensorProto, helper, numpy_helper

from edge_attention.jobs.job_file import read_job

NODES = ("a", "b")
JOB = """
name = "from-one"
dataset = "d"
nodes = ["a", "b"]
strategy = "fedavg"
rounds = 1
patience_seconds = 5

[model]
file = "model.onnx"
loss = { name = "cross_entropy", class_weights = [1, 2] }
inputs = { labels = "y" }

[local]
optimizer = { name = "sgd", lr = 0.1 }
batch = 8
epochs = 1
"""


def model():
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["p"])],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.full((4, 2), 0.1, np.float32), "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return made.SerializeToString()


@pytest.mark.parametrize("told", [True, False])
def test_labels_from_one_are_said_to_who_trains(tmp_path, told):
    random = np.random.default_rng(0)
    (tmp_path / "model.onnx").write_bytes(model())
    (tmp_path / "job.toml").write_text(JOB)
    for name in NODES:
        y = random.integers(2, size=20) + (name == "b")
        np.savez(tmp_path / f"{name}.npz", x=random.standard_normal((20, 4)).astype(np.float32), y=y)
    fleet = Fleet(tmp_path)
    try:
        with fleet.client(patience=60) as client:
            graphs = client.plan(read_job(tmp_path / "job.toml"))
        released = sorted({g.release for g in graphs if g.release and (told or g.role != "labels")})
        for name in NODES:
            fleet.start_node(
                name, "--threads", "1", data={"d": tmp_path / f"{name}.npz"}, allow_release=released
            )
        job = str(tmp_path / "job.toml")
        done = command("edge_attention.cli.main", "--aggregator", fleet.address, "train", job)
        said = done.stdout + done.stderr
        assert "note: output 'p' is made by Softmax" in said
        if told:
            assert "after round 0" in said, said
            assert "column 'y', dataset 'd' of node 'b'" in said
            assert "labels hold 1 to 2, the model has classes 0 to 1" in said
            assert "node 'a'" not in said
        else:
            # The round goes on without it; why is on the node, whole, and the message says where.
            assert "without b: node 'b'" in said, said
            assert "why is in the node's own log alone (" in said
    finally:
        fleet.stop()
