"""Random small transformers as ONNX models, as exporters write them: what is to be cut is tried on these.

    recipe = recipe_of(seed)              # or given(recipes())
    model = transformer(recipe)           # an onnx.ModelProto
    session.run(None, feeds_of(recipe, 0))

A recipe says each choice in a word, so that what fails is read off its repr, and hypothesis makes it simpler:
the first of each option is the plainest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.graphs.axes.transformer_layers import MASKED, attended, block, normalised
from tests.graphs.axes.transformer_writer import FLOAT, INT64, ModelWriter

__all__ = ["TransformerRecipe", "feeds_of", "recipe_of", "recipes", "sizes_of", "transformer"]

Feeds = dict[str, NDArray[Any]]
VOCABULARY = 11
LONGEST = 16
"""Tokens that tables of positions have rows for."""


@dataclass(frozen=True)
class TransformerRecipe:
    """What a transformer is made of. Sizes, then how each thing is written."""

    seed: int = 0
    opset: int = 17
    batch: int = 1
    tokens: int = 5
    memory: int = 0
    """Tokens of an encoder that the decoder attends to; 0: there is none."""
    layers: int = 1
    key_heads: int = 2
    group: int = 1
    """Query heads a key head."""
    dim: int = 4
    value_dim: int = 4
    hidden: int = 0
    """0: heads times dim."""
    wide: int = 6
    """Of the feed-forward layers."""
    dynamic: bool = False
    """Batch and tokens have names, not sizes."""
    arithmetic: bool = False
    """Shapes are computed from Shape of tensors; else constants with 0 and -1."""
    source: str = "ids"
    positions: str = "none"
    mask: str = "none"
    qkv: str = "separate"
    linear: str = "matmul"
    bias: bool = False
    keys: str = "perm"
    """How keys are transposed: in one, or in two."""
    grouping: str = "expand"
    scale: str = "mul"
    softmax: str = "node"
    head_norm: bool = False
    """Queries and keys are normalised head by head."""
    norm: str = "node"
    placement: str = "pre"
    activation: str = "relu"
    gated: bool = False
    shared: bool = False
    """Layers have the same weights."""
    merged: bool = False
    """Initializers of equal value are one; norms are of ones and zeros, so that there are such."""
    result: str = "hidden"
    quantised: bool = False

    @property
    def heads(self) -> int:
        return self.key_heads * self.group

    @property
    def width(self) -> int:
        return self.hidden or self.heads * self.dim

    def __repr__(self) -> str:
        """Only what is not as it is of itself."""
        plain = TransformerRecipe()
        said = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return f"TransformerRecipe({', '.join(f'{n}={v!r}' for n, v in said if v != getattr(plain, n))})"


OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "opset": (17, 14, 20, 23),
    "batch": (1, 2, 3, 4),
    "tokens": (5, 3, 4, 6, 7, 8, 2),
    "memory": (0, 0, 0, 6, 4),
    "layers": (1, 2, 3),
    "key_heads": (2, 1, 3, 4, 5),
    "group": (1, 1, 2, 3),
    "dim": (4, 2, 6, 8),
    "value_dim": (4, 3, 8),
    "hidden": (0, 0, 6, 10),
    "wide": (6, 4, 7, 12, 16),
    "alike": (False, False, False, True),
    "dynamic": (False, True),
    "arithmetic": (False, True),
    "source": ("ids", "ids", "embedded", "image"),
    "positions": (
        "none",
        "learned",
        "sliced",
        "counted",
        "given",
        "rotary",
        "rotary table",
        "buckets",
        "content",
    ),
    "mask": ("none", "row", "square", "where", "trilu", "less", "buffer", "less and where", "given"),
    "qkv": ("separate", "split", "slice", "gather", "inner"),
    "linear": ("matmul", "gemm", "transposed"),
    "bias": (False, True),
    "keys": ("perm", "two"),
    "grouping": ("expand", "broadcast", "tile"),
    "scale": ("mul", "div", "roots"),
    "softmax": ("node", "guarded", "parts", "attention"),
    "head_norm": (False, False, True),
    "norm": ("node", "parts", "rms"),
    "placement": ("pre", "post"),
    "activation": ("relu", "erf", "tanh", "silu", "gelu"),
    "gated": (False, True),
    "shared": (False, False, True),
    "merged": (False, False, True),
    "result": ("hidden", "pooled", "mean", "first", "logits", "both"),
    "quantised": (False, False, False, True),
}


def settled(choices: Mapping[str, Any], seed: int) -> TransformerRecipe:
    """The recipe of these choices, without what goes not together."""
    chosen = dict(choices)
    if chosen.pop("alike"):  # batch = tokens = heads = dim = wide, and hidden their square
        chosen |= {"batch": 4, "tokens": 4, "key_heads": 4 // min(chosen["group"], 2), "dim": 4, "wide": 4}
        chosen |= {"group": min(chosen["group"], 2), "value_dim": 4, "hidden": 0}
    recipe = TransformerRecipe(seed=seed, **chosen)
    if recipe.memory:  # an encoder and a decoder, of ids both
        recipe = replace(recipe, source="ids", mask="row" if recipe.mask != "none" else "none")
        kept = recipe.positions in ("none", "learned", "buckets")
        recipe = replace(recipe, positions=recipe.positions if kept else "none", tokens=max(recipe.tokens, 3))
    if recipe.source != "ids":
        plain = recipe.mask in ("none", "trilu", "less", "buffer", "given")
        recipe = replace(recipe, mask=recipe.mask if plain else "none")
        result = recipe.result if recipe.result in ("hidden", "mean", "first") else "mean"
        counted = recipe.positions in ("counted", "given")
        recipe = replace(recipe, result=result, positions="sliced" if counted else recipe.positions)
    if recipe.source == "image":  # 2 rows of patches, so that it has as many tokens as columns twice
        recipe = replace(recipe, tokens=recipe.tokens // 2 * 2, dynamic=False)
    if recipe.positions == "content":
        recipe = replace(recipe, grouping="expand")
    if recipe.qkv in ("gather", "inner"):
        recipe = replace(recipe, group=1, value_dim=recipe.dim)
    if recipe.opset < 17 and recipe.norm == "node":
        recipe = replace(recipe, norm="parts")
    if recipe.opset < 20 and recipe.activation == "gelu":
        recipe = replace(recipe, activation="erf")
    if recipe.softmax == "attention" and (recipe.opset < 23 or recipe.positions == "content"):
        recipe = replace(recipe, softmax="node")
    if recipe.memory and recipe.result == "pooled":
        recipe = replace(recipe, result="mean")
    if recipe.result in ("pooled", "both") and recipe.mask not in (
        "row",
        "square",
        "where",
        "less and where",
    ):
        recipe = replace(recipe, mask="none", result="mean" if recipe.result == "pooled" else "both")
    return recipe


def recipes(**fixed: Any) -> st.SearchStrategy[TransformerRecipe]:
    """Recipes; what is said is so, where it goes together with the rest: `recipes(layers=2, mask="row")`."""
    options = {name: st.sampled_from((fixed[name],) if name in fixed else of) for name, of in OPTIONS.items()}
    return st.builds(settled, st.fixed_dictionaries(options), st.integers(0, 99))


def recipe_of(seed: int, **fixed: Any) -> TransformerRecipe:
    """The recipe of a seed, the same everywhere."""
    rng = np.random.default_rng(seed)
    drawn = {name: of[int(rng.integers(len(of)))] for name, of in OPTIONS.items()}
    return settled(drawn | fixed, seed)


def transformer(recipe: TransformerRecipe) -> onnx.ModelProto:
    """The model, checked by onnx."""
    w = ModelWriter(recipe.opset, recipe.seed, recipe.merged)
    batch: str | int = "batch" if recipe.dynamic else recipe.batch
    tokens: str | int = "tokens" if recipe.dynamic else recipe.tokens
    memory = None
    if recipe.memory:
        length: str | int = "memory" if recipe.dynamic else recipe.memory
        encoder = replace(recipe, memory=0, tokens=recipe.memory)
        x = _embedded(w, encoder, "memory_ids", batch, length)
        mask = _padding(w, encoder, "memory_mask", batch, length)
        bias = _buckets(w, encoder, x, "encoder.buckets") if recipe.positions == "buckets" else None
        memory = (_stack(w, encoder, x, "encoder", mask, bias, None), mask)
        recipe = replace(recipe, mask="less")
    x = _embedded(w, recipe, "ids", batch, tokens)
    bias = _buckets(w, recipe, x, "buckets") if recipe.positions == "buckets" else None
    mask = _padding(w, recipe, "mask", batch, tokens)
    hidden = _stack(w, recipe, x, "decoder", mask, bias, memory)
    _results(w, recipe, hidden, batch, tokens)
    made = w.model()
    return _quantised(made) if recipe.quantised else made


def feeds_of(
    recipe: TransformerRecipe, seed: int, batch: int | None = None, tokens: int | None = None
) -> Feeds:
    """Inputs of the model; of another batch or more tokens where it is dynamic. No row is all padding."""
    rng = np.random.default_rng(seed)
    batch, tokens = batch or recipe.batch, tokens or recipe.tokens

    def ids(length: int) -> NDArray[Any]:
        return rng.integers(1, VOCABULARY, (batch, length))

    def visible(length: int) -> NDArray[Any]:
        lengths = rng.integers(1, length + 1, (batch, 1))
        return (np.arange(length) < lengths).astype(np.int64)

    feeds: Feeds = {}
    if recipe.memory:
        feeds["memory_ids"] = ids(recipe.memory)
        if recipe.mask == "row":
            feeds["memory_mask"] = visible(recipe.memory)
    if recipe.source == "ids":
        feeds["ids"] = ids(tokens)
    elif recipe.source == "embedded":
        feeds["x"] = rng.standard_normal((batch, tokens, recipe.width)).astype(np.float32)
    else:
        feeds["image"] = rng.standard_normal((batch, 3, 4, tokens)).astype(np.float32)
    if not recipe.memory and recipe.mask in ("row", "square", "where", "less and where"):
        feeds["mask"] = visible(tokens)
    if recipe.mask == "given":
        feeds["scores_mask"] = np.where(rng.random((batch, 1, tokens, tokens)) < 0.3, MASKED, 0).astype(
            np.float32
        )
        feeds["scores_mask"][..., 0] = 0
    if recipe.positions == "given":
        feeds["position_ids"] = np.tile(np.arange(tokens), (batch, 1))
    return feeds


def sizes_of(recipe: TransformerRecipe) -> dict[str, int]:
    """What the names in the shapes of its inputs stand for."""
    if not recipe.dynamic:
        return {}
    sizes = {"batch": recipe.batch, "tokens": recipe.tokens}
    return sizes | ({"memory": recipe.memory} if recipe.memory else {})


def _embedded(
    w: ModelWriter, recipe: TransformerRecipe, name: str, batch: str | int, tokens: str | int
) -> str:
    """Activations [batch, tokens, width] of the input, with positions added where they are."""
    width = recipe.width
    if recipe.source == "ids":
        ids = w.input(name, INT64, [batch, tokens])
        x = w("Gather", w.weight("embeddings", VOCABULARY, width, spread=1.0), ids)
    elif recipe.source == "embedded":
        ids = x = w.input("x", FLOAT, [batch, tokens, width])
    else:
        ids = image = w.input("image", FLOAT, [recipe.batch, 3, 4, recipe.tokens])
        patches = w("Conv", image, w.weight("patches", width, 3, 2, 2), w.weight("patches.bias", width),
                    kernel_shape=[2, 2], strides=[2, 2])  # fmt: skip
        x = w("Transpose", w.reshape(patches, 0, width, -1), perm=[0, 2, 1])
    if recipe.positions in ("learned", "sliced", "counted", "given"):
        table = w.weight("positions", LONGEST + 2, width)
        if recipe.positions == "given":
            rows = w("Gather", table, w.input("position_ids", INT64, [batch, tokens]))
        elif recipe.positions == "sliced":
            every = w.const(np.arange(LONGEST)[None])
            rows = w("Gather", table, w.sliced(every, 1, "0", w.size(x, 1)))
        elif recipe.positions == "learned":
            rows = w("Gather", table, w.range(w.size(x, 1)))
        else:  # as RoBERTa counts: those that are not 0
            real = w.cast(w("Not", w("Equal", ids, w.const(np.int64(0)))), INT64)
            counted = w("Mul", w("CumSum", real, w.const(np.int64(1))), real)
            rows = w("Gather", table, w("Add", counted, w.const(np.int64(1))))
        x = w("Add", x, rows)
    return normalised(w, recipe, x, f"{name}.norm") if recipe.placement == "post" else x


def _padding(
    w: ModelWriter, recipe: TransformerRecipe, name: str, batch: str | int, tokens: str | int
) -> str | None:
    """The input that says which tokens are there, or what is added to scores, if the recipe has one."""
    if recipe.mask in ("row", "square", "where", "less and where"):
        return w.input(name, INT64, [batch, tokens])
    return w.input("scores_mask", FLOAT, [batch, 1, tokens, tokens]) if recipe.mask == "given" else None


def _buckets(w: ModelWriter, recipe: TransformerRecipe, x: str, name: str) -> str:
    """T5's bias by distance, [1, heads, tokens, tokens]; its own table for encoder and decoder."""
    row = w.range(w.size(x, 1))
    apart = w("Sub", w("Unsqueeze", row, w.ints(0)), w("Unsqueeze", row, w.ints(1)))
    near = w("Min", w("Max", apart, w.const(np.int64(-3))), w.const(np.int64(3)))
    picked = w("Gather", w.weight(name, 7, recipe.heads, spread=1.0), w("Add", near, w.const(np.int64(3))))
    return w("Unsqueeze", w("Transpose", picked, perm=[2, 0, 1]), w.ints(0))


