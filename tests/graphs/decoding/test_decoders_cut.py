"""Decoders, rewritten and cut, give the logits of their files with their own past, whatever the plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from decoder_runs import PaperDecoder, PaperSession, WholeDecoder, stepped_file
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

from edge_attention.core.errors import DataLoss, FailedPrecondition
from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.pieces import (
    GraphPiece,
    dumps_decoder,
    dumps_ends,
    dumps_pieces,
    dumps_tables,
    loads_decoder,
    loads_ends,
    loads_pieces,
    loads_tables,
)
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import Delivery
from edge_attention.demo.decoder import decoder_model
from edge_attention.graphs.axes.cut import analyse
from edge_attention.graphs.axes.folder import CutFolder
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.narrow import narrow_places
from edge_attention.graphs.decoding import core_trial, cutting
from edge_attention.graphs.decoding.cutting import cut_decoder, write_decoder
from edge_attention.graphs.decoding.rewriting import as_steps
from edge_attention.graphs.decoding.step_graph import ATTENTION

EXPORTS = Path(__file__).parent.parent / "axes/exports"
LAYERS = 1 << 20
PLANS = {
    "replicate": CutPlan((Stage(range(LAYERS), (0,)),)),
    "heads": CutPlan((Stage(range(LAYERS), (0, 1, 2), Cut.HEADS, shares=(3, 0, 2)),)),
    "heads of three": CutPlan((Stage(range(LAYERS), (0, 1, 2), Cut.HEADS),)),
    "tokens": CutPlan((Stage(range(LAYERS), (0, 1, 2), Cut.TOKENS, shares=(3, 1, 2)),)),
}


def layers_plan(path):
    layers = len(narrow_places(analyse(stepped_file(path).model, {"rows": 2}))) + 1
    return CutPlan((Stage(range(2), (0,)), Stage(range(2, layers), (1, 2), Cut.HEADS)))


def tokens_of(path):
    return WholeDecoder(path).step(0).size


@pytest.mark.parametrize("name", ["gpt2_cached", "llama_cached", "llama_genai", "qwen3_cached"])
@pytest.mark.parametrize("word", [*PLANS, "layers", "heads and widths"])
def test_rows_of_several_sessions_are_what_each_is_alone(name, word, monkeypatch):
    path = EXPORTS / f"{name}.onnx"
    if word == "heads and widths":  # as of a model too large for each part to do what lies between attentions
        monkeypatch.setattr(cutting, "TRIP_BYTES", 0)
        word = "heads"
    plan = PLANS.get(word) or layers_plan(path)
    decoder = PaperDecoder(stepped_file(path), plan)
    wholes = [WholeDecoder(path) for _ in range(3)]
    sessions = [PaperSession() for _ in range(3)]
    rng = np.random.default_rng(0)
    size = tokens_of(path)
    for turn in range(6):
        rows, wanted = [], []
        for session, whole in zip(sessions, wholes, strict=True):
            for _ in range(1 + (turn % 3 == 0)):
                token = int(rng.integers(size))
                rows.append((session, token))
                wanted.append(whole.step(token))
        found, expected = decoder.step(rows), np.array(wanted)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("word", ["replicate", "heads", "tokens", "tokens of one"])
def test_what_a_file_rounds_coarsely_is_said_by_every_plan(word):
    """Attention over what is stored is other operators than the file's on one box, too."""
    alone = CutPlan((Stage(range(LAYERS), (0, 1), Cut.TOKENS, shares=(0, 1)),))
    stepped = stepped_file(EXPORTS / "llama_genai_int4.onnx")
    schedule = cut_decoder(stepped, PLANS.get(word, alone), 1)[0].emitted.schedule
    assert "round activations to int8" in schedule.lacking
    assert "logits agree to about 1e-2" in schedule.lacking


