"""Decoders beside encoders as `optimum-cli` exports them, by TorchScript: a layer's shapes are read off what
layers before it made. `python -m tools.exports.stock_optimum` makes the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from decoder_runs import PaperDecoder, PaperSession, WholeDecoder, WholeEncoderDecoder, session_of
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.decoding.cutting import layers_of
from edge_attention.graphs.decoding.input_sizes import read_sizes_off
from edge_attention.graphs.decoding.joining import joined_decoder
from edge_attention.graphs.decoding.rewriting import as_steps
from edge_attention.graphs.decoding.step_graph import StepGraph

EXPORTS = Path(__file__).parent / "exports"
LAYERS = 1 << 20
FILES = {
    "t5": ("decoder", "decoder_with_past"),
    "t5 merged": ("decoder_merged",),
    "bart": ("decoder", "decoder_with_past"),
    "whisper": ("decoder", "decoder_with_past"),
}


class Whole(WholeEncoderDecoder):
    """The two files of a decoder, with states that no encoder made."""

    def __init__(self, name, states):
        kinds = ("decoder", "decoder_with_past")
        self._first, self._step = (session_of(str(EXPORTS / f"optimum_{name}_{kind}.onnx")) for kind in kinds)
        self._past, self.states = {}, states


@pytest.fixture(scope="module", params=FILES)
def joined(request, tmp_path_factory):
    """The kind of model, and its files as one decoder whose steps are alike."""
    kind = request.param.partition(" ")[0]
    files = [EXPORTS / f"optimum_{kind}_{one}.onnx" for one in FILES[request.param]]
    return kind, as_steps(joined_decoder(files, tmp_path_factory.mktemp("optimum") / "joined"))


@pytest.mark.parametrize("word", ["replicate", "layers", "heads", "tokens"])
def test_logits_are_those_of_the_files(joined, word):
    kind, stepped = joined
    layers = len(layers_of(stepped))
    stages = {
        "replicate": (Stage(range(LAYERS), (0,)),),
        "layers": (Stage(range(2), (0,)), Stage(range(2, layers), (1,))),
        "heads": (Stage(range(LAYERS), (0, 1, 2), Cut.HEADS, shares=(3, 1, 2)),),
        "tokens": (Stage(range(LAYERS), (0, 1, 2), Cut.TOKENS, shares=(3, 1, 2)),),
    }
    decoder = PaperDecoder(stepped, CutPlan(stages[word]))
    rng = np.random.default_rng(0)
    sessions = []
    for tokens in (17, 26):
        states = rng.normal(size=(1, tokens, 24)).astype(np.float32)
        sessions.append((PaperSession(), Whole(kind, states)))
        decoder.remember(sessions[-1][0], states[0])
    for turn in range(10):
        rows, wanted = [], []
        for session, whole in sessions:
            for _ in range(3 if turn % 3 == 0 else 1):
                token = int(rng.integers(40))
                rows.append((session, token))
                wanted.append(whole.step(token))
        found, expected = decoder.step(rows), np.array(wanted)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("word", ["replicate", "layers", "heads", "tokens"])
def test_a_decoder_alone_merged_of_its_two_steps_is_that_with_a_past(word):
    path = EXPORTS / "optimum_llama_merged.onnx"
    stages = {
        "replicate": (Stage(range(LAYERS), (0,)),),
        "layers": (Stage(range(2), (0,)), Stage(range(2, 5), (1,))),
        "heads": (Stage(range(LAYERS), (0, 1, 2), Cut.HEADS, shares=(3, 0, 2)),),
        "tokens": (Stage(range(LAYERS), (0, 1, 2), Cut.TOKENS, shares=(3, 1, 2)),),
    }
    decoder, session = PaperDecoder(path, CutPlan(stages[word])), PaperSession()
    whole = WholeDecoder(path)
    for token in (3, 9, 27, 1, 4):
        found, wanted = decoder.step([(session, token)])[0], whole.step(token)
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_keys_of_the_states_need_no_layer_of_the_decoder():
    """Not one product with the decoder's tokens is done for the shape of what is made of the states."""
    graph = StepGraph.of(open_model(EXPORTS / "optimum_t5_decoder.onnx"))
    wanted = [name for name in graph.outputs if ".encoder." in name]
    assert len(wanted) == 4
    before = len(graph.before(wanted))
    read_sizes_off(graph, "encoder_hidden_states", wanted)
    kept = graph.before(wanted)
    assert len(kept) < before / 10
    assert sum(node.op_type == "MatMul" for node in kept) == 4
    assert {name for node in kept for name in node.input} & set(graph.inputs) == {"encoder_hidden_states"}