def _stack(
    w: ModelWriter,
    recipe: TransformerRecipe,
    x: str,
    name: str,
    mask: str | None,
    bias: str | None,
    memory: tuple[str, str | None] | None,
) -> str:
    for layer in range(recipe.layers):
        at = f"{name}.{0 if recipe.shared else layer}"
        x = block(w, recipe, x, f"{at}.attention", lambda y, at=at: attended(w, recipe, y, y, at, mask, bias))
        if memory is not None:
            cross = replace(recipe, mask="row" if memory[1] else "none", positions="none", qkv="separate")
            x = block(
                w, recipe, x, f"{at}.cross",
                lambda y, at=at, c=cross: attended(w, c, y, memory[0], f"{at}.cross", memory[1], None),
            )  # fmt: skip
        x = block(w, recipe, x, f"{at}.forward", lambda y, at=at: _forward(w, recipe, y, at))
    return normalised(w, recipe, x, f"{name}.norm") if recipe.placement == "pre" else x


def _forward(w: ModelWriter, recipe: TransformerRecipe, x: str, name: str) -> str:
    up = w.linear(recipe.linear, x, f"{name}.up", recipe.width, recipe.wide, recipe.bias)
    y = w.activated(recipe.activation, up)
    if recipe.gated:
        y = w("Mul", y, w.linear(recipe.linear, x, f"{name}.gate", recipe.width, recipe.wide, recipe.bias))
    return w.linear(recipe.linear, y, f"{name}.down", recipe.wide, recipe.width, recipe.bias)