@pytest.mark.parametrize("name", ["gpt2_cached", "llama_cached", "llama_genai", "qwen3_cached"])
def test_parts_that_share_heads_meet_once_a_layer_where_the_rest_is_small(name, monkeypatch):
    stepped = stepped_file(EXPORTS / f"{name}.onnx")
    layers = len(cut_decoder(stepped, PLANS["replicate"], 2)[1].caches[0])
    once, form = cut_decoder(stepped, PLANS["heads"], 2)
    assert len(once.emitted.schedule.steps) == layers + 1
    for bound in ("TRIP_BYTES", "ALONE_BYTES"):
        with monkeypatch.context() as m:
            m.setattr(cutting, bound, 0)
            twice, same = cut_decoder(stepped, PLANS["heads"], 2)
        assert len(twice.emitted.schedule.steps) == 2 * layers + 1
        assert same == form  # what each part stores does not depend on it
    said = {"feedforward.0": ((0, 1), (1, 2), (2, 8))}
    stage = Stage(range(LAYERS), (0, 1, 2), Cut.HEADS, shares=(3, 0, 2), ranges=said)
    as_said, _ = cut_decoder(stepped, CutPlan((stage,)), 2)
    assert len(as_said.emitted.schedule.steps) == 2 * layers + 1


def test_parts_store_their_heads_and_nothing_without_one():
    stepped = stepped_file(EXPORTS / "gpt2_cached.onnx")
    _, form = cut_decoder(stepped, PLANS["heads"], 2)
    assert [len(own) for own in form.caches] == [2, 0, 2]
    heads = [own[0].heads if own else 0 for own in form.caches]
    whole = cut_decoder(stepped, PLANS["replicate"], 2)[1].caches[0][0].heads
    assert sum(heads) == whole


def test_no_segment_that_a_node_is_sent_has_our_operator(tmp_path):
    opened = open_model(EXPORTS / "llama_genai.onnx")
    form = write_decoder(opened, PLANS["heads"], tmp_path)
    for path in tmp_path.rglob("*.onnx"):
        assert all(node.op_type != ATTENTION for node in onnx.load(path).graph.node)
    assert loads_decoder((tmp_path / "decoder.json").read_text()) == form
    pieces = loads_pieces((tmp_path / "4/pieces.json").read_text())
    assert loads_pieces(dumps_pieces(pieces)) == pieces
    assert loads_decoder(dumps_decoder(form)) == form
    tables = loads_tables((tmp_path / "4/tables.json").read_text())
    assert loads_tables(dumps_tables(tables)) == tables


@pytest.mark.parametrize("name", ["gpt2_cached", "llama_genai"])
@pytest.mark.parametrize("word", PLANS)
def test_all_numbers_of_rows_have_the_same_graphs(name, word, tmp_path):
    """So that nodes pack each weight once, but for those of the graph that ends and begins a token."""
    write_decoder(open_model(EXPORTS / f"{name}.onnx"), PLANS[word], tmp_path)
    graphs = {path.parent.parent.name: set() for path in tmp_path.rglob("*.onnx")}
    for path in tmp_path.rglob("*.onnx"):
        graphs[path.parent.parent.name].add(path.stem)
    assert len(graphs) == 8
    ends = loads_ends((tmp_path / "1/ends.json").read_text()) if word.startswith("heads") else {}
    assert len(graphs["1"] & set(ends.values())) == len(ends)
    graphs["1"] -= set(ends.values())
    assert len({frozenset(of) for of in graphs.values()}) == 1


def test_which_graphs_are_joined_is_read_as_it_was_written():
    ends = {("a", "b"): "c", ("a", "d"): "e"}
    assert loads_ends(dumps_ends(ends)) == ends
    with pytest.raises(DataLoss, match="deploy the model again"):
        loads_ends('[["a", "b"]]')


def test_a_graph_of_several_parts_takes_what_each_of_them_is_sent(tmp_path):
    """Of three parts the first and the last are sent twice as many heads as the one between has of each."""
    path = tmp_path / "decoder.onnx"
    path.write_bytes(decoder_model())
    write_decoder(open_model(path), PLANS["heads of three"], tmp_path / "cut")
    looked = 0
    for rows in (1, 4):
        folder = tmp_path / "cut" / str(rows)
        schedule = CutFolder(path, folder).schedule()
        pieces = loads_pieces((folder / "pieces.json").read_text())
        for segment in (segment for step in schedule.steps for segment in step.segments):
            for piece in (one for one in pieces[segment.graph] if isinstance(one, GraphPiece)):
                for value in onnx.load(folder / f"graphs/{piece.graph}.onnx").graph.input:
                    source = segment.inputs.get(piece.inputs.get(value.name, value.name))
                    if isinstance(source, Delivery):
                        form = schedule.boundaries[source.boundary].spec
                        sent = extent_shape(form.shape, source.extent)
                        declared = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
                        assert all(size in (0, own) for size, own in zip(declared, sent, strict=True))
                        looked += 1
    assert looked > 20


