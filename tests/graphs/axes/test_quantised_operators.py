"""Files in ONNX Runtime's format of quantised operators: cut by every plan, with the bits of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.cut import analyse, sizes_of
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel, open_model
from edge_attention.graphs.axes.narrow import narrow_places
from tests.graphs.axes.export_feeds import LENGTHS, feeds_for
from tests.graphs.axes.model_plans import PLANS, plan_of, try_plan, whole_answer
from tests.graphs.axes.test_lower import check, one_node

BATCH, TOKENS, WIDTH, HEADS = 2, 6, 16, 4
RNG = np.random.default_rng(0)


def encoder() -> onnx.ModelProto:
    """x [2, 6, 16] through patches, two layers of attention with a feed-forward layer each, and a pool."""
    nodes: list[onnx.NodeProto] = []
    known: dict[str, Array] = {
        "apart": np.array([0, 0, HEADS, WIDTH // HEADS]),
        "joined": np.array([0, 0, WIDTH]),
        "scale": np.array(0.5, np.float32),
        "last": np.array([-1]),
    }

    def add(kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}.node", **attributes))
        return name

    def weight(*shape: int) -> str:
        name = f"w{len(known)}"
        known[name] = (RNG.standard_normal(shape) / 3).astype(np.float32)
        return name

    def linear(of: str, width: int, out: int) -> str:
        return add("Add", add("MatMul", of, weight(width, out)), weight(out))

    patches = add("Transpose", "x", perm=[0, 2, 1])
    patches = add("Conv", patches, weight(WIDTH, WIDTH, 1), weight(WIDTH), kernel_shape=[1])
    x = add("Transpose", patches, perm=[0, 2, 1])
    for _ in range(2):
        q, k, v = (
            add("Transpose", add("Reshape", linear(x, WIDTH, WIDTH), "apart"), perm=order)
            for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        p = add("Softmax", add("Mul", add("MatMul", q, k), "scale"), axis=-1)
        m = add("Reshape", add("Transpose", add("MatMul", p, v), perm=[0, 2, 1, 3]), "joined")
        x = add("Add", x, linear(m, WIDTH, WIDTH))
        f = linear(x, WIDTH, 24)
        x = add("Add", x, linear(add("Mul", f, add("Sigmoid", f)), 24, WIDTH))
    mean = add("ReduceMean", x, axes=[1], keepdims=0)
    pooled = add("Gemm", mean, weight(5, WIDTH), weight(5), transB=1)
    add("Identity", x)
    nodes[-1].output[0] = "y"
    add("Identity", pooled)
    nodes[-1].output[0] = "z"
    value, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "encoder",
        [value("x", kind, ["batch", "tokens", WIDTH])],
        [value("y", kind, ["batch", "tokens", WIDTH]), value("z", kind, ["batch", 5])],
        [numpy_helper.from_array(array, name) for name, array in known.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = [{"x": RNG.standard_normal((BATCH, TOKENS, WIDTH)).astype(np.float32)} for _ in range(3)]

    def get_next(self) -> dict[str, Array] | None:
        return self._left.pop() if self._left else None


@pytest.fixture(scope="module", params=["uint8", "int8 by channel"])
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    folder = tmp_path_factory.mktemp("quantised")
    onnx.save(encoder(), folder / "float.onnx")
    signed = request.param != "uint8"
    quantize_static(
        folder / "float.onnx",
        folder / "model.onnx",
        Calibration(),
        quant_format=QuantFormat.QOperator,
        per_channel=signed,
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return open_model(folder / "model.onnx")


def axes_of(model: OpenModel) -> Axes:
    return analyse(model, {"batch": BATCH, "tokens": TOKENS})


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("plan", PLANS)
def test_parts_have_the_bits_of_the_whole(quantised: OpenModel, plan: str, parts: int) -> None:
    feeds = {"x": RNG.standard_normal((BATCH, TOKENS, WIDTH)).astype(np.float32)}
    axes = axes_of(quantised)
    kinds = {node.op_type for node in quantised.model.graph.node}
    assert {"QLinearMatMul", "QLinearConv", "QLinearAdd", "QLinearMul"} <= kinds
    found = try_plan(quantised, axes, plan_of(plan, axes, parts), feeds, whole_answer(quantised.path, feeds))
    assert (found.error, found.why) == (0, "")
    if plan != "replicate":
        assert found.share < 0.9


def test_its_layers_are_between_its_numbers_of_8_bits(quantised: OpenModel) -> None:
    assert len(narrow_places(axes_of(quantised))) >= 3


EXPORTS = Path(__file__).with_name("exports")


def fused_and_quantised(name: str, folder: Path) -> tuple[OpenModel, Axes, dict[str, Array]]:
    """A file that ONNX Runtime's optimizer fused, or a builder wrote so, quantised by `quantize_dynamic`."""
    path = folder / "model.onnx"
    quantize_dynamic(
        EXPORTS / f"{name}.onnx",
        path,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    model = open_model(path)
    feeds = feeds_for(model.model.graph, LENGTHS[0])
    forms = {name: TensorForm(str(value.dtype), value.shape) for name, value in feeds.items()}
    return model, analyse(model, sizes_of(model, forms)), feeds


@pytest.mark.parametrize("plan", PLANS)
def test_fused_operators_of_a_quantised_file_keep_their_bits(plan: str, tmp_path: Path) -> None:
    """Attention is taken apart, which changes no bit; norms of sums and embeddings would, and stay."""
    model, axes, feeds = fused_and_quantised("bert_fused", tmp_path)
    kinds = {node.op_type for node in model.model.graph.node}
    assert {"QAttention", "QEmbedLayerNormalization", "SkipLayerNormalization"} <= kinds
    found = try_plan(model, axes, plan_of(plan, axes, 2), feeds, whole_answer(model.path, feeds))
    assert (found.error, found.why) == (0, "")


def test_grouped_attention_of_a_quantised_file_is_exact_as_it_is_alone(tmp_path: Path) -> None:
    model, axes, feeds = fused_and_quantised("llama_genai", tmp_path)
    wanted = whole_answer(model.path, feeds)
    for plan in PLANS:
        found = try_plan(model, axes, plan_of(plan, axes, 2), feeds, wanted)
        if plan in ("replicate", "layers"):
            assert (found.error, found.why) == (0, "")
        else:
            assert "GroupQueryAttention" in found.why
            assert "layers and replicate answer to the bit" in found.why


def test_a_fused_operator_that_is_not_as_it_should_be_stays() -> None:
    """As ONNX Runtime's quantizer makes one of ONNX's own Attention: nobody runs it."""
    inputs = [levels(1, 2, 3, 4), levels(8, 24), np.zeros(24, np.float32), scalar(0.1), scalar(0.1)]
    model, _ = one_node("QAttention", list(inputs), num_heads=2, opset=17)
    assert [node.op_type for node in bind(model, {}).nodes] == ["QAttention"]


def levels(*shape: int, dtype: type = np.uint8) -> Array:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return RNG.integers(low // 2, high // 2, shape).astype(dtype)


def scalar(value: float, dtype: type = np.float32) -> Array:
    return np.array(value, dtype)


@pytest.mark.parametrize("made", [np.uint8, np.int8])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("shapes", [((3, 64), (64, 7)), ((2, 3, 5, 8), (2, 3, 8, 7))])
def test_a_quantised_product_is_a_product_and_what_rounds_it(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], columns: bool, made: type
) -> None:
    if columns and len(shapes[1]) > 2:
        pytest.skip("ONNX Runtime takes scales by column of a matrix alone")
    steps = np.linspace(0.003, 0.03, 7, dtype=np.float32) if columns else scalar(0.013)
    zeros = np.zeros(7, np.int8) if columns else scalar(3, np.int8)
    inputs = [
        levels(*shapes[0], dtype=made),
        scalar(0.021),
        scalar(12, made),
        levels(*shapes[1], dtype=np.int8),
        steps,
        zeros,
        scalar(0.07),
        scalar(5, made),
    ]
    held = (1, 2, 4, 5, 6, 7)
    check(*one_node("QLinearMatMul", inputs, domain="", opset=17, constants=held), tolerance=0)
    check(*one_node("QLinearMatMul", inputs, domain="", opset=17), tolerance=0)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("turned", [0, 1])
def test_a_quantised_gemm_is_a_product_and_what_rounds_it(turned: int, rounded: bool) -> None:
    b = levels(7, 64, dtype=np.int8) if turned else levels(64, 7, dtype=np.int8)
    bias = RNG.integers(-4000, 4000, 7).astype(np.int32)
    inputs = [levels(3, 64), scalar(0.021), scalar(120, np.uint8), b, scalar(0.013), scalar(0, np.int8), bias]
    inputs += [scalar(0.07), scalar(5, np.uint8)] if rounded else []
    check(*one_node("QGemm", inputs, opset=17, transB=turned, constants=(1, 2, 4, 5)), tolerance=0)
