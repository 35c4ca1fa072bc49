"""What models cost by layers, read off real exports: DESIGN section 12's bytes, each weight once."""

from __future__ import annotations

from math import prod
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, numpy_helper

from edge_attention.core.placement.cuts.costs import ModelCosts
from edge_attention.core.schedule.plan import Cut
from edge_attention.graphs.axes.axes import axes_of
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.costs import model_costs

EXPORTS = Path(__file__).parent / "exports"
BATCH, LENGTH = 2, 16


def costs(name: str, length: int = LENGTH) -> tuple[ModelProto, ModelCosts]:
    model = onnx.load(EXPORTS / f"{name}.onnx")
    open_dims = {
        dim.dim_param
        for value in model.graph.input
        for dim in value.type.tensor_type.shape.dim
        if dim.dim_param
    }
    sizes = {name: BATCH if name == "batch" else length for name in open_dims}
    return model, model_costs(axes_of(bind(model, sizes)))


@pytest.mark.parametrize("name", ["bert", "bert_torchscript17", "distilbert", "gpt2", "roberta"])
def test_an_encoder_crosses_and_sums_what_the_design_says(name: str) -> None:
    _, model = costs(name)
    attention = [one for layer in model.layers for one in layer.attentions if one.queries]
    m = attention[0].queries
    assert m in {layer.out for layer in model.layers}
    width = m // (BATCH * LENGTH * 4)
    for one in attention:
        assert (one.keys_values, one.queries, one.out) == (2 * m, m, m)
        assert one.lse * width == m * model.units[Cut.HEADS]
    sums = [size for layer in model.layers for size in layer.sums]
    assert sums == [m] * (2 * len(attention)) or name == "distilbert"  # its head sums, too
    assert model.units[Cut.BATCH] == BATCH
    assert model.units[Cut.TOKENS] == LENGTH
    assert model.rows == BATCH * LENGTH


def test_keys_that_heads_share_are_sent_once() -> None:
    _, model = costs("llama")
    one = next(one for layer in model.layers for one in layer.attentions)
    assert one.keys_values < 2 * one.queries


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5_encoder", "qwen3", "vit"])
def test_each_weight_counts_once_however_many_layers_read_it(name: str) -> None:
    file, model = costs(name)
    used = {i for node in file.graph.node for i in node.input}
    large = [i for i in file.graph.initializer if i.name in used and prod(i.dims) > 8]
    held = sum(numpy_helper.to_array(i).nbytes for i in large)
    assert model.weights == pytest.approx(held, rel=0.03)
    last = range(len(model.layers) - 1, len(model.layers))
    # Whoever has the last layer alone holds what an earlier one shares with it.
    assert model.held(last, Cut.NONE, 1.0) == model.layers[-1].weights


def test_what_parts_do_whole_is_told_from_what_they_share() -> None:
    _, model = costs("bert")
    for layer in model.layers:
        tokens, heads = layer.shared[Cut.TOKENS], layer.shared[Cut.HEADS]
        assert tokens.work.flops == 0
        assert tokens.weights == layer.weights
        assert heads.work.flops == 0
        # A quarter of a layer by heads: a quarter of what is shared, and all of what is not.
        assert heads.weights < layer.part_weights(Cut.HEADS, 0.25) < layer.weights
        assert layer.part_work(Cut.HEADS, 0.25).flops == pytest.approx(layer.work.flops / 4)
    assert sum(layer.shared[Cut.HEADS].work.moved for layer in model.layers) < 0.5 * sum(
        layer.work.moved for layer in model.layers
    )


def test_products_grow_with_the_length_and_attention_with_its_square() -> None:
    flops = {
        length: sum(layer.work.flops for layer in costs("bert", length)[1].layers) for length in (8, 16, 32)
    }
    assert 2 < flops[16] / flops[8] < flops[32] / flops[16] < 4