def test_layers_alike_are_tried_once(monkeypatch):
    tried = []
    run = core_trial.CoreTrial.run
    monkeypatch.setattr(core_trial.CoreTrial, "run", lambda self, *a: tried.append(self) or run(self, *a))
    opened = open_model(EXPORTS / "gpt2_cached.onnx")
    stepped = as_steps(opened)
    assert sum(node.op_type == ATTENTION for node in stepped.model.model.graph.node) == 2
    assert len(set(map(id, tried))) == 1


def changed(name, change, tmp_path):
    model = onnx.load(EXPORTS / f"{name}.onnx")
    change(model)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return open_model(path)


def attribute(model, op, name, value):
    for node in model.graph.node:
        if node.op_type == op:
            kept = [a for a in node.attribute if a.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def test_what_has_no_past_is_refused():
    for name in ("bert", "gpt2", "t5_decoder"):
        with pytest.raises(FailedPrecondition, match="no inputs of keys and values"):
            stepped_file(EXPORTS / f"{name}.onnx")


@pytest.mark.parametrize("word", ["replicate", "heads", "tokens"])
@pytest.mark.parametrize("kind", ["capped", "smooth", "sunk", "sunk, capped, over a window"])
def test_caps_and_sinks_of_grouped_attention_are_the_files(kind, word, tmp_path):
    def change(model):
        if "capped" in kind:
            attribute(model, "GroupQueryAttention", "softcap", 1.5)
        if "window" in kind:
            attribute(model, "GroupQueryAttention", "local_window_size", 4)
        if "smooth" in kind:
            attribute(model, "GroupQueryAttention", "smooth_softmax", 1)
        if "sunk" in kind:
            constants(model, sinks=np.float32([0.5, -1, 2, 0.1]))
            for node in model.graph.node:
                if node.op_type == "GroupQueryAttention":
                    node.input.extend([""] * (12 - len(node.input)))
                    node.input[11] = "sinks"

    changed("llama_genai", change, tmp_path)
    logits_are_the_files(tmp_path / "model.onnx", PLANS[word])


def test_a_window_of_grouped_attention_is_kept(tmp_path):
    def narrow(model):
        attribute(model, "GroupQueryAttention", "local_window_size", 3)

    stepped = as_steps(changed("llama_genai", narrow, tmp_path))
    _, form = cut_decoder(stepped, PLANS["replicate"], 1)
    assert {cache.window for own in form.caches for cache in own} == {3}
    path = tmp_path / "model.onnx"
    decoder, whole, session = PaperDecoder(path, PLANS["tokens"]), WholeDecoder(path), PaperSession()
    for token in (3, 9, 27, 1, 4, 16, 5, 25):
        found, wanted = decoder.step([(session, token)])[0], whole.step(token)
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("window", [3, -1])
def test_a_cache_that_slides_is_a_window(window, tmp_path):
    """As onnxruntime-genai's builder writes Gemma 2: ONNX Runtime takes room for a window alone there."""

    def slide(model):
        attribute(model, "GroupQueryAttention", "sliding_window_cache", 1)
        attribute(model, "GroupQueryAttention", "local_window_size", window)

    opened = changed("llama_genai", slide, tmp_path)
    if window < 0:
        with pytest.raises(FailedPrecondition, match="slides without a window"):
            as_steps(opened)
        return
    decoder, session = PaperDecoder(opened, PLANS["heads"]), PaperSession()
    model = onnx.load(tmp_path / "model.onnx")
    attribute(model, "GroupQueryAttention", "sliding_window_cache", 0)
    onnx.save(model, tmp_path / "still.onnx")
    whole = WholeDecoder(tmp_path / "still.onnx")
    for token in (3, 9, 27, 1, 4, 16):
        found, wanted = decoder.step([(session, token)])[0], whole.step(token)
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def scores_of(model):
    """The Add of scores and mask, of every attention in plain operators."""
    softened = {node.input[0] for node in model.graph.node if node.op_type == "Softmax"}
    return [node for node in model.graph.node if node.output[0] in softened]


def added_to_scores(model, nodes):
    """Add to the scores of each attention what `nodes` make of how many keys there are, `keys!`."""
    for number, node in enumerate(scores_of(model)):
        name, new = node.input[1], f"masked{number}"
        made = [
            onnx.helper.make_node("Shape", [name], ["shape!"], start=-1),
            onnx.helper.make_node("Squeeze", ["shape!"], ["keys!"]),
            *nodes,
            onnx.helper.make_node("Add", [name, "more!"], [new]),
        ]
        node.input[1] = new
        at = list(model.graph.node).index(node)
        for offset, one in enumerate(made):
            copy = onnx.NodeProto()
            copy.CopyFrom(one)
            for names in (copy.input, copy.output):
                for place, own in enumerate(names):
                    names[place] = f"{own}{number}" if own.endswith("!") else own
            model.graph.node.insert(at + offset, copy)


def constants(model, **values):
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()
    )


