"""Each architecture of docs/models.md's table: out to a file, trained there, and back, by three ways."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from edge_attention.graphs.models.trained import trained_onnx  # noqa: E402
from edge_attention.torch import ExportWarning, export, load  # noqa: E402
from tools.exports.architectures import FIXTURE, exports  # noqa: E402
from tools.exports.weights import liven  # noqa: E402

# The others are the same architectures by other exporters, or decoders in their other form.
CASES = {
    one.name: one for one in exports(FIXTURE) if one.dynamo and one.opset is None and "cached" not in one.name
}
SEQUENCES = ("input_ids", "attention_mask")


def test_they_are_all_there():
    text = {"bert", "roberta", "distilbert", "deberta_v2", "modernbert", "gpt2", "llama", "qwen3"}
    both = {f"{family}_{half}" for family in ("t5", "whisper") for half in ("encoder", "decoder")}
    assert set(CASES) == text | both | {"vit", "clip_vision", "swin"}


@pytest.mark.parametrize("name", CASES)
def test_a_round_trip(name, tmp_path):
    one = CASES[name]
    module = one.module().eval()
    liven(module)
    dynamic = {n: {1: "sequence"} for n in one.inputs if n in SEQUENCES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExportWarning)
        report = export(
            module,
            one.arguments,
            tmp_path / "m.onnx",
            inputs=one.inputs,
            outputs=one.outputs,
            dynamic=dynamic,
        )
    assert report.difference < 2e-5
    parameters = dict(module.named_parameters())
    assert all(not parameters[name].requires_grad for name in report.frozen)  # Whisper's positions
    assert {*report.trained, *report.frozen} == set(parameters) - set(report.unused)
    # What training does: every parameter another value, by the names of the file.
    file = (tmp_path / "m.onnx").read_bytes()
    there = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_model_from_string(file).graph.initializer
    }
    random = np.random.default_rng(1)
    values = {
        n: there[n] + 0.02 * random.normal(size=there[n].shape).astype(np.float32) for n in report.trained
    }
    trained = trained_onnx(file, values)
    # ONNX, and a run's safetensors, into new modules.
    by_onnx, by_safetensors = (one.module().eval() for _ in range(2))
    for fresh in (by_onnx, by_safetensors):
        liven(fresh)
    assert set(load(by_onnx, trained).left) == set(report.unused) - dict(report.tied).keys()
    save_file({n: torch.tensor(v) for n, v in values.items()}, tmp_path / "p.safetensors")
    all_there = not (report.unused or report.frozen)  # a run's file has these, its parameters do not
    load(by_safetensors, load_file(tmp_path / "p.safetensors"), strict=all_there)
    state = by_onnx.state_dict()
    for parameter, value in values.items():
        assert np.array_equal(state[parameter].numpy(), value), parameter
        assert np.array_equal(by_safetensors.state_dict()[parameter].numpy(), value), parameter
    # state_dict, and the answers.
    again = one.module().eval()
    torch.save(state, tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    session = onnxruntime.InferenceSession(trained)
    given = {value.name for value in session.get_inputs()}
    feeds = {n: a.numpy() for n, a in zip(one.inputs, one.arguments, strict=True) if n in given}
    (expected,) = session.run(None, feeds)
    with torch.no_grad():
        answer = again(*one.arguments).numpy()
    np.testing.assert_allclose(answer, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    # And it is another answer than before: the trip was one.
    with torch.no_grad():
        before = module(*one.arguments).numpy()
    assert np.abs(before - answer).max() > 1e-3 * np.abs(answer).max()
