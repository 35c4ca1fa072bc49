"""Loading users' parts: what is accepted, what is lifted, what is refused and in which words."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.models.parts import load_part
from edge_attention.graphs.reading import reader

FLOAT = TensorProto.FLOAT


def initializer(name: str, *shape: int) -> TensorProto:
    rng = np.random.default_rng(len(name))
    return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)


def encoder() -> ModelProto:
    """x [B, 6] is two tokens of three; keys have one head of 4, values one head of 2."""
    shapes = [("tokens", [-1, 3]), ("keys_shape", [-1, 2, 1, 4]), ("values_shape", [-1, 2, 1, 2])]
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "tokens"], ["rows"], doc_string="/home/someone/model.py"),
            helper.make_node("MatMul", ["rows", "wk"], ["k"], name="project"),
            helper.make_node("Reshape", ["k", "keys_shape"], ["keys"]),
            helper.make_node("Mul", ["rows", "gain"], ["scaled"]),
            helper.make_node("MatMul", ["scaled", "wv"], ["v"]),
            helper.make_node("Reshape", ["v", "values_shape"], ["values"]),
        ],
        "encoder",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 6])],
        [
            helper.make_tensor_value_info("values", FLOAT, ["n", 2, 1, 2]),
            helper.make_tensor_value_info("keys", FLOAT, ["n", 2, 1, 4]),
        ],
        [initializer("wk", 3, 4), initializer("wv", 3, 2), initializer("gain", 3)]
        + [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in shapes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def head() -> ModelProto:
    """loss = mean((fused . w - y)^2), and the predictions beside it."""
    axes = numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes")
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["fused", "w"], ["weighed"]),
            helper.make_node("ReduceSum", ["weighed", "axes"], ["prediction"], keepdims=0),
            helper.make_node("Sub", ["prediction", "y"], ["miss"]),
            helper.make_node("Mul", ["miss", "miss"], ["square"]),
            helper.make_node("ReduceMean", ["square"], ["loss"], keepdims=0),
        ],
        "head",
        [
            helper.make_tensor_value_info("fused", FLOAT, ["n", 3, 1, 2]),
            helper.make_tensor_value_info("y", FLOAT, ["n"]),
        ],
        [
            helper.make_tensor_value_info("loss", FLOAT, []),
            helper.make_tensor_value_info("prediction", FLOAT, ["n"]),
        ],
        [initializer("w", 3, 1, 2), axes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(graph: bytes, feeds: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(outputs, feeds)


def test_an_encoder_is_lifted_and_computes_what_the_file_computed() -> None:
    model = encoder()
    part = load_part(model.SerializeToString(), "encoder", where="camera")
    float32 = np.dtype(np.float32)
    assert part.inputs == {"x": (float32, (None, 6))} == part.labels
    assert part.outputs == {"keys": (float32, (None, 2, 1, 4)), "values": (float32, (None, 2, 1, 2))}
    assert list(part.parameters) == ["wk", "wv", "gain"]
    lifted = onnx.load_model_from_string(part.forward).graph
    assert not set(part.parameters) & {tensor.name for tensor in lifted.initializer}
    assert set(part.parameters) < {value.name for value in lifted.input}
    for batch in (1, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 6)).astype(np.float32)
        given = run(model.SerializeToString(), {"x": x}, ["keys", "values"])
        found = run(part.forward, {"x": x, **part.parameters}, ["keys", "values"])
        for expected, got in zip(given, found, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_parameters_are_the_files_values_and_cannot_be_written() -> None:
    model = encoder()
    part = load_part(model.SerializeToString(), "encoder")
    for tensor in model.graph.initializer:
        if tensor.data_type == FLOAT:
            np.testing.assert_array_equal(part.parameters[tensor.name], numpy_helper.to_array(tensor))
            with pytest.raises(ValueError, match="read-only"):
                part.parameters[tensor.name][0] = 0


def test_a_head_keeps_its_labels_and_its_further_outputs() -> None:
    part = load_part(head().SerializeToString(), "head")
    float32 = np.dtype(np.float32)
    assert part.inputs == {"fused": (float32, (None, 3, 1, 2)), "y": (float32, (None,))}
    assert part.labels == {"y": (float32, (None,))}
    assert part.outputs == {"loss": (float32, ()), "prediction": (float32, (None,))}


def test_only_the_named_parameters_train() -> None:
    part = load_part(encoder().SerializeToString(), "encoder", trainable=["wv"])
    assert list(part.parameters) == ["wv"]
    constants = {tensor.name for tensor in onnx.load_model_from_string(part.forward).graph.initializer}
    assert {"wk", "gain"} <= constants


def test_an_open_dimension_takes_the_size_of_the_nodes_column_or_that_of_the_job() -> None:
    model = encoder()
    _second_dynamic(model)
    file = model.SerializeToString()
    (name,) = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim[1:] if d.dim_param]
    by_column = load_part(file, "encoder", rows={"camera/frames": {"x": (6,)}})
    by_job = load_part(file, "encoder", dimensions={name: 6})
    assert by_column.forward == by_job.forward
    assert by_column.dimensions == {name: 6}


def test_weights_in_constant_nodes_train() -> None:
    model = encoder()
    _constant_only(model)  # `gain`, which only scales, stays a constant
    assert sorted(load_part(model.SerializeToString(), "encoder").parameters) == [
        "wk",
        "wv",
    ]  # what only scales stays a constant


def test_an_initializer_that_is_also_an_input_becomes_one_of_the_two() -> None:
    model = encoder()
    model.graph.input.extend(
        helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in (("wk", [3, 4]), ("gain", [3]))
    )
    part = load_part(model.SerializeToString(), "encoder", trainable=["wk"])
    assert list(part.inputs) == ["x"]
    assert [value.name for value in onnx.load_model_from_string(part.forward).graph.input] == ["x", "wk"]


def test_what_reaches_no_output_is_dropped() -> None:
    model = encoder()
    model.graph.initializer.append(initializer("dead", 3))
    model.graph.input.append(helper.make_tensor_value_info("unused", FLOAT, ["n", 2]))
    model.graph.node.append(helper.make_node("Add", ["rows", "dead"], ["extra"]))
    model.graph.output.append(helper.make_tensor_value_info("extra", FLOAT, ["rows", 3]))
    part = load_part(model.SerializeToString(), "encoder")
    assert list(part.inputs) == ["x"]
    assert "dead" not in part.parameters
    assert list(part.outputs) == ["keys", "values"]


def test_local_functions_are_inlined() -> None:
    model = encoder()
    body = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    opset = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("mine", "Project", ["a", "b"], ["c"], body, opset))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[1].CopyFrom(helper.make_node("Project", ["rows", "wk"], ["k"], domain="mine"))
    part = load_part(model.SerializeToString(), "encoder")
    assert {node.op_type for node in onnx.load_model_from_string(part.forward).graph.node} == {
        "Reshape",
        "MatMul",
        "Mul",
    }


def test_what_exporters_leave_behind_does_not_travel() -> None:
    assert b"/home/someone" in encoder().SerializeToString()
    assert b"/home/someone" not in load_part(encoder().SerializeToString(), "encoder").forward


def test_the_same_file_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(encoder().SerializeToString())
    program = (
        "import hashlib, pathlib, sys; from edge_attention.graphs.models.parts import load_part; "
        "data = pathlib.Path(sys.argv[1]).read_bytes(); "
        "print(hashlib.sha256(load_part(data, 'encoder').forward).hexdigest())"
    )
    digests = {hashlib.sha256(load_part(encoder().SerializeToString(), "encoder").forward).hexdigest()}
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "encoder.onnx")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1


def _rename_output(model: ModelProto) -> None:
    model.graph.output[1].name = model.graph.node[2].output[0] = "K"


def _fixed_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def _second_dynamic(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"


def _three_dimensions(model: ModelProto) -> None:
    _replace(model, "keys_shape", np.array([-1, 2, 4], np.int64))
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info("keys", FLOAT, ["n", 2, 4]))


def _tokens_differ(model: ModelProto) -> None:
    _replace(model, "keys_shape", np.array([-1, 1, 2, 4], np.int64))
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info("keys", FLOAT, ["n", 1, 2, 4]))


def _batch_within(model: ModelProto) -> None:
    _replace(model, "keys_shape", np.array([4, -1, 1, 4], np.int64))
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info("keys", FLOAT, list("abcd")))


def _replace(model: ModelProto, name: str, value: np.ndarray) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))


def _external(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def _constant_only(model: ModelProto) -> None:
    for name in ("wk", "wv", "gain"):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        model.graph.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))
        model.graph.initializer.remove(tensor)


def _not_finite(model: ModelProto) -> None:
    _replace(model, "gain", np.array([1, np.nan, 1], np.float32))


def _before(model: ModelProto, name: str, node: NodeProto) -> None:
    """Let what reads `name` read what `node` makes of it."""
    for reader_ in model.graph.node:
        for slot, read in enumerate(reader_.input):
            if read == name:
                reader_.input[slot] = node.output[0]
    model.graph.node.insert(0, node)


def _random(model: ModelProto) -> None:
    _before(model, "gain", helper.make_node("RandomNormalLike", ["gain"], ["noise"], name="jitter"))


def _dropout(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "training"))
    dropout = helper.make_node("Dropout", ["gain", "", "training"], ["dropped"], name="drop")
    _before(model, "gain", dropout)


def _foreign(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    node = helper.make_node("Gelu", ["gain"], ["g"], name="fast", domain="com.microsoft")
    _before(model, "gain", node)


def _reserved(model: ModelProto) -> None:
    model.graph.input[0].name = "dkeys"
    model.graph.node[0].input[0] = "dkeys"


def _undefined(model: ModelProto) -> None:
    model.graph.node[1].input[1] = "nowhere"


def _float64(model: ModelProto) -> None:
    model.graph.node[2].output[0] = "keys32"
    model.graph.node.append(helper.make_node("Cast", ["keys32"], ["keys"], to=TensorProto.DOUBLE))
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.DOUBLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename_output, "no output 'keys'"),
        (_fixed_batch, "dimension 0 of input 'x' must be the batch"),
        (_second_dynamic, "dimension 1 of input 'x' .features. has no fixed size"),
        (_three_dimensions, r"'keys' is float32 \[\?, 2, 4\]; it must be float32 \[B, T, Hk, dk\]"),
        (_float64, "'keys' is float64"),
        (_tokens_differ, "must agree in tokens and heads"),
        (_batch_within, "do not hold for every batch size"),
        (_external, "keeps its data in other files"),
        (_not_finite, "parameter 'gain' has NaN or Inf"),
        (_random, r"RandomNormalLike \(node 'jitter'\) is random"),
        (_dropout, r"Dropout \(node 'drop'\) is random"),
        (_foreign, r"Gelu \(node 'fast'\) is of domain 'com.microsoft'"),
        (_reserved, "the name 'dkeys' is reserved"),
        (_undefined, "not a valid ONNX graph"),
        (lambda model: setattr(model, "ir_version", 99), "ir_version 99 is not supported"),
        (lambda model: setattr(model.opset_import[0], "version", 27), "opset 27 is not supported"),
        (lambda model: setattr(model.opset_import[0], "version", 6), "opset 6 is not supported"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_refused(
    change: Callable[[ModelProto], None], message: str
) -> None:
    model = encoder()
    change(model)
    with pytest.raises(InvalidGraph, match=f"^encoder 'camera': .*({message})"):
        load_part(model.SerializeToString(), "encoder", where="camera")


def test_text_columns_are_refused() -> None:
    model = encoder()
    model.graph.input.append(helper.make_tensor_value_info("name", TensorProto.STRING, ["n"]))
    model.graph.node.append(helper.make_node("Shape", ["name"], ["size"]))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["zeros"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0))
    model.graph.node[5].output[0] = "plain"
    model.graph.node.append(helper.make_node("Add", ["plain", "zero"], ["values"]))
    with pytest.raises(InvalidGraph, match=r"input 'name' is text .*; encode it before the graph"):
        load_part(model.SerializeToString(), "encoder")


def test_a_head_without_a_scalar_loss_or_without_fused_is_refused() -> None:
    model = head()
    model.graph.node[4].attribute[0].i = 1
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("loss", FLOAT, [1]))
    with pytest.raises(InvalidGraph, match="'loss' must be a float32 scalar"):
        load_part(model.SerializeToString(), "head")
    model = head()
    model.graph.input[0].name = model.graph.node[0].input[0] = "features"
    with pytest.raises(InvalidGraph, match="no input 'fused'"):
        load_part(model.SerializeToString(), "head")
    with pytest.raises(InvalidGraph, match="no output 'loss'"):
        load_part(encoder().SerializeToString(), "head")


def test_a_trainable_name_has_to_exist_and_to_matter() -> None:
    model = encoder()
    model.graph.initializer.append(initializer("dead", 3))
    with pytest.raises(InvalidGraph, match="trainable 'wq' is no float32 initializer"):
        load_part(model.SerializeToString(), "encoder", trainable=["wq"])
    with pytest.raises(InvalidGraph, match=r"trainable \['dead'\] reach no output"):
        load_part(model.SerializeToString(), "encoder", trainable=["wk", "dead"])


def test_a_file_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoder().SerializeToString()
    monkeypatch.setattr(reader, "MAX_BYTES", len(data))
    load_part(data, "encoder")
    monkeypatch.setattr(reader, "MAX_BYTES", len(data) - 1)
    with pytest.raises(InvalidGraph, match="more than the limit"):
        load_part(data, "encoder")


_VALID = encoder().SerializeToString()


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.integers(0, len(_VALID)).map(lambda n: _VALID[:n]),
        st.lists(st.tuples(st.integers(0, len(_VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4).map(
            lambda edits: _edited(edits)
        ),
    )
)
def test_damaged_bytes_give_a_part_or_a_refusal_and_nothing_else(data: bytes) -> None:
    try:
        part = load_part(data, "encoder")
    except InvalidGraph:
        return
    assert set(part.outputs) == {"keys", "values"}


def _edited(edits: list[tuple[int, int]]) -> bytes:
    data = bytearray(_VALID)
    for position, value in edits:
        data[position] = value
    return bytes(data)