def numbered(*more):
    """The number of each key as a float, `far!`, and what follows from it."""
    return [
        onnx.helper.make_node("Range", ["zero", "keys!", "one"], ["past!"]),
        onnx.helper.make_node("Cast", ["past!"], ["far!"], to=1),
        *more,
    ]


def logits_are_the_files(path, plan):
    decoder, whole, session = PaperDecoder(path, plan), WholeDecoder(path), PaperSession()
    for token in (3, 9, 27, 1, 4, 16, 5, 25, 2, 7, 11):
        found, wanted = decoder.step([(session, token)])[0], whole.step(token)
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    return decoder.form


def capped(model, cap):
    """Each attention's scores, before its mask, as cap tanh(score / cap)."""
    for number, node in enumerate(scores_of(model)):
        made = []
        for op, given in (("Div", ["cap"]), ("Tanh", []), ("Mul", ["cap"])):
            made.append(onnx.helper.make_node(op, [node.input[0], *given], [f"{op}capped{number}"]))
            node.input[0] = made[-1].output[0]
        at = list(model.graph.node).index(node)
        for offset, one in enumerate(made):
            model.graph.node.insert(at + offset, one)
    constants(model, cap=np.float32(cap))


def sunk(model, sinks):
    """Each attention has by head a score more, which weighs and has no value: as gpt-oss has it."""
    for number, node in enumerate([n for n in model.graph.node if n.op_type == "Softmax"]):
        (scores,), (out,) = node.input, node.output
        node.input[0], node.output[0] = f"joined{number}", f"weights{number}"
        before = [
            onnx.helper.make_node("Slice", [scores, "none", "first", "last"], [f"some{number}"]),
            onnx.helper.make_node("Mul", [f"some{number}", "nothing"], [f"zeros{number}"]),
            onnx.helper.make_node("Add", [f"zeros{number}", "sinks"], [f"sinks{number}"]),
            onnx.helper.make_node("Concat", [scores, f"sinks{number}"], [f"joined{number}"], axis=-1),
        ]
        after = onnx.helper.make_node("Slice", [f"weights{number}", "none", "last", "last"], [out])
        at = list(model.graph.node).index(node)
        model.graph.node.insert(at + 1, after)
        for offset, one in enumerate(before):
            model.graph.node.insert(at + offset, one)
    constants(model, none=[0], first=[1], last=[-1], nothing=np.float32(0))
    constants(model, sinks=np.float32(sinks).reshape(1, -1, 1, 1))


@pytest.mark.parametrize("word", ["replicate", "heads", "tokens"])
@pytest.mark.parametrize("kind", ["capped", "sunk", "sunk and capped"])
def test_caps_and_sinks_in_plain_operators_are_found_by_trying(kind, word, tmp_path):
    def change(model):
        heads = next(v for v in model.graph.input if "past" in v.name).type.tensor_type.shape.dim[1].dim_value
        if "sunk" in kind:
            sunk(model, np.linspace(-3, 4, heads))
        if "capped" in kind:
            capped(model, 0.8)

    stepped = as_steps(changed("gpt2_cached", change, tmp_path))
    caps = [a.f for n in stepped.model.model.graph.node for a in n.attribute if a.name == "cap"]
    assert caps == pytest.approx([0.8 if "capped" in kind else 0.0] * 2)
    logits_are_the_files(tmp_path / "model.onnx", PLANS[word])


@pytest.mark.parametrize("cap", [0.5, 5.0, 50.0, 1000.0])
def test_a_cap_is_told_however_far_it_is(cap, tmp_path):
    stepped = as_steps(changed("gpt2_cached", lambda model: capped(model, cap), tmp_path))
    found = [a.f for n in stepped.model.model.graph.node for a in n.attribute if a.name == "cap"]
    assert found == pytest.approx([cap] * 2, rel=1e-6)


