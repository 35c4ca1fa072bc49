"""Decoders in layouts that people download: what their tools add is taken, or refused with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from decoder_runs import PaperDecoder, PaperSession, WholeDecoder
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import FailedPrecondition, InvalidGraph
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.decoding.cutting import write_decoder
from edge_attention.graphs.decoding.rewriting import as_steps

LLAMA = Path(__file__).parents[1] / "axes/exports/llama_cached.onnx"
LAYERS = 1 << 20
PLANS = {
    "heads": CutPlan((Stage(range(LAYERS), (0, 1), Cut.HEADS),)),
    "layers": CutPlan((Stage(range(2), (0,)), Stage(range(2, 5), (1,)))),
}


def with_logits_to_keep(model: ModelProto, rank: int) -> None:
    """As onnx-community's files: of the last tokens alone, so many as an input says."""
    graph = model.graph
    node = next(node for node in graph.node if "logits" in node.output)
    graph.input.append(helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, [1] * rank))
    ints = {"one!": 1, "most!": 1 << 60, "flat!": -1}
    graph.initializer.extend(
        numpy_helper.from_array(np.array([n], np.int64), name) for name, n in ints.items()
    )
    nodes = [
        helper.make_node("Reshape", ["num_logits_to_keep", "flat!"], ["kept!"]),
        helper.make_node("Neg", ["kept!"], ["first!"]),
        helper.make_node("Slice", [node.input[0], "first!", "most!", "one!"], ["last!"]),
    ]
    node.input[0] = "last!"
    at = list(graph.node).index(node)
    for number, one in enumerate(nodes):
        graph.node.insert(at + number, one)


def with_packed_table(model: ModelProto) -> None:
    """Embeddings of 4 bits, two in a byte, by blocks of 16."""
    graph = model.graph
    node = next(node for node in graph.node if node.op_type == "Gather" and "embed" in node.input[0])
    table = next(one for one in graph.initializer if one.name == node.input[0])
    rows, width = numpy_helper.to_array(table).shape
    rng = np.random.default_rng(0)
    table.CopyFrom(
        numpy_helper.from_array(rng.integers(256, size=(rows, width // 2), dtype=np.uint8), table.name)
    )
    scales = rng.uniform(0.02, 0.2, size=(rows, width // 16)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(scales, "scales!"))
    node.CopyFrom(
        helper.make_node(
            "GatherBlockQuantized", [*node.input, "scales!"], node.output, domain="com.microsoft",
            gather_axis=0, quantize_axis=1, block_size=16, bits=4,
        )
    )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def with_bnb4_products(model: ModelProto) -> None:
    """The first product's weights as MatMulBnb4 has them: all in a row, with a scale for each block."""
    graph = model.graph
    node = next(node for node in graph.node if node.op_type == "MatMul" and node.input[1] == "val_71")
    weight = next(one for one in graph.initializer if one.name == "val_71")
    k, n = numpy_helper.to_array(weight).shape
    rng = np.random.default_rng(0)
    weight.CopyFrom(numpy_helper.from_array(rng.integers(256, size=k * n // 2, dtype=np.uint8), weight.name))
    scales = rng.uniform(0.05, 0.3, size=k * n // 16).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(scales, "scales!"))
    node.CopyFrom(
        helper.make_node(
            "MatMulBnb4", [*node.input, "scales!"], node.output, domain="com.microsoft",
            K=k, N=n, block_size=16, quant_type=1,
        )
    )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


CHANGES: dict[str, Callable[[ModelProto], None]] = {
    "logits of so many": lambda model: with_logits_to_keep(model, 0),
    "logits of so many in a row": lambda model: with_logits_to_keep(model, 1),
    "a packed table": with_packed_table,
}


def written(path: Path, change: Callable[[ModelProto], None]) -> Path:
    model = onnx.load(LLAMA)
    change(model)
    onnx.save(model, path)
    return path


def logits_alike(path: Path, plan: CutPlan, close: float = 1e-5) -> None:
    decoder, session, whole = PaperDecoder(path, plan), PaperSession(), WholeDecoder(path)
    for token in (3, 9, 27, 1, 4):
        found, wanted = decoder.step([(session, token)])[0], whole.step(token)
        assert np.abs(found - wanted).max() <= close * np.abs(wanted).max()


@pytest.mark.parametrize("word", PLANS)
@pytest.mark.parametrize("change", CHANGES)
def test_sessions_make_the_logits_of_the_file(change: str, word: str, tmp_path: Path) -> None:
    logits_alike(written(tmp_path / "m.onnx", CHANGES[change]), PLANS[word])


def test_weights_in_one_row_are_cut_by_layers_alone(tmp_path: Path) -> None:
    logits_alike(written(tmp_path / "m.onnx", with_bnb4_products), PLANS["layers"])


def test_pasts_that_are_cast_first_are_stored_as_they_are_computed_with(tmp_path: Path) -> None:
    """As `convert_float_to_float16(keep_io_types=True)` writes them, the casts behind all other nodes."""

    def halved(model: ModelProto) -> None:
        graph = model.graph
        pasts = [value for value in graph.input if value.name.startswith("past")]
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name in {value.name for value in pasts}:
                    node.input[position] = f"{name}!"
        for value in pasts:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            graph.node.append(
                helper.make_node("Cast", [value.name], [f"{value.name}!"], to=TensorProto.FLOAT)
            )
        for value in graph.output:
            if value.name != "logits":
                maker = next(node for node in graph.node if value.name in node.output)
                graph.node.append(
                    helper.make_node("Cast", [f"{value.name}?"], [value.name], to=TensorProto.FLOAT16)
                )
                for node in graph.node:
                    for position, name in enumerate(node.input):
                        if name == value.name:
                            node.input[position] = f"{name}?"
                maker.output[list(maker.output).index(value.name)] = f"{value.name}?"
                value.type.tensor_type.elem_type = TensorProto.FLOAT16

    logits_alike(written(tmp_path / "m.onnx", halved), PLANS["heads"], 2e-3)


def test_embeddings_in_place_of_tokens_are_refused_with_what_to_do(tmp_path: Path) -> None:
    def without_table(model: ModelProto) -> None:
        graph = model.graph
        node = next(node for node in graph.node if node.op_type == "Gather" and "embed" in node.input[0])
        width = next(one.dims[1] for one in graph.initializer if one.name == node.input[0])
        name = node.output[0]
        graph.node.remove(node)
        graph.input.remove(next(value for value in graph.input if value.name == "input_ids"))
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", width]))

    path = written(tmp_path / "m.onnx", without_table)
    with pytest.raises(FailedPrecondition, match=r"in place of token ids.* \(embed_tokens.onnx\) before it"):
        as_steps(open_model(path))


def test_weights_of_types_that_do_not_travel_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    def with_table_of_4_bits(model: ModelProto) -> None:
        with_packed_table(model)
        graph = model.graph
        node = next(node for node in graph.node if node.op_type == "GatherBlockQuantized")
        table = next(one for one in graph.initializer if one.name == node.input[0])
        table.data_type, table.dims[1] = TensorProto.UINT4, 2 * table.dims[1]
        model.opset_import[0].version = 21

    path = written(tmp_path / "m.onnx", with_table_of_4_bits)
    with pytest.raises(InvalidGraph, match=r"is uint4, which does not travel .*: replicate the model"):
        write_decoder(open_model(path), PLANS["layers"], tmp_path / "cut")