def _results(w: ModelWriter, recipe: TransformerRecipe, x: str, batch: str | int, tokens: str | int) -> None:
    width = recipe.width
    if recipe.result in ("hidden", "both"):
        w.output("hidden", x, FLOAT, [batch, tokens, width])
    if recipe.result in ("pooled", "both") and "mask" in w.inputs:
        shown = w.cast(w("Unsqueeze", "mask", w.ints(-1)), FLOAT)
        total = w.reduced("ReduceSum", w("Mul", x, w("Expand", shown, w("Shape", x))), 1, keep=False)
        seen = w("Clip", w.reduced("ReduceSum", shown, 1, keep=False), w.const(np.float32(1e-9)))
        w.output("pooled", w("Div", total, seen), FLOAT, [batch, width])
    elif recipe.result in ("mean", "both"):
        mean = w.reduced("ReduceMean", x, 1, keep=False)
        w.output("pooled", w.linear("matmul", mean, "head", width, 3, True), FLOAT, [batch, 3])
    elif recipe.result == "first":
        first = w("Gather", x, w.const(np.int64(0)), axis=1)
        pooled = w("Tanh", w("Gemm", first, w.weight("pooler", width, width), w.weight("pooler.bias", width)))
        w.output("pooled", pooled, FLOAT, [batch, width])
    elif recipe.result == "logits":  # by the table of embeddings, as many models do
        table = w.weight("embeddings", VOCABULARY, width, spread=1.0)
        logits = w("MatMul", x, w("Transpose", table, perm=[1, 0]))
        w.output("logits", logits, FLOAT, [batch, tokens, VOCABULARY])


def _quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """By ONNX Runtime: products by a weight in int8, activations quantised by their range."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # slow to import

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, before)
        quantize_dynamic(
            before,
            after,
            op_types_to_quantize=["MatMul", "Gather", "Conv"],  # of ONNX's Attention it makes no valid node
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": FLOAT},
        )
        return onnx.load(after)
