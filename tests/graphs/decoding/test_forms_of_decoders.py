"""A decoder of one layer in the forms that exporters have: its logits are the file's, or it says why not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from decoder_runs import PaperDecoder, PaperSession
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.decoding.rewriting import as_steps

HEADS, WIDTH, VOCABULARY = 4, 6, 20
SIZE = HEADS * WIDTH
LAYERS = range(1 << 20)
PLANS = {
    "replicate": CutPlan((Stage(LAYERS, (0,)),)),
    "heads": CutPlan((Stage(LAYERS, (0, 1), Cut.HEADS, shares=(3, 1)),)),
    "tokens": CutPlan((Stage(LAYERS, (0, 1, 2), Cut.TOKENS, shares=(3, 1, 2)),)),
}
LAYOUTS = {
    "heads first": (["b", HEADS, "p", WIDTH], [0, 2, 1, 3], 2, [0, 1, 3, 2]),
    "tokens first": (["b", "p", HEADS, WIDTH], [0, 1, 2, 3], 1, [0, 2, 3, 1]),
    "keys turned": (["b", HEADS, WIDTH, "p"], [0, 2, 3, 1], 3, [0, 1, 2, 3]),
}
"""Of keys: their dimensions, how new ones [b, t, heads, width] are turned so, where tokens are, and how they
are turned to be multiplied by."""


class Written:
    """A graph while it is written."""

    def __init__(self, opset: int) -> None:
        self.opset, self.nodes, self.inputs, self.outputs = opset, [], [], []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(3)

    def __call__(self, op: str, *given: object, out: str = "", count: int = 1, **attributes: object):
        names = [one if isinstance(one, str) else self.constant(one) for one in given]
        outs = [out or f"{op}{len(self.nodes)}_{n}" for n in range(count)]
        self.nodes.append(helper.make_node(op, names, outs, name=outs[0], **attributes))
        return outs[0] if count == 1 else outs

    def constant(self, value: object) -> str:
        name = f"c{len(self.constants)}"
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.normal(size=shape) / shape[0] ** 0.5 * 1.5)

    def input(self, name: str, dims: list, kind: int = TensorProto.INT64) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, dims))
        return name

    def output(self, value: str, name: str, dims: list) -> None:
        self("Identity", value, out=name)
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))

    def save(self, path: Path) -> Path:
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return path


def joined(g: Written, name: str, new: str, layout: str) -> str:
    """A past with what is new, which is also given: as attention multiplies by it, keys turned."""
    dims, turned, axis, back = LAYOUTS[layout]
    past = g.input(f"past_{name}", dims, TensorProto.FLOAT)
    by_head = g("Transpose", g("Reshape", new, [0, 0, HEADS, WIDTH]), perm=turned)
    both = g("Concat", past, by_head, axis=axis)
    g.output(both, f"present_{name}", dims)
    keys = g("Transpose", both, perm=back)  # [b, heads, width, tokens]
    return keys if name == "key" else g("Transpose", keys, perm=[0, 1, 3, 2])


PLACES = 16


def written(g: Written, name: str, new: str, how: str, place: str) -> str:
    """A past of a fixed number of places in which what is new is written, which is also given."""
    dims = ["b", HEADS, "places" if how == "any number" else PLACES, WIDTH]
    past = g.input(f"past_{name}", dims, TensorProto.FLOAT)
    row = g("Transpose", g("Reshape", new, [0, 0, HEADS, WIDTH]), perm=[0, 2, 1, 3])
    if how in ("ScatterND", "any number"):
        turned = [g("Transpose", one, perm=[2, 0, 1, 3]) for one in (past, row)]
        both = g("ScatterND", turned[0], g("Unsqueeze", place, [1]), turned[1])
        both = g("Transpose", both, perm=[1, 2, 0, 3])
    elif how == "ScatterElements":
        at = g("Expand", g("Reshape", place, [1, 1, 1, 1]), g("Shape", row))
        both = g("ScatterElements", past, at, row, axis=2)
    elif how == "slices":
        behind = g("Slice", past, g("Add", place, [1]), [PLACES], [2])
        both = g("Concat", g("Slice", past, [0], place, [2]), row, behind, axis=2)
    elif how == "a place of its own":
        here = g("Reshape", g("Equal", np.arange(PLACES), place), [1, 1, PLACES, 1])
        both = g("Where", here, row, past)
    else:  # the newest goes to the end, and the oldest goes
        both = g("Concat", g("Slice", past, [1], [PLACES], [2]), row, axis=2)
    g.output(both, f"present_{name}", dims)
    return both


def fused(g: Written, op: str, query: str, key: str, value: str) -> str:
    pasts = [
        g.input(f"past_{name}", LAYOUTS["heads first"][0], TensorProto.FLOAT) for name in ("key", "value")
    ]
    if op == "Attention":
        out, *presents = g(
            op, query, key, value, "", *pasts, count=3, q_num_heads=HEADS, kv_num_heads=HEADS, is_causal=1
        )
    else:
        out, *presents = g(
            op, query, key, value, "", "", "", *pasts, count=3, domain="com.microsoft", num_heads=HEADS
        )
    for name, present in zip(("key", "value"), presents, strict=True):
        g.output(present, f"present_{name}", ["b", HEADS, "q", WIDTH])
    return out


def decoder(
    path: Path,
    layout: str = "heads first",
    op: str = "",
    counted: str = "position_ids",
    late: bool = False,
    last: bool = False,
    opset: int = 17,
    how: str = "",
    masked: str = "",
) -> Path:
    """`how`: pasts of a fixed number of places are written; `masked`: by which mask it is told what counts.
    `counted`: how it is told where tokens are, looked up with a batch's axis or, `late`, without; `last`:
    it gives the last token's logits alone."""
    g = Written(opset)
    ids = g.input("input_ids", ["b", "t"])
    ranks = {"position_ids": ["b", "t"], "cache_position": ["t"]}
    places = g.input(counted, ranks.get(counted, []))
    for axis in range(2 - len(ranks.get(counted, [])) - late):
        places = g("Unsqueeze", places, [axis])
    there = g("Gather", g.weight(32, SIZE), places)
    there = g("Unsqueeze", there, [0]) if late else there
    x = g("Add", g("Gather", g.weight(VOCABULARY, SIZE), ids), there)
    query, key, value = (g("MatMul", x, g.weight(SIZE, SIZE)) for _ in range(3))
    if how:
        q, k, v = (
            g("Transpose", g("Reshape", query, [0, 0, HEADS, WIDTH]), perm=[0, 2, 1, 3]),
            *(written(g, name, new, how, counted) for name, new in (("key", key), ("value", value))),
        )
        scores = g("Mul", g("MatMul", q, g("Transpose", k, perm=[0, 1, 3, 2])), WIDTH**-0.5)
        if masked == "float":
            mask = g.input("attention_mask", ["b", 1, "t", "places"], TensorProto.FLOAT)
            scores = g("Add", scores, mask)
        elif masked == "bool":
            mask = g.input("attention_mask", ["b", 1, "t", "places"], TensorProto.BOOL)
            scores = g("Where", mask, scores, -1e9)
        elif masked == "whole numbers":
            mask = g.input("attention_mask", ["b", "places"])
            scores = g("Where", g("Unsqueeze", g("Equal", mask, 1), [1, 2]), scores, -1e9)
        elif not masked:
            scores = g("Where", g("LessOrEqual", np.arange(PLACES), counted), scores, -1e9)
        mixed = g("MatMul", g("Softmax", scores, axis=-1), v)
        mixed = g("Reshape", g("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, SIZE])
    elif op:
        mixed = fused(g, op, query, key, value)
    else:
        q = g("Transpose", g("Reshape", query, [0, 0, HEADS, WIDTH]), perm=[0, 2, 1, 3])
        k = joined(g, "key", key, layout)
        v = joined(g, "value", value, layout if layout == "tokens first" else "heads first")
        weights = g("Softmax", g("Mul", g("MatMul", q, k), WIDTH**-0.5), axis=-1)
        mixed = g("Reshape", g("Transpose", g("MatMul", weights, v), perm=[0, 2, 1, 3]), [0, 0, SIZE])
    x = g("Add", x, g("MatMul", mixed, g.weight(SIZE, SIZE)))
    x = g("LayerNormalization", x, np.ones(SIZE), axis=-1)
    logits = g("MatMul", x, g.weight(SIZE, VOCABULARY))
    if last:
        logits = g("Squeeze", g("Slice", logits, [-1], [1 << 40], [1]), [1])
    g.output(logits, "scores", ["b", VOCABULARY] if last else ["b", "t", VOCABULARY])
    return g.save(path)


def whole(path: Path, tokens: tuple[int, ...]) -> list[np.ndarray]:
    """The file's logits of each token after those before it."""
    session = onnxruntime.InferenceSession(str(path))
    pasts = {
        one.name: np.zeros([{"b": 1, "p": 0, "places": 20}.get(dim, dim) for dim in one.shape], np.float32)
        for one in session.get_inputs()
        if one.name.startswith("past_") and one.type == "tensor(float)"
    }
    places = next((past.shape[2] for past in pasts.values()), 0)
    found = []
    for number, token in enumerate(tokens):
        feeds = {"input_ids": np.array([[token]])} | pasts
        seen = np.arange(places) <= number
        masks = {
            "tensor(float)": np.where(seen, 0, np.float32(-1e9)).astype(np.float32)[None, None, None],
            "tensor(bool)": seen[None, None, None],
            "tensor(int64)": seen[None].astype(np.int64),
        }
        for one in session.get_inputs():
            if "mask" in one.name:
                feeds[one.name] = masks[one.type]
            elif one.name not in feeds:
                feeds[one.name] = np.full([1] * len(one.shape), number)
        names = [one.name for one in session.get_outputs()]
        made = dict(zip(names, session.run(None, feeds), strict=True))
        pasts = {name: made[name.replace("past", "present")] for name in pasts}
        found.append(made["scores"].reshape(-1))
    return found


FORMS = {
    "heads first": {},
    "tokens first": {"layout": "tokens first"},
    "keys turned": {"layout": "keys turned"},
    "MultiHeadAttention": {"op": "MultiHeadAttention"},
    "Attention of opset 23": {"op": "Attention", "opset": 23},
    "the last token's logits": {"last": True},
    "a row of positions": {"counted": "cache_position"},
    "how many there were": {"counted": "past_length"},
    "a norm before ONNX had it": {"opset": 13},
}


@pytest.mark.parametrize("word", PLANS)
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_the_files(form: str, word: str, tmp_path: Path) -> None:
    path = decoder(tmp_path / "m.onnx", **FORMS[form])
    tokens = (5, 3, 9, 1, 7, 19, 2, 2, 11)
    cut, session = PaperDecoder(path, PLANS[word]), PaperSession()
    for token, wanted in zip(tokens, whole(path, tokens), strict=True):
        found = cut.step([(session, token)])[0]
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert cut.stepped.length == 32


@pytest.mark.parametrize("word", PLANS)
@pytest.mark.parametrize("masked", ["", "bool", "float", "whole numbers"])
@pytest.mark.parametrize("how", ["ScatterND", "ScatterElements", "slices", "a place of its own"])
def test_a_past_of_so_many_places_is_one_of_as_many_tokens(
    how: str, masked: str, word: str, tmp_path: Path
) -> None:
    path = decoder(tmp_path / "m.onnx", counted="cache_position", how=how, masked=masked)
    tokens = (5, 3, 9, 1, 7, 19, 2, 2, 11)
    cut, session = PaperDecoder(path, PLANS[word]), PaperSession()
    for token, wanted in zip(tokens, whole(path, tokens), strict=True):
        found = cut.step([(session, token)])[0]
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert cut.stepped.length == PLACES


def test_what_says_where_a_row_is_written_may_be_a_long_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of more than a kilobyte stay in the file until they are read."""
    monkeypatch.setattr(sys.modules[__name__], "PLACES", 256)
    path = decoder(tmp_path / "m.onnx", counted="cache_position", how="a place of its own")
    cut, session = PaperDecoder(path, PLANS["replicate"]), PaperSession()
    for token, wanted in zip((5, 3, 9), whole(path, (5, 3, 9)), strict=True):
        found = cut.step([(session, token)])[0]
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_past_of_any_number_of_places_has_as_many_tokens_as_the_tables(tmp_path: Path) -> None:
    path = decoder(tmp_path / "m.onnx", counted="cache_position", how="any number", masked="bool")
    tokens = (5, 3, 9, 1)
    cut, session = PaperDecoder(path, PLANS["heads"]), PaperSession()
    for token, wanted in zip(tokens, whole(path, tokens), strict=True):
        found = cut.step([(session, token)])[0]
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert cut.stepped.length == 32


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"how": "the oldest goes"}, "one row is written, the token's"),
        ({"how": "ScatterND", "masked": "none"}, "is not attention over|does not weigh tokens"),
    ],
)
def test_a_past_that_is_written_otherwise_is_refused(changed: dict, said: str, tmp_path: Path) -> None:
    """One whose places without a token are seen, too."""
    with pytest.raises(FailedPrecondition, match=said):
        as_steps(open_model(decoder(tmp_path / "m.onnx", counted="cache_position", **changed)))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"counted": "cache_position", "late": True},
            "cache_position is needed .* with position_ids",
        ),
        ({"counted": "past_length", "late": True}, "past_length is needed .* with position_ids"),
        ({"counted": "language"}, "language is needed beside attention"),
    ],
)
def test_what_is_no_position_of_a_row_is_refused(changed: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=said):
        as_steps(open_model(decoder(tmp_path / "m.onnx", **changed)))


@pytest.mark.parametrize("dims", [["b", "p", 8], [2, "b", 2, "p", 4]])
def test_a_past_of_other_dimensions_is_refused_with_what_it_may_be(dims: list, tmp_path: Path) -> None:
    g = Written(17)
    x = g("Gather", g.weight(VOCABULARY, 8), g.input("input_ids", ["b", "t"]))
    past = g.input("past", dims, TensorProto.FLOAT)
    new = x if len(dims) == 3 else g("Expand", np.zeros((1, 1, 1, 1, 1)), [2, 1, 2, 1, 4])
    g.output(g("Concat", past, new, axis=1 if len(dims) == 3 else 3), "present", dims)
    g.output(x, "logits", ["b", "t", 8])
    with pytest.raises(FailedPrecondition, match=f"'past' has {len(dims)} dimensions"):
        as_steps(open_model(g.save(tmp_path / "m.onnx")))