def test_a_size_that_is_not_the_inputs_stays(tmp_path):
    """A file's own number is no size, and what is neither is computed as before."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["made"]),
        helper.make_node("Shape", ["made"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Gather", ["shape", "third"], ["width"]),
        helper.make_node("Mul", ["batch", "width"], ["both"]),
        helper.make_node("Concat", ["batch", "width", "both"], ["said"], axis=0),
    ]
    held = {
        "w": np.ones((2, 7), np.float32),
        "first": np.array([0], np.int64),
        "third": np.array([2], np.int64),
    }
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", 2])
    said = helper.make_tensor_value_info("said", TensorProto.INT64, [3])
    tensors = [numpy_helper.from_array(value, name) for name, value in held.items()]
    file = helper.make_model(
        helper.make_graph(nodes, "sizes", [x], [said], tensors),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    (tmp_path / "sizes.onnx").write_bytes(file.SerializeToString())
    graph = StepGraph.of(open_model(tmp_path / "sizes.onnx"))
    read_sizes_off(graph, "x", ["said"])
    left = graph.before(["said"])
    makers = {node.output[0]: node for node in left}
    assert makers["batch"].op_type == "Concat"
    assert makers["width"].op_type == "Concat"
    assert makers["both"].op_type == "Mul"
    graph.nodes = left
    del file.graph.node[:]
    file.graph.node.extend(left)
    del file.graph.initializer[:]
    file.graph.initializer.extend(graph.model.graph.initializer)
    (tmp_path / "after.onnx").write_bytes(file.SerializeToString())
    (found,) = session_of(str(tmp_path / "after.onnx")).run(None, {"x": np.zeros((3, 4, 2), np.float32)})
    assert found.tolist() == [3, 7, 21]
    assert "made" not in {name for node in left for name in node.input}


def test_how_far_tokens_are_past_a_window_is_no_number_of_the_file(tmp_path):
    """It is 0 of few tokens, and so of both choices that are tried."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["made"]),
        helper.make_node("Shape", ["made"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["tokens"]),
        helper.make_node("Gather", ["shape", "two"], ["width"]),
        helper.make_node("Sub", ["tokens", "window"], ["past"]),
        helper.make_node("Max", ["past", "none"], ["start"]),
        helper.make_node("Concat", ["start", "width"], ["said"], axis=0),
    ]
    held = {"w": np.ones((2, 7), np.float32)} | {
        name: np.array([number], np.int64)
        for name, number in (("one", 1), ("two", 2), ("window", 64), ("none", 0))
    }
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", 2])
    said = helper.make_tensor_value_info("said", TensorProto.INT64, [2])
    tensors = [numpy_helper.from_array(value, name) for name, value in held.items()]
    file = helper.make_model(
        helper.make_graph(nodes, "window", [x], [said], tensors),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    (tmp_path / "window.onnx").write_bytes(file.SerializeToString())
    graph = StepGraph.of(open_model(tmp_path / "window.onnx"))
    read_sizes_off(graph, "x", ["said"])
    makers = {node.output[0]: node.op_type for node in graph.before(["said"])}
    assert makers["start"] == "Max"
    assert makers["tokens"] == makers["width"] == "Concat"
