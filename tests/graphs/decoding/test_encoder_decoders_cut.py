"""Decoders beside encoders, rewritten and cut, give the logits of their files, whatever the plan."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from decoder_runs import PaperDecoder, PaperSession, WholeEncoderDecoder
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.pieces import (
    GraphPiece,
    dumps_decoder,
    dumps_pieces,
    loads_decoder,
    loads_ends,
    loads_pieces,
)
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import Delivery
from edge_attention.graphs.axes.folder import CutFolder
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.decoding.cutting import cut_decoder, layers_of, write_steps
from edge_attention.graphs.decoding.joining import joined_decoder
from edge_attention.graphs.decoding.rewriting import as_steps

EXPORTS = Path(__file__).parent / "exports"
LAYERS = 1 << 20
PLANS = {
    "replicate": CutPlan((Stage(range(LAYERS), (0,)),)),
    "heads": CutPlan((Stage(range(LAYERS), (0, 1, 2), Cut.HEADS, shares=(3, 0, 2)),)),
    "tokens": CutPlan((Stage(range(LAYERS), (0, 1, 2), Cut.TOKENS, shares=(3, 1, 2)),)),
}
FILES = {
    "t5": ("t5_decoder", "t5_decoder_with_past"),
    "t5 merged": ("t5_decoder_merged",),
    "whisper": ("whisper_decoder", "whisper_decoder_with_past"),
}


def files_of(name):
    return [EXPORTS / f"{one}.onnx" for one in FILES[name]]


def given_to(name, seed, tokens=23):
    rng = np.random.default_rng(seed)
    if name == "whisper":
        return rng.normal(size=(1, 8, 24)).astype(np.float32)
    return rng.integers(40, size=(1, tokens))


@pytest.fixture(scope="module", params=FILES)
def joined(request, tmp_path_factory):
    """The name of FILES, and these as one decoder whose steps are alike."""
    folder = tmp_path_factory.mktemp("joined") / "joined"
    return request.param, as_steps(joined_decoder(files_of(request.param), folder))


@pytest.mark.parametrize("word", [*PLANS, "layers"])
def test_rows_of_several_sessions_are_what_each_is_alone(joined, word):
    """Beyond the distances that biases are of, and beyond the lengths that files were traced with."""
    name, stepped = joined
    plan = PLANS.get(word)
    if plan is None:
        layers = len(layers_of(stepped))
        plan = CutPlan((Stage(range(1), (0,)), Stage(range(1, layers), (1, 2), Cut.HEADS)))
    decoder = PaperDecoder(stepped, plan)
    wholes = [WholeEncoderDecoder(EXPORTS, name.partition(" ")[0]) for _ in range(2)]
    sessions = [PaperSession() for _ in range(2)]
    for seed, (session, whole) in enumerate(zip(sessions, wholes, strict=True)):
        decoder.remember(session, whole.encode(given_to(name, seed, 23 + 9 * seed)))
    rng = np.random.default_rng(0)
    for turn in range(14):
        rows, wanted = [], []
        for session, whole in zip(sessions, wholes, strict=True):
            for _ in range(4 if turn % 3 == 0 else 1):
                token = int(rng.integers(40))
                rows.append((session, token))
                wanted.append(whole.step(token))
        found, expected = decoder.step(rows), np.array(wanted)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_an_encoder_with_its_decoder_in_float16_is_served_and_said_to_be_rounded(tmp_path):
    for kind in ("encoder", "decoder", "decoder_with_past"):
        half = convert_float_to_float16(onnx.load(EXPORTS / f"t5_{kind}.onnx"))
        onnx.save(half, tmp_path / f"t5_{kind}.onnx")
    files = [tmp_path / f"t5_{kind}.onnx" for kind in ("decoder", "decoder_with_past")]
    whole, session = WholeEncoderDecoder(tmp_path, "t5"), PaperSession()
    decoder = PaperDecoder(joined_decoder(files, tmp_path / "joined"), PLANS["heads"])
    decoder.remember(session, whole.encode(np.array([[5, 7, 9, 3]])).astype(np.float32))
    for token in (1, 5, 7, 3):
        found, wanted = decoder.step([(session, token)])[0], whole.step(token)
        assert found.dtype == np.float32
        assert np.abs(found - wanted).max() <= 1e-2 * np.abs(wanted).max()
    assert "float16" in decoder._cuts[1].emitted.schedule.lacking


def test_what_is_written_is_read_again_and_has_the_same_graphs_of_all_rows(joined, tmp_path):
    form = write_steps(joined[1], PLANS["heads"], tmp_path / "cut")
    assert loads_decoder((tmp_path / "cut/decoder.json").read_text()) == form
    assert loads_decoder(dumps_decoder(form)) == form
    assert form.states_width == 24
    assert [one.memory for one in form.caches[0]] == [False, True, False, True]
    assert any(one.biased for one in form.caches[0]) is joined[0].startswith("t5")
    pieces = loads_pieces((tmp_path / "cut/4/pieces.json").read_text())
    assert loads_pieces(dumps_pieces(pieces)) == pieces
    graphs = {path.parent.parent.name: set() for path in tmp_path.rglob("cut/*/graphs/*.onnx")}
    for path in tmp_path.rglob("cut/*/graphs/*.onnx"):
        graphs[path.parent.parent.name].add(path.name)
    assert len(graphs) == 8
    # Of one row there are those besides that end a token and begin the next.
    ends = loads_ends((tmp_path / "cut/1/ends.json").read_text())
    assert ends
    graphs["1"] -= {f"{digest}.onnx" for digest in ends.values()}
    assert len({frozenset(of) for of in graphs.values()}) == 1


def test_a_bias_by_distance_is_the_files_table(joined):
    """Of T5 with 8 buckets up to a distance of 20: after that one value."""
    name, stepped = joined
    attentions = [node for node in stepped.model.model.graph.node if node.op_type == "CachedAttention"]
    biases = [stepped.model.read(node.input[3]) for node in attentions if len(node.input) > 3]
    if name == "whisper":
        assert not biases
        return
    table = onnx.load(EXPORTS / "t5_decoder.onnx").graph.initializer
    (found,) = [onnx.numpy_helper.to_array(one) for one in table if list(one.dims) == [8, 6]]
    assert len(biases) == 2
    for bias in biases:
        assert bias.shape[:2] == (6, 1)
        assert bias.shape[2] <= 21
        near = bias[:, 0, :4] - bias[:, 0, :1]
        np.testing.assert_allclose(near, (found[:4] - found[:1]).T, atol=2e-6)


def test_files_that_do_not_go_together_are_refused_with_the_remedy(tmp_path):
    first, step = files_of("t5")
    other = changed(first, lambda model: setattr(model.opset_import[0], "version", 19), tmp_path)
    nobody = EXPORTS / "whisper_decoder.onnx"
    for files, why in (
        ([step], "bring two"),
        ([first], "bring two"),
        ([first, first], "bring two"),
        ([step, step], "bring two"),
        ([other, step], "opsets 19 and"),
        ([changed(nobody, renamed, tmp_path), step], "does not give it"),
    ):
        with pytest.raises(FailedPrecondition, match=why):
            as_steps(joined_decoder(files, tmp_path / "joined"))


def test_an_encoder_and_its_decoder_in_one_graph_are_to_be_exported_as_two(tmp_path):
    ids = helper.make_tensor_value_info("decoder_input_ids", TensorProto.FLOAT, [1, None])
    made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    for given, rank in (("input_ids", 2), ("input_features", 3), ("pixel_values", 4)):
        nodes = [helper.make_node("Add", [given, "decoder_input_ids"], ["logits"])]
        takes = helper.make_tensor_value_info(given, TensorProto.FLOAT, [1] * rank)
        graph = helper.make_graph(nodes, "both", [takes, ids], [made])
        path = tmp_path / f"{given}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
        with pytest.raises(FailedPrecondition, match=r"in one graph: export them as two, .*with-past"):
            as_steps(open_model(path))
        with pytest.raises(FailedPrecondition, match=r"no decoder alone: .*export them as two, .*with-past"):
            joined_decoder([path], tmp_path)


def test_weights_that_are_copied_are_on_the_disk_when_there_is_a_model_of_them(tmp_path, monkeypatch):
    """Nothing would tell weights that a power cut left half written."""
    synced, sync = [], os.fsync

    def note(number):
        assert not (tmp_path / "joined/model.onnx").exists()
        synced.append((Path(os.readlink(f"/proc/self/fd/{number}")).name, os.fstat(number).st_size))
        sync(number)

    monkeypatch.setattr("os.fsync", note)
    opened = joined_decoder(files_of("t5"), tmp_path / "joined")
    monkeypatch.undo()
    assert synced == [("weights.bin", (opened.path.parent / "weights.bin").stat().st_size)]


def test_a_decoders_file_alone_says_that_it_goes_with_its_encoder():
    for name in ("t5_decoder", "t5_decoder_with_past", "t5_decoder_merged", "whisper_decoder_with_past"):
        with pytest.raises(FailedPrecondition, match="deploy ENCODER --decoder"):
            as_steps(open_model(EXPORTS / f"{name}.onnx"))


def renamed(model):
    """Outputs by names that no past has."""
    for node in model.graph.node:
        for at, name in enumerate(node.output):
            node.output[at] = name.replace("present", "now")
        for at, name in enumerate(node.input):
            node.input[at] = name.replace("present", "now")
    for value in model.graph.output:
        value.name = value.name.replace("present", "now")


def changed(file, change, tmp_path):
    model = onnx.load(file)
    change(model)
    path = tmp_path / file.name
    onnx.save(model, path)
    return path


def test_a_bias_that_neither_ends_nor_falls_alike_is_refused(tmp_path):
    first, step = files_of("t5")

    def slope(model):
        graph = model.graph
        keys = next(node for node in graph.node if node.op_type == "Concat" and "past" in node.input[0])
        softmax = next(node for node in graph.node if node.op_type == "Softmax")
        made = [
            onnx.helper.make_node("Shape", [keys.output[0]], ["tokens!"], start=2, end=3),
            onnx.helper.make_node("Squeeze", ["tokens!"], ["count!"]),
            onnx.helper.make_node("Range", ["zero!", "count!", "one!"], ["places!"]),
            onnx.helper.make_node("Cast", ["places!"], ["floats!"], to=1),
            onnx.helper.make_node("Mul", ["floats!", "slope!"], ["biases!"]),
            onnx.helper.make_node("Add", [softmax.input[0], "biases!"], ["leaning!"]),
        ]
        at = list(graph.node).index(softmax)
        softmax.input[0] = "leaning!"
        for offset, one in enumerate(made):
            graph.node.insert(at + offset, one)
        for name, value in (("zero!", np.int64(0)), ("one!", np.int64(1)), ("slope!", np.float32(0.01))):
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))

    files = [first, changed(step, slope, tmp_path)]
    with pytest.raises(FailedPrecondition, match="neither ends nor falls alike"):
        as_steps(joined_decoder(files, tmp_path / "joined"))


def test_a_memory_whose_tokens_meet_is_refused(tmp_path):
    """Keys of which each is of all tokens of the memory: rows bring them one by one."""
    first, step = files_of("t5")

    def mix(model):
        node = next(
            n for n in model.graph.node if "encoder_hidden_states" in n.input and n.op_type == "MatMul"
        )
        node.input[0] = "mixed!"
        at = list(model.graph.node).index(node)
        made = [
            onnx.helper.make_node("ReduceMean", ["encoder_hidden_states", "axis!"], ["mean!"]),
            onnx.helper.make_node("Add", ["encoder_hidden_states", "mean!"], ["mixed!"]),
        ]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis!"))
        for offset, one in enumerate(made):
            model.graph.node.insert(at + offset, one)

    files = [changed(first, mix, tmp_path), step]
    with pytest.raises(FailedPrecondition, match="not of one token of it each"):
        as_steps(joined_decoder(files, tmp_path / "joined"))


def test_parts_hold_their_heads_of_both(joined):
    _, form = cut_decoder(joined[1], PLANS["heads"], 2)
    assert [[one.heads for one in part] for part in form.caches] == [[4] * 4, [], [2] * 4]


def test_parts_of_other_shares_keep_their_sizes(tmp_path):
    """The first of three parts has its heads before those of others, the last one behind them."""
    plan = CutPlan((Stage(range(LAYERS), (0, 1, 2), Cut.HEADS),))
    opened = joined_decoder(files_of("t5"), tmp_path / "joined")
    write_steps(as_steps(opened), plan, tmp_path)
    for rows in (1, 8):
        schedule = CutFolder(opened.path, tmp_path / str(rows)).schedule()
        pieces = loads_pieces((tmp_path / str(rows) / "pieces.json").read_text())
        for _, segment in (one for part in range(3) for one in schedule.of_part(part)):
            for piece in pieces[segment.graph]:
                for name, of in piece.inputs.items() if isinstance(piece, GraphPiece) else ():
                    source = segment.inputs.get(of)
                    if not isinstance(source, Delivery):
                        continue
                    graph = onnx.load(tmp_path / str(rows) / "graphs" / f"{piece.graph}.onnx").graph
                    dims = next(v for v in graph.input if v.name == name).type.tensor_type.shape.dim
                    shape = extent_shape(schedule.boundaries[source.boundary].spec.shape, source.extent)
                    assert all(d.dim_value in (0, n) for d, n in zip(dims, shape, strict=True))