@pytest.mark.parametrize("name", ["gpt2_cached", "llama_cached", "llama_genai"])
@pytest.mark.parametrize("word", PLANS)
def test_a_decoder_of_float16_is_served_and_said_to_be_rounded(name, word, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(convert_float_to_float16(onnx.load(EXPORTS / f"{name}.onnx")), path)
    decoder, whole = PaperDecoder(path, PLANS[word]), WholeDecoder(path)
    session, other = PaperSession(), PaperSession()
    for token in (3, 9, 27, 1, 4, 16, 5, 25):
        found, wanted = decoder.step([(session, token), (other, 2)])[0], whole.step(token)
        assert found.dtype == np.float32
        assert np.abs(found - wanted).max() <= 1e-2 * np.abs(wanted).max()
    lacking = cut_decoder(decoder.stepped, PLANS[word], 2)[0].emitted.schedule.lacking
    assert "computes in float16" in lacking
    assert "logits agree to about 1e-3" in lacking


@pytest.mark.parametrize("word", ["replicate", "heads", "tokens"])
def test_a_bias_that_falls_alike_with_each_token_is_found_by_trying(word, tmp_path):
    """Scores that fall with the token's number, as ALiBi's do with distance, by head: some so that far tokens
    weigh nothing."""

    def slope(model):
        added_to_scores(model, numbered(onnx.helper.make_node("Mul", ["far!", "slopes"], ["more!"])))
        heads = next(v for v in model.graph.input if "past" in v.name).type.tensor_type.shape.dim[1].dim_value
        slopes = 2.0 ** -np.linspace(0.5, 8, heads).reshape(1, heads, 1, 1)
        constants(model, zero=0, one=1, slopes=slopes.astype(np.float32))

    changed("gpt2_cached", slope, tmp_path)
    logits_are_the_files(tmp_path / "model.onnx", PLANS[word])


def test_a_bias_that_neither_ends_nor_falls_alike_is_refused(tmp_path):
    def bend(model):
        more = onnx.helper.make_node("Mul", ["far!", "far!"], ["square!"])
        added_to_scores(model, numbered(more, onnx.helper.make_node("Mul", ["square!", "a"], ["more!"])))
        constants(model, zero=0, one=1, a=np.float32(0.01))

    with pytest.raises(FailedPrecondition, match=r"not attention over all tokens|weigh nothing"):
        as_steps(changed("gpt2_cached", bend, tmp_path))


def test_a_mask_of_so_many_tokens_says_how_long_a_session_may_be(tmp_path):
    """As files have that keep a table of all positions by all: beyond it they do not run."""
    most = 23

    def table(model):
        keep = [
            onnx.helper.make_node("Unsqueeze", ["keys!", "first"], ["stop!"]),
            onnx.helper.make_node("Slice", ["table", "none", "stop!", "last"], ["more!"]),
        ]
        added_to_scores(model, keep)
        constants(model, first=[0], none=[0], last=[-1], table=np.zeros((1, 1, 1, most), np.float32))

    changed("gpt2_cached", table, tmp_path)
    assert as_steps(open_model(tmp_path / "model.onnx")).length == most
    logits_are_the_files(tmp_path / "model.onnx", PLANS["heads"])


def test_positions_that_begin_further_on_in_their_table_are_fewer(tmp_path):
    """As OPT and BART have them: the first token has the third row."""
    tables = {}

    def begin(model):
        rows = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 2}
        name = next(v.name for v in model.graph.input if "position" in v.name)
        node = next(n for n in model.graph.node if n.op_type == "Gather" and n.input[1] == name)
        tables["rows"] = rows[node.input[0]]
        at = list(model.graph.node).index(node)
        model.graph.node.insert(at, onnx.helper.make_node("Add", [name, "two!"], ["further!"]))
        node.input[1] = "further!"
        constants(model, **{"two!": 2})

    stepped = as_steps(changed("gpt2_cached", begin, tmp_path))
    assert stepped.length == tables["rows"] - 2


