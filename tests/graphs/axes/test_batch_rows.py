"""Whether rows of a batch meet: where it says that they do not, each has the answer that it has alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from aggregator.inference.model_inputs import tensors_of
from edge_attention.graphs.axes.batch_rows import rows_meet
from edge_attention.graphs.axes.model_reading import open_model

EXPORTS = Path(__file__).parent / "exports"


def meet(path):
    opened = open_model(path)
    return rows_meet(opened, tensors_of(opened)[0])


def feeds(session, rows, seed, tokens=12):
    rng = np.random.default_rng(seed)
    found = {}
    for one in session.get_inputs():
        shape = [rows, *(size if isinstance(size, int) else tokens for size in one.shape[1:])]
        if one.name == "attention_mask":
            found[one.name] = (np.arange(tokens) < tokens - seed).astype(np.int64) * np.ones(shape, np.int64)
        elif "int" in one.type:
            found[one.name] = rng.integers(1, 40, shape)
        else:
            found[one.name] = rng.standard_normal(shape).astype(np.float32)
    return found


# Masks that are looked up by row, in one way and another; tables that are repeated a row; plain ones.
@pytest.mark.parametrize(
    "name", ["bert", "bert_torchscript17", "deberta_v2", "gpt2", "modernbert", "t5_encoder", "vit"]
)
def test_rows_of_exports_do_not_meet(name):
    path = EXPORTS / f"{name}.onnx"
    assert meet(path) == ""
    session = ort.InferenceSession(path)
    parts = [feeds(session, rows, seed) for seed, rows in enumerate((1, 2, 1))]
    alone = [session.run(None, part) for part in parts]
    joined = session.run(None, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    for number, found in enumerate(joined):
        expected = np.concatenate([one[number] for one in alone])
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_an_int8_model_has_one_scale_for_all_rows():
    path = EXPORTS / "bert_int8.onnx"
    assert "DynamicQuantizeLinear" in meet(path)
    assert "finds one scale for all rows of the batch" in meet(path)


def model(folder, nodes, initializers=(), inputs=("x",), shape=("n", 4), out=("n", 4)):
    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes, "g", [value(n, shape) for n in inputs], [value("y", out)],
        [numpy_helper.from_array(array, name) for name, array in dict(initializers).items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, folder / "m.onnx")
    return folder / "m.onnx"


N = helper.make_node
AXIS0 = {"axis": np.array([0])}
ONE = {"one": np.array(1), "zero": np.array(0)}

MEETING = {
    "sums over rows": ([N("ReduceSum", ["x", "axis"], ["s"]), N("Add", ["x", "s"], ["y"])], AXIS0),
    "averages rows": ([N("ReduceMean", ["x"], ["s"], axes=[0]), N("Sub", ["x", "s"], ["y"])], {}),
    "takes the largest": ([N("ReduceMax", ["x"], ["s"], axes=[0]), N("Sub", ["x", "s"], ["y"])], {}),
    "normalises over rows": ([N("Softmax", ["x"], ["y"], axis=0)], {}),
    "looks at all rows": ([N("CumSum", ["x", "zero"], ["y"])], {"zero": np.array(0)}),
    "twice": (
        [
            N("Transpose", ["x"], ["t"], perm=[1, 0]),
            N("MatMul", ["x", "t"], ["s"]),
            N("MatMul", ["s", "x"], ["y"]),
        ],
        {},
    ),
    "another one in each row": (
        [
            N("Shape", ["x"], ["shape"]),
            N("Gather", ["shape", "zero"], ["n"]),
            N("Range", ["zero", "n", "one"], ["rows"]),
            N("Cast", ["rows"], ["floats"], to=1),
            N("Unsqueeze", ["floats", "last"], ["column"]),
            N("Add", ["x", "column"], ["y"]),
        ],
        {**ONE, "last": np.array([1])},
    ),
    "picks rows": (
        [
            N("Shape", ["x"], ["shape"]),
            N("Gather", ["shape", "zero"], ["n"]),
            N("Range", ["zero", "n", "one"], ["rows"]),
            N("Mul", ["rows", "zero"], ["first"]),
            N("Gather", ["x", "first"], ["y"], axis=0),
        ],
        ONE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("says", MEETING)
def test_what_makes_rows_meet_is_found_and_said(tmp_path, says):
    nodes, constants = MEETING[says]
    path = model(tmp_path, nodes, constants)
    assert says in meet(path)
    session = ort.InferenceSession(path)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    alone = np.concatenate([session.run(None, {"x": x[n : n + 1]})[0] for n in range(3)])
    assert not np.allclose(session.run(None, {"x": x})[0], alone, atol=1e-3)


def test_rows_that_are_no_axis_of_their_own_are_refused(tmp_path):
    flat = [N("Reshape", ["x", "shape"], ["y"])]
    path = model(tmp_path, flat, {"shape": np.array([-1])}, out=("m",))
    assert "first axis of output 'y'" in meet(path)
    assert "no first dimension that is left open" in meet(model(tmp_path, flat, {"shape": np.array([-1])},
        shape=(3, 4), out=(12,)))  # fmt: skip
    relu = [N("Add", ["x", "z"], ["y"])]
    path = model(tmp_path, relu, inputs=("x", "z"), shape=("n", "n"), out=("n", "n"))
    assert "'n' is not the batch's alone" in meet(path)
