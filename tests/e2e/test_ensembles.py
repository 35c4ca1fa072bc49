"""Ensembles over real processes: asked by the client, the command line and tritonclient."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from fleets import Fleet, command
from onnx import TensorProto, helper

from edge_attention import FailedPrecondition, InvalidTensor

FILE = """
how = "attention"
queries = [[[1.0, -1.0]]]
seconds = 20
[[member]]
name = "camera"
model = "camera-encoder"
inputs = { x = "image" }
[[member]]
name = "sound"
model = "sound-encoder"
inputs = { x = "sound" }
"""


def encoder(path, factor):
    """[batch, tokens, 1, 2] -> keys and values: what it is given, times `factor`."""
    ends = ["batch", "tokens", 1, 2]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["keys"]), helper.make_node("Identity", ["x"], ["values"])],
        "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ends)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ends) for name in ("keys", "values")],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def attention(image, sound):
    """In float64; what is attended to, and how much weight each had."""
    keys = np.concatenate([image, 0.5 * sound], 1).astype(np.float64)[0, :, 0]
    values = np.concatenate([image, sound], 1).astype(np.float64)[0, :, 0]
    scores = keys @ np.array([1.0, -1.0]) / np.sqrt(2)
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights @ values, [weights[: image.shape[1]].sum(), weights[image.shape[1] :].sum()]


def run(fleet, *arguments, code=0):
    done = command("edge_attention.cli.main", "--aggregator", fleet.address, "ensemble", *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_two_modalities_meet_by_attention_and_an_absent_one_is_said(tmp_path):
    random = np.random.default_rng(0)
    image = random.standard_normal((1, 5, 1, 2)).astype(np.float32)
    sound = random.standard_normal((1, 3, 1, 2)).astype(np.float32)
    given = {"image": image, "sound": sound}
    wanted, masses = attention(image, sound)
    file = tmp_path / "both.toml"
    file.write_text(FILE)
    np.savez(tmp_path / "inputs.npz", **given)
    with Fleet(tmp_path, state=True) as fleet, fleet.client() as client:
        fleet.nodes("a", "b")
        for name, factor, node in (("camera", 1.0, "a"), ("sound", 0.5, "b")):
            encoder(tmp_path / f"{name}.onnx", factor)
            with pytest.raises(FailedPrecondition, match="is not deployed"):
                client.deploy_ensemble(file, "both")
            client.deploy(tmp_path / f"{name}.onnx", f"{name}-encoder", plan="replicate", nodes=[node])
        made = json.loads(run(fleet, "deploy", file, "--name", "both", "--json"))
        assert (made["version"], made["members"]) == (1, ["camera", "sound"])

        both = client.ensemble("both")
        answer = both.infer(given)
        assert answer.exact
        np.testing.assert_allclose(answer["output"][0, 0, 0], wanted, atol=1e-5)
        np.testing.assert_allclose(answer["mass"][0], masses, atol=1e-5)
        with pytest.raises(InvalidTensor, match="has no input 'radar'"):
            both.infer({**given, "radar": image})

        with triton.InferenceServerClient(fleet.address) as asked:
            assert asked.is_model_ready("both")
            tensors = []
            for name, array in given.items():
                tensors.append(triton.InferInput(name, array.shape, "FP32"))
                tensors[-1].set_data_from_numpy(array)
            found = asked.infer("both", tensors).as_numpy("output")
            np.testing.assert_array_equal(found, answer["output"])

        fleet.restart_aggregator()
        client.model("sound-encoder").undeploy()
        told = run(fleet, "infer", "both", "--input", tmp_path / "inputs.npz", "--json", code=3)
        assert "member sound" in json.loads(told)["lacking"]
        np.testing.assert_array_equal(client.ensemble("both").infer(given)["mass"], [[1.0, 0.0]])
        assert "sound" in run(fleet, "list")
        run(fleet, "undeploy", "both")
        assert client.ensembles() == []