@pytest.mark.parametrize("empty", [None, (1, 6, 0, 4)])
def test_a_past_that_is_joined_with_nothing_first_is_found(empty, tmp_path):
    """As TorchScript writes the caches of today's `transformers`."""

    def join(model):
        for past in [v.name for v in model.graph.input if "past" in v.name]:
            for node in model.graph.node:
                for place, name in enumerate(node.input):
                    node.input[place] = f"{past}_begun" if name == past else name
            given = [past] if empty is None else ["nothing", past]
            made = onnx.helper.make_node("Concat", given, [f"{past}_begun"], axis=-2)
            model.graph.node.insert(0, made)
        constants(model, nothing=np.zeros(empty or (1,), np.float32))

    stepped = as_steps(changed("gpt2_cached", join, tmp_path))
    assert sum(node.op_type == ATTENTION for node in stepped.model.model.graph.node) == 2
    logits_are_the_files(tmp_path / "model.onnx", PLANS["heads"])


def test_a_table_of_experts_says_nothing_of_positions(tmp_path):
    def choose(model):
        node = next(n for n in model.graph.node if "logits" in n.output)
        node.output[list(node.output).index("logits")] = "plain"
        more = [
            onnx.helper.make_node("ArgMax", ["plain"], ["likeliest"], axis=-1, keepdims=0),
            onnx.helper.make_node("Mod", ["likeliest", "two"], ["expert"]),
            onnx.helper.make_node("Gather", ["experts", "expert"], ["chosen"]),
            onnx.helper.make_node("Add", ["plain", "chosen"], ["logits"]),
        ]
        model.graph.node.extend(more)
        constants(model, two=2, experts=np.float32([[0.5], [-0.25]]))

    plain = stepped_file(EXPORTS / "gpt2_cached.onnx").length
    assert as_steps(changed("gpt2_cached", choose, tmp_path)).length == plain
    logits_are_the_files(tmp_path / "model.onnx", PLANS["replicate"])


def test_activations_quantised_over_all_rows_go_one_by_one(tmp_path):
    """As `quantize_dynamic` writes them: what a row is told does not depend on another session's."""
    quantize_dynamic(EXPORTS / "gpt2_cached.onnx", tmp_path / "model.onnx", weight_type=QuantType.QInt8)
    path = tmp_path / "model.onnx"
    decoder, whole, session = PaperDecoder(path, PLANS["heads"]), WholeDecoder(path), PaperSession()
    for token in (3, 9, 27, 1, 4, 16, 5, 25):
        found, wanted = decoder.step([(session, token)])[0], whole.step(token)
        # A difference of 1e-7 before a product is a step of 255 behind it.
        assert np.abs(found - wanted).max() <= 0.03 * np.abs(wanted).max()
    form = write_decoder(open_model(path), PLANS["tokens"], tmp_path / "cut")
    assert form.rows == (1,)
    assert "go one by one" in CutFolder(path, tmp_path / "cut/1").schedule().lacking


def test_a_file_of_both_steps_is_served_by_the_one_with_a_past(tmp_path):
    """As `optimum` merges them, and transformers.js asks them: an If on `use_cache_branch`."""

    def merge(model):
        graph = model.graph
        ends = [onnx.ValueInfoProto(name=value.name) for value in graph.output]
        for one, value in zip(ends, graph.output, strict=True):
            one.type.tensor_type.elem_type = value.type.tensor_type.elem_type
        later = onnx.helper.make_graph(list(graph.node), "later", [], ends)
        nodes = []
        for value in ends:
            rank = len(next(v for v in graph.output if v.name == value.name).type.tensor_type.shape.dim)
            shape = onnx.helper.make_node("Constant", [], [f"{value.name}#shape"], value_ints=[1] * rank)
            nodes += [shape, onnx.helper.make_node("ConstantOfShape", [shape.output[0]], [value.name])]
        first = onnx.helper.make_graph(nodes, "first", [], ends)
        graph.input.append(onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1]))
        names = [value.name for value in graph.output]
        del graph.node[:], graph.value_info[:]
        graph.node.append(
            onnx.helper.make_node("If", ["use_cache_branch"], names, then_branch=later, else_branch=first)
        )

    opened = changed("gpt2_cached", merge, tmp_path)
    decoder, session = PaperDecoder(opened, PLANS["heads"]), PaperSession()
    whole = WholeDecoder(EXPORTS / "gpt2_cached.onnx")
    for token in (3, 9, 27, 1, 4):
        found, wanted = decoder.step([(session, token)])[0], whole.step(token)
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def over_rows(op, **attributes):
    """Change a model: take from its embeddings what `op` finds over all rows, or have that in their place."""

    def change(model):
        node = next(node for node in model.graph.node if node.op_type == "Gather")
        name = node.output[0]
        node.output[0] = "before!"
        at = list(model.graph.node).index(node)
        inputs, out = ["before!"], [f"{op}!"]
        if op == "CumSum":
            inputs.append("axis!")
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int64), "axis!"))
        elif op in ("ReduceMean", "ReduceMax"):
            inputs.append("axis!")
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "axis!"))
        model.graph.node.insert(at + 1, onnx.helper.make_node(op, inputs, out, **attributes))
        model.graph.node.insert(at + 2, onnx.helper.make_node("Add", ["before!", *out], [name]))

    return change


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("ReduceMean", {}), ("ReduceMax", {}), ("Softmax", {"axis": 0}), ("CumSum", {})],
)
def test_a_model_in_which_rows_meet_is_refused(op, attributes, tmp_path):
    """What one session is told would depend on the others of its trip."""
    opened = changed("gpt2_cached", over_rows(op, **attributes), tmp_path)
    with pytest.raises(FailedPrecondition, match=r"would depend on others: .*rows of the batch"):
        write_decoder(opened, PLANS["replicate"], tmp_path / "cut")


