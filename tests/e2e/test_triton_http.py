"""Stock `tritonclient` over HTTP, and curl's JSON, against a model cut over real nodes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from fleets import Fleet

triton = pytest.importorskip("tritonclient.http")

MODEL = Path(__file__).parent.parent / "graphs" / "axes" / "exports" / "bert.onnx"
TOKENS = 24


def test_a_cut_model_is_served_over_http(tmp_path):
    session = ort.InferenceSession(str(MODEL))
    ids = np.random.default_rng(0).integers(1, 40, (1, TOKENS))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    names = [one.name for one in session.get_outputs()]
    whole = dict(zip(names, session.run(None, given), strict=True))
    with Fleet(tmp_path, "--metrics-port", "0", state=True) as fleet, fleet.client() as client:
        fleet.nodes("a", "b")
        client.deploy(MODEL, "bert", plan="tokens", dimensions={"sequence": TOKENS})
        address = fleet.child("aggregator").wait_for(r"metrics on (\S+:\d+)")[1]
        stock = triton.InferenceServerClient(address)
        assert stock.is_server_ready()
        assert stock.is_model_ready("bert")
        described = stock.get_model_metadata("bert")
        assert {one["name"]: one["datatype"] for one in described["inputs"]} == dict.fromkeys(given, "INT64")
        inputs = []
        for name, array in given.items():
            inputs.append(triton.InferInput(name, array.shape, "INT64"))
            inputs[-1].set_data_from_numpy(array)
        answer = stock.infer("bert", inputs, request_id="one")
        for name, value in whole.items():
            np.testing.assert_allclose(answer.as_numpy(name), value, atol=1e-5 * np.abs(value).max())

        asked = {"id": "two", "inputs": [
            {"name": name, "datatype": "INT64", "shape": list(array.shape), "data": array.tolist()}
            for name, array in given.items()
        ]}  # fmt: skip
        told = json.loads(curl(f"http://{address}/v2/models/bert/infer", "-d", json.dumps(asked)))
        assert (told["id"], told["model_version"]) == ("two", "1")
        for output in told["outputs"]:
            value = np.array(output["data"], np.float32).reshape(output["shape"])
            np.testing.assert_array_equal(value, answer.as_numpy(output["name"]))

        counted = stock.get_inference_statistics("bert")["model_stats"][0]
        assert (counted["inference_count"], counted["inference_stats"]["success"]["count"]) == (2, 2)
        stock.unload_model("bert")
        assert not stock.is_model_ready("bert")
        stock.load_model("bert")
        assert stock.is_model_ready("bert")
        stock.close()


def curl(*arguments):
    """What it prints."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not here: apt-get install curl")
    done = subprocess.run([program, "-sS", "--max-time", "60", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
