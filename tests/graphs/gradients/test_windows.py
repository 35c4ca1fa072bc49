"""Windows written out with explicit padding, against ONNX Runtime on the nodes as they were."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto
from small_models import FLOAT, model, node, normal, run

from edge_attention.graphs.gradients.windows import explicit_windows
from edge_attention.graphs.onnx_file import bind_batch

BATCH = 2


def bound_file(made: NodeProto, size: tuple[int, ...], initializers: dict[str, np.ndarray]) -> ModelProto:
    rank = len(size)
    file = model(
        [made],
        {"x": (FLOAT, ["n", 2, *size])},
        {"y": (FLOAT, ["n", 2, *(f"s{i}" for i in range(rank))])},
        initializers,
        opset=19,
    )
    parsed = onnx.load_model_from_string(file)
    parsed.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return bind_batch(parsed, BATCH)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["Conv", "ConvTranspose", "AveragePool", "MaxPool", "LpPool"]),
    st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
    st.tuples(st.integers(5, 9), st.integers(5, 9)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(0, 1),
    st.booleans(),
    st.booleans(),
)
def test_windows_written_out_compute_the_same(
    kind: str,
    auto: str,
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pad: int,
    ceil: bool,
    counts_padding: bool,
) -> None:
    # With elements between windows ONNX Runtime has no SAME, and no window at the end where onnx infers one.
    assume(auto == "VALID" or all(stride <= reach for stride, reach in zip(strides, kernel, strict=True)))
    attributes: dict[str, object] = {"kernel_shape": kernel, "strides": strides, "auto_pad": auto}
    if auto == "NOTSET":
        attributes["pads"] = [min(pad, reach - 1) for reach in kernel * 2]
    if not kind.startswith("Conv"):
        attributes["ceil_mode"] = int(ceil)
    if kind == "AveragePool":
        attributes["count_include_pad"] = int(counts_padding)
    weights = {"w": normal(1, 2, 2, *kernel)} if kind.startswith("Conv") else {}
    bound = bound_file(node(kind, ["x", *weights], ["y"], **attributes), size, weights)
    x = normal(0, BATCH, 2, *size)
    before = run(bound.SerializeToString(), {"x": x})["y"]
    explicit_windows(bound)
    left = {attribute.name for attribute in bound.graph.node[0].attribute}
    unlike = auto == "VALID" or (auto == "NOTSET" and (pad or not ceil or kind.startswith("Conv")))
    assert unlike or not left & {"auto_pad", "ceil_mode"}
    after = run(bound.SerializeToString(), {"x": x})["y"]
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)