@pytest.mark.parametrize("name", ["gpt2_cached", "llama_cached", "llama_genai", "qwen3_cached"])
def test_a_model_whose_rows_do_not_meet_is_written(name, tmp_path):
    write_decoder(open_model(EXPORTS / f"{name}.onnx"), PLANS["replicate"], tmp_path)
    assert (tmp_path / "decoder.json").exists()


def test_positions_that_the_file_counts_itself_become_an_input(tmp_path):
    """Of the past's length, as many exports do, instead of an input of their own."""

    def count(model):
        graph = model.graph
        past = next(value.name for value in graph.input if "past" in value.name)
        made = [
            onnx.helper.make_node("Shape", [past], ["length!"], start=2, end=3),
            onnx.helper.make_node("Unsqueeze", ["length!", "axis!"], ["position_ids"]),
        ]
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "axis!"))
        for offset, one in enumerate(made):
            graph.node.insert(offset, one)
        kept = [value for value in graph.input if value.name != "position_ids"]
        del graph.input[:]
        graph.input.extend(kept)

    stepped = as_steps(changed("gpt2_cached", count, tmp_path))
    assert stepped.positions == "position_ids~"
    path = tmp_path / "model.onnx"
    decoder, whole, session = PaperDecoder(path, PLANS["heads"]), WholeDecoder(path), PaperSession()
    for token in (3, 9, 27, 1):
        found, wanted = decoder.step([(session, token)])[0], whole.step(token)
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_plans_without_one_past_a_part_are_refused():
    stepped = stepped_file(EXPORTS / "gpt2_cached.onnx")
    batch = CutPlan((Stage(range(LAYERS), (0, 1), Cut.BATCH),))
    halves = CutPlan((Stage(range(LAYERS), (0, 1), Cut.HEADS),), halves=True)
    both = CutPlan((Stage(range(2), (0,)), Stage(range(2, 5), (1, 2), Cut.TOKENS)))
    for plan, why in ((batch, "batch"), (halves, "halves"), (both, "stages")):
        with pytest.raises(FailedPrecondition, match=why):
            cut_decoder(stepped, plan, 1)


@pytest.mark.parametrize("name", ["gpt2_cached", "llama_cached"])
def test_all_parts_end_a_token_where_that_takes_few_weights_more(monkeypatch, name):
    stepped = stepped_file(EXPORTS / f"{name}.onnx")

    def ends(rows, **known):
        schedule = cut_decoder(stepped, PLANS["heads of three"], rows, **known)[0].emitted.schedule
        first, last = schedule.steps[0].segments, schedule.steps[-1].segments
        assert [bool(one.contributions) for one in last] == [True, *[False] * (len(last) - 1)]
        assert all(len(one.kept) == 1 for one in last[1:]), "they keep the logits"
        return [one.part for one in first], [one.part for one in last]

    first, last = ends(1)
    assert len(first) > 1
    assert last == first == ends(4, ends_alike=True)[1] == ends(4)[1]
    monkeypatch.setattr(cutting, "ENDS_BYTES", 0)
    assert ends(1)[1] == ends(4, ends_alike=False)[1] == first[:1]
