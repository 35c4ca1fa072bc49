"""Model files as people have them: judged by what the loss needs, not by what else is in the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from small_models import FLOAT, INT64, close, model, node, normal, run, softmax

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import LossSpec, NewHead
from edge_attention.graphs.models.model import Model, gradient_graph, load_model
from edge_attention.graphs.models.model_checks import check_model

LOSS = LossSpec("cross_entropy", "logits")
X = {"x": (FLOAT, ["batch", 4])}
LOGITS = {"logits": (FLOAT, ["batch", 3])}
PRODUCT = node("MatMul", ["x", "w"], ["logits"])
W = normal(1, 4, 3)


def load(file: bytes, **given: Any) -> Model:
    loaded = load_model(file, loss=LOSS, **given)
    check_model(loaded)
    return loaded


def slope(loaded: Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """d loss / d w of logits = x @ w, where w is the only parameter."""
    (w,) = loaded.parameters.values()
    wide = x.astype(np.float64)
    return np.asarray(wide.T @ ((softmax(wide @ w) - np.eye(3)[y]) / len(x)))


def gradient(loaded: Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    point = {f"x/{i}": value for i, value in enumerate(loaded.parameters.values())}
    return np.asarray(run(gradient_graph(loaded, len(x)), {"x": x, "labels": y, **point})["grad/0"])


def same_as_the_product(file: bytes, **given: Any) -> Model:
    """The file is logits = x @ w, and trains so."""
    loaded = load(file, **given)
    x, y = normal(3, 6, 4), np.array([0, 2, 1, 1, 0, 2])
    close(gradient(loaded, x, y), slope(loaded, x, y))
    return loaded


def with_foreign(made: bytes, domain: str = "com.microsoft", version: int = 1) -> bytes:
    proto = onnx.load_model_from_string(made)
    proto.opset_import.append(helper.make_opsetid(domain, version))
    return proto.SerializeToString()


# What the loss does not need


@pytest.mark.parametrize("declared", [True, False], ids=["an output", "dead"])
@pytest.mark.parametrize(("operator", "domain"), [("Gelu", "com.microsoft"), ("Mystery", "somebody.else")])
def test_an_operator_of_another_domain_after_the_logits_is_cut_off(
    declared: bool, operator: str, domain: str
) -> None:
    foreign = node(operator, ["logits"], ["g"], domain=domain)
    outputs = {**LOGITS, **({"g": (FLOAT, ["batch", 3])} if declared else {})}
    loaded = same_as_the_product(with_foreign(model([PRODUCT, foreign], X, outputs, {"w": W}), domain))
    assert loaded.names == ("w",)
    assert loaded.cut == (("g",) if declared else ())


def test_a_model_whose_only_weights_are_another_domains_is_told_so() -> None:
    scores = node("LinearClassifier", ["x"], ["best", "logits"], domain="ai.onnx.ml",
                  coefficients=[0.1] * 12, intercepts=[0.0] * 3, classlabels_ints=[0, 1, 2])  # fmt: skip
    file = with_foreign(model([scores], X, LOGITS, {}), "ai.onnx.ml")
    with pytest.raises(InvalidGraph, match=r"what ai\.onnx\.ml\.LinearClassifier holds cannot train"):
        load_model(file, loss=LossSpec("cross_entropy"))
    # As the converter writes it: a map of probabilities, whose shape nothing declares.
    behind = [
        node("Normalizer", ["logits"], ["shares"], domain="ai.onnx.ml", norm="L1"),
        node("ZipMap", ["shares"], ["probability"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    written = model([scores, *behind], X, {"probability": (FLOAT, ["batch", 3])}, {})
    proto = onnx.load_model_from_string(with_foreign(written, "ai.onnx.ml"))
    proto.graph.output[0].type.Clear()
    with pytest.raises(InvalidGraph, match=r"what ai\.onnx\.ml\.LinearClassifier holds cannot train"):
        load_model(proto.SerializeToString(), loss=LossSpec("cross_entropy"))
    headed = load_model(
        proto.SerializeToString(), loss=LossSpec("cross_entropy"), head=NewHead("probability", 2)
    )
    assert headed.names == ("head.weight", "head.bias")


def test_what_scikit_learns_converter_puts_behind_the_scores_is_cut_off() -> None:
    """A map from labels to probabilities, and labels as text: neither is a tensor."""
    nodes = [
        PRODUCT,
        node("Softmax", ["logits"], ["p"], axis=-1),
        node("ZipMap", ["p"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
        node("ArgMax", ["logits"], ["best"], axis=-1, keepdims=0),
        node("LabelEncoder", ["best"], ["label"], domain="ai.onnx.ml", keys_int64s=[0, 1, 2],
             values_strings=["a", "b", "c"]),
    ]  # fmt: skip
    proto = onnx.load_model_from_string(with_foreign(model(nodes, X, LOGITS, {"w": W}), "ai.onnx.ml", 3))
    numbers = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    proto.graph.output.append(
        helper.make_value_info("probabilities", helper.make_sequence_type_proto(numbers))
    )
    proto.graph.output.append(helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"]))
    loaded = same_as_the_product(proto.SerializeToString())
    assert loaded.cut == ("probabilities", "label")


def test_a_loss_of_a_map_is_of_the_tensor_that_it_was_made_of() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["z"]),
        node("ZipMap", ["z"], ["logits"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    proto = onnx.load_model_from_string(with_foreign(model(nodes, X, {}, {"w": W}), "ai.onnx.ml", 3))
    numbers = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    proto.graph.output.append(helper.make_value_info("logits", helper.make_sequence_type_proto(numbers)))
    assert same_as_the_product(proto.SerializeToString()).names == ("w",)


def test_a_random_operator_counts_only_where_the_loss_needs_it() -> None:
    noise = node("RandomNormalLike", ["x"], ["noise"])
    file = model([PRODUCT, noise], X, {**LOGITS, "noise": (FLOAT, ["batch", 4])}, {"w": W})
    same_as_the_product(file)
    noisy = [noise, node("Add", ["x", "noise"], ["n"]), node("MatMul", ["n", "w"], ["logits"])]
    with pytest.raises(InvalidGraph, match=r"operator RandomNormalLike .* is random"):
        load(model(noisy, X, LOGITS, {"w": W}))


def test_an_input_that_the_loss_does_not_need_is_not_asked_of_the_nodes() -> None:
    nodes = [PRODUCT, node("Identity", ["words"], ["said"])]
    inputs = {**X, "words": (TensorProto.STRING, ["batch"])}
    file = model(nodes, inputs, {**LOGITS, "said": (TensorProto.STRING, ["batch"])}, {"w": W})
    assert set(same_as_the_product(file).inputs) == {"x", "labels"}


def test_functions_that_only_cut_off_nodes_call_are_not_judged() -> None:
    text = helper.make_node("StringNormalizer", ["v"], ["r"])
    function = helper.make_function("own", "Shout", ["v"], ["r"], [text], [helper.make_opsetid("", 18)])
    nodes = [PRODUCT, node("Shout", ["logits"], ["loud"], domain="own")]
    proto = onnx.load_model_from_string(with_foreign(model(nodes, X, LOGITS, {"w": W}), "own"))
    proto.functions.append(function)
    same_as_the_product(proto.SerializeToString())


def test_the_files_own_functions_train() -> None:
    body = [helper.make_node("MatMul", ["a", "b"], ["r"])]
    function = helper.make_function("own", "Product", ["a", "b"], ["r"], body, [helper.make_opsetid("", 18)])
    nodes = [node("Product", ["x", "w"], ["logits"], domain="own")]
    proto = onnx.load_model_from_string(with_foreign(model(nodes, X, LOGITS, {"w": W}), "own"))
    proto.functions.append(function)
    same_as_the_product(proto.SerializeToString())


# What constants decide


@pytest.mark.parametrize("how", ["initializer", "constant", "not true", "identity", "ratio 0", "absent"])
def test_a_dropout_that_is_off_is_no_random_operator(how: str) -> None:
    values: dict[str, np.ndarray] = {"ratio": np.array(0.5, np.float32), "w": W}
    before: list[NodeProto] = []
    if how in ("initializer", "ratio 0"):
        values["training"] = np.array(how == "ratio 0")
        values["ratio"] = np.array(0.0 if how == "ratio 0" else 0.5, np.float32)
    elif how == "constant":
        off = numpy_helper.from_array(np.array(False))
        before = [node("Constant", [], ["training"], value=off)]
    elif how == "not true":
        values["on"] = np.array(True)
        before = [node("Not", ["on"], ["training"])]
    elif how == "identity":
        values["off"] = np.array([0], np.int64)
        values["none"] = np.array([], np.int64)
        before = [
            node("Cast", ["off"], ["b"], to=TensorProto.BOOL),
            node("Reshape", ["b", "none"], ["training"]),
        ]
    third = [] if how == "absent" else ["training"]
    dropout = node("Dropout", ["x", "ratio", *third], ["d"])
    same_as_the_product(model([*before, dropout, node("MatMul", ["d", "w"], ["logits"])], X, LOGITS, values))


def test_a_dropout_that_is_on_or_may_be_is_refused() -> None:
    values = {"ratio": np.array(0.5, np.float32), "on": np.array(True), "w": W}
    nodes = [node("Dropout", ["x", "ratio", "on"], ["d"]), node("MatMul", ["d", "w"], ["logits"])]
    with pytest.raises(InvalidGraph, match=r"Dropout .* is random"):
        load(model(nodes, X, LOGITS, values))


def branch(
    nodes: list[NodeProto], output: str, values: dict[str, np.ndarray] | None = None
) -> onnx.GraphProto:
    tensors = [numpy_helper.from_array(value, name) for name, value in (values or {}).items()]
    ends = [helper.make_tensor_value_info(output, FLOAT, None)]
    return helper.make_graph(nodes, "branch", [], ends, tensors)


@pytest.mark.parametrize("taken", [True, False])
def test_an_if_on_a_constant_is_the_branch_that_is_taken(taken: bool) -> None:
    """Both branches have a value of one name, and the one that is not taken has what has no gradient."""
    product = branch([node("MatMul", ["x", "w"], ["r"])], "r")
    random = branch(
        [node("RandomNormalLike", ["x"], ["n"]), node("MatMul", ["n", "v"], ["r"])], "r", {"v": W}
    )
    branches = {"then_branch": product, "else_branch": random}
    if not taken:
        branches = {"then_branch": random, "else_branch": product}
    nodes = [node("If", ["which"], ["logits"], **branches)]
    loaded = same_as_the_product(model(nodes, X, LOGITS, {"which": np.array(taken), "w": W}))
    assert loaded.names == ("w",)


def test_an_if_on_a_fixed_size_is_decided_and_one_on_the_batch_is_not() -> None:
    """As PyTorch's `squeeze` is exported: an axis goes away if its size is 1."""

    def file(axis: int) -> bytes:
        values = {"w": W, "axis": np.array([axis], np.int64), "one": np.array([1], np.int64)}
        values |= {"squeezed": np.array([1], np.int64)}
        nodes = [
            node("Shape", ["x"], ["sizes"]),
            node("Gather", ["sizes", "axis"], ["size"]),
            node("Equal", ["size", "one"], ["is_one"]),
            node("If", ["is_one"], ["flat"],
                 then_branch=branch([node("Squeeze", ["x", "squeezed"], ["r"])], "r"),
                 else_branch=branch([node("ReduceMax", ["x", "squeezed"], ["r"], keepdims=0)], "r")),
            node("MatMul", ["flat", "w"], ["logits"]),
        ]  # fmt: skip
        return model(nodes, {"x": (FLOAT, ["batch", 1, 4])}, LOGITS, values)

    loaded = load(file(1))
    x, y = normal(3, 6, 1, 4), np.array([0, 2, 1, 1, 0, 2])
    close(gradient(loaded, x, y), slope(loaded, x[:, 0], y))
    assert "If" not in {n.op_type for n in onnx.load_model_from_string(loaded.forward).graph.node}
    assert "If" in {n.op_type for n in onnx.load_model_from_string(load(file(0)).forward).graph.node}


# Which are weights


@pytest.mark.parametrize("named", [(), ("w",)])
def test_weights_in_constant_nodes_train_under_their_names(named: tuple[str, ...]) -> None:
    constant = node("Constant", [], ["w"], value=numpy_helper.from_array(W, "anything"))
    loaded = same_as_the_product(model([constant, PRODUCT], X, LOGITS, {}), parameters=named)
    assert loaded.names == ("w",)
    np.testing.assert_array_equal(loaded.parameters["w"], W)


def test_a_constant_that_is_no_weight_stays_one() -> None:
    """The mean and scale of pixels, as exporters write them, beside a weight of the same kind."""
    nodes = [
        node("Constant", [], ["mean"], value=numpy_helper.from_array(normal(5, 4))),
        node("Constant", [], ["w"], value=numpy_helper.from_array(W)),
        node("Constant", [], ["b"], value_floats=[0.1, 0.2, 0.3]),
        node("Sub", ["x", "mean"], ["centred"]),
        node("MatMul", ["centred", "w"], ["h"]),
        node("Add", ["h", "b"], ["logits"]),
    ]
    assert load(model(nodes, X, LOGITS, {})).names == ("w", "b")


def test_patterns_name_parameters() -> None:
    nodes = [
        node("MatMul", ["x", "encoder.w"], ["h"]),
        node("Add", ["h", "encoder.b"], ["t"]),
        node("MatMul", ["t", "head.w"], ["logits"]),
    ]
    values = {"encoder.w": normal(1, 4, 5), "encoder.b": normal(2, 5), "head.w": normal(3, 5, 3)}
    file = model(nodes, X, LOGITS, values)
    assert load(file, parameters=["head.*"]).names == ("head.w",)
    assert load(file, parameters=["*.w"]).names == ("encoder.w", "head.w")
    assert load(file, parameters=["head.*"]).frozen.keys() == {"encoder.w", "encoder.b"}
    with pytest.raises(InvalidGraph, match=r"no parameter is called 'tail\.\*'; there are encoder\.w"):
        load(file, parameters=["tail.*"])


def test_quantised_weights_are_said_to_be_frozen() -> None:
    nodes = [
        node("DequantizeLinear", ["q", "s"], ["w"]),
        node("MatMul", ["x", "w"], ["h"]),
        node("Add", ["h", "b"], ["logits"]),
    ]
    q = np.random.default_rng(0).integers(-99, 99, (4, 3)).astype(np.int8)
    loaded = load(model(nodes, X, LOGITS, {"q": q, "s": np.array(0.01, np.float32), "b": normal(2, 3)}))
    assert loaded.names == ("b",)
    assert loaded.frozen == {"q": "int8, which has no gradient"}
    assert loaded.notes == ("1 of 2 weights train (b); q do not: int8 has no gradient",)
    with pytest.raises(InvalidGraph, match=r"no parameters .*'q' is int8, which has no gradient"):
        load(model([*nodes[:1], PRODUCT], X, LOGITS, {"q": q, "s": np.array(0.01, np.float32)}))


def test_weights_listed_as_inputs_with_defaults_train() -> None:
    """As files of IR version 3 have to list them."""
    proto = onnx.load_model_from_string(model([PRODUCT], X, LOGITS, {"w": W}, opset=9))
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [4, 3]))
    assert same_as_the_product(proto.SerializeToString()).names == ("w",)


# Which type


def cast_to(kind: int, dtype: Any) -> bytes:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Cast", ["h"], ["logits"], to=kind)]
    made = model(nodes, {"x": (kind, ["batch", 4])}, {"logits": (kind, ["batch", 3])}, {"w": W.astype(dtype)})
    return made


@pytest.mark.parametrize(
    ("kind", "dtype", "called"),
    [(TensorProto.FLOAT16, np.float16, "float16"), (TensorProto.DOUBLE, np.float64, "float64")],
)
def test_other_floating_point_types_train_in_float32(kind: int, dtype: Any, called: str) -> None:
    loaded = same_as_the_product(cast_to(kind, dtype))
    assert loaded.inputs["x"][0] == np.float32
    assert loaded.notes == (f"the file is in {called}; it trains in float32",)
    np.testing.assert_array_equal(loaded.parameters["w"], W.astype(dtype).astype(np.float32))


def test_bfloat16_trains_in_float32() -> None:
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 3], W.reshape(-1).tolist())
    x = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["batch", 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.BFLOAT16, ["batch", 3])
    graph = helper.make_graph([PRODUCT], "g", [x], [logits], [tensor])
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    loaded = same_as_the_product(file.SerializeToString())
    assert loaded.notes == ("the file is in bfloat16; it trains in float32",)
    assert np.abs(loaded.parameters["w"] - W).max() < 0.02


def test_a_mask_as_large_as_float16_holds_stays_a_constant() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "mask"], ["logits"])]
    values = {"w": W.astype(np.float16), "mask": np.array([0, 0, -65504], np.float16)}
    file = model(nodes, {"x": (TensorProto.FLOAT16, ["batch", 4])},
                 {"logits": (TensorProto.FLOAT16, ["batch", 3])}, values)  # fmt: skip
    assert load(file).names == ("w",)


def test_float64_inside_a_float32_model_stays() -> None:
    """A sum that its author wanted exact."""
    nodes = [
        node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        node("Mul", ["wide", "two"], ["twice"]),
        node("Cast", ["twice"], ["back"], to=FLOAT),
        node("MatMul", ["back", "w"], ["logits"]),
    ]
    loaded = load(model(nodes, X, LOGITS, {"w": W, "two": np.array(2.0)}))
    kinds = {t.data_type for t in onnx.load_model_from_string(loaded.forward).graph.initializer}
    assert TensorProto.DOUBLE in kinds
    assert loaded.notes == ()


# Which size


def embedding(*dims: str | int) -> bytes:
    nodes = [
        node("Gather", ["E", "ids"], ["e"]),
        node("Unsqueeze", ["mask", "last"], ["m"]),
        node("Mul", ["e", "m"], ["kept"]),
        node("ReduceMean", ["kept", "one"], ["p"], keepdims=0),
        node("MatMul", ["p", "w"], ["logits"]),
    ]
    values = {"E": normal(1, 50, 8), "w": normal(2, 8, 3), "one": np.array([1]), "last": np.array([2])}
    inputs = {"ids": (INT64, ["batch", *dims]), "mask": (FLOAT, ["batch", *dims])}
    return model(nodes, inputs, LOGITS, values)


def test_a_symbolic_dimension_takes_the_size_of_the_nodes_columns() -> None:
    rows = {"a": {"ids": (64,), "mask": (64,)}, "b": {"ids": (64,)}, "c": {}}
    loaded = load(embedding("sequence_length"), rows=rows)
    assert loaded.dimensions == {"sequence_length": 64}
    assert loaded.inputs["ids"][1] == loaded.inputs["mask"][1] == (None, 64)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"a": {"ids": (64,)}, "b": {"ids": (32,)}},
            "64 in the columns of input 'ids' on node 'a' and 32 .*'b'",
        ),
        ({"a": {"ids": (64,), "mask": (32,)}}, "64 in .*'ids' on node 'a' and 32 in .*'mask' on node 'a'"),
        ({"a": {"ids": ()}}, r"say it in the job: dimensions = \{ sequence_length = 64 \}"),
        ({}, r"dimension 1 of input 'ids' \(sequence_length\) .* dimensions = \{ sequence_length = 64 \}"),
    ],
)
def test_a_size_that_nothing_tells_or_two_tell_differently_is_said(rows: Any, message: str) -> None:
    with pytest.raises(InvalidGraph, match=message):
        load(embedding("sequence_length"), rows=rows)


def test_a_dimension_without_a_name_is_called_by_its_input_and_place() -> None:
    proto = onnx.load_model_from_string(embedding("sequence_length"))
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[1].Clear()
    file = proto.SerializeToString()
    assert load(file, rows={"a": {"ids": (7,), "mask": (7,)}}).dimensions == {"ids.1": 7, "mask.1": 7}
    assert load(file, dimensions={"ids.1": 5, "mask.1": 5}).inputs["ids"][1] == (None, 5)
    with pytest.raises(InvalidGraph, match=r'dimensions = \{ "ids.1" = 64 \}'):
        load(file)


@pytest.mark.parametrize("dims", [[2, "batch"], [1, "length"], [2, None]])
def test_of_an_input_whose_first_dimension_is_not_the_batch_no_size_is_asked(dims: list[Any]) -> None:
    """A recurrent state [2, batch, width]: that its batch had no size sent people the wrong way."""
    file = model(
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("ReduceSum", ["state"], ["s"], keepdims=0),
            node("Add", ["h", "s"], ["logits"]),
        ],
        {"x": (FLOAT, ["batch", 4]), "state": (FLOAT, [*dims, 3])},
        LOGITS,
        {"w": normal(1, 4, 3)},
    )
    wanted = (
        f"dimension 0 of input 'state' must be the batch, and is fixed at {dims[0]}; export it as dynamic"
    )
    with pytest.raises(InvalidGraph, match=wanted):
        load(file)


def test_what_a_checker_says_ends_with_the_reason() -> None:
    file = model(
        [node("MatMul", ["x", "nowhere"], ["logits"], name="last")], {"x": (FLOAT, ["batch", 4])}, LOGITS, {}
    )
    with pytest.raises(
        InvalidGraph, match=r"input 'nowhere' of node: .*last.* is not output of any previous"
    ):
        load(file)


@pytest.mark.parametrize("nothing", [-1, "?", "None"])
def test_sizes_and_names_that_say_nothing_are_open_and_need_not_be_one(nothing: int | str) -> None:
    """As Paddle writes an image's height and width."""
    proto = onnx.load_model_from_string(
        model(
            [
                node("GlobalAveragePool", ["x"], ["p"]),
                node("Flatten", ["p"], ["f"]),
                node("Gemm", ["f", "w"], ["logits"]),
            ],
            {"x": (FLOAT, ["batch", 3, nothing, nothing])},
            LOGITS,
            {"w": normal(1, 3, 3)},
        )
    )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = -1
    loaded = load(proto.SerializeToString(), rows={"a": {"x": (3, 4, 8)}})
    assert loaded.dimensions == {"x.2": 4, "x.3": 8}
    assert loaded.inputs["x"][1] == (None, 3, 4, 8)


@pytest.mark.parametrize("size", [0, -3, 1 << 40])
def test_a_size_that_is_none_is_refused_whoever_says_it(size: int) -> None:
    with pytest.raises(InvalidGraph, match=r"dimension 'sequence_length' is to be .*; a size is 1 to"):
        load(embedding("sequence_length"), dimensions={"sequence_length": size})


def test_a_size_for_no_dimension_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidGraph, match=r"no dimension 'length' .* it has sequence_length"):
        load(embedding("sequence_length"), dimensions={"length": 5})


# Which version


def raised(opset: int, ir_version: int) -> bytes:
    """logits = (mean over tokens of x, batch norm) @ w, as that opset writes it."""
    axes = {"axes": [1]} if opset < 18 else {}
    nodes = [
        node("ReduceMean", ["x", *([] if axes else ["one"])], ["m"], keepdims=0, **axes),
        node("BatchNormalization", ["m", "s", "b", "u", "v"], ["n"]),
        node("Dropout", ["n"], ["d"]),
        node(
            "Unsqueeze", ["d"] if opset < 13 else ["d", "one"], ["t"], **({"axes": [1]} if opset < 13 else {})
        ),
        node(
            "Squeeze", ["t"] if opset < 13 else ["t", "one"], ["f"], **({"axes": [1]} if opset < 13 else {})
        ),
        node("Gemm", ["f", "w", "c"], ["logits"]),
    ]
    values = {"s": normal(1, 4), "b": normal(2, 4), "u": normal(3, 4), "v": np.abs(normal(4, 4)) + 1}
    values |= {"w": W, "c": normal(5, 3), "one": np.array([1])}
    proto = onnx.load_model_from_string(model(nodes, {"x": (FLOAT, ["batch", 5, 4])}, LOGITS, values, opset))
    proto.ir_version = ir_version
    if ir_version < 4:
        proto.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
        )
    return proto.SerializeToString()


@pytest.mark.parametrize(
    ("opset", "ir_version"),
    [(7, 3), (8, 3), (9, 4), (10, 5), (11, 6), (12, 7), (13, 7), (17, 8), (21, 10), (23, 11)],
)
def test_files_of_old_and_new_versions_train_alike(opset: int, ir_version: int) -> None:
    loaded, newest = load(raised(opset, ir_version)), load(raised(21, 10))
    assert loaded.names == newest.names == ("s", "b", "w", "c")
    feeds = {"x": normal(8, 6, 5, 4), "labels": np.array([0, 1, 2, 0, 1, 2])}
    feeds |= {f"x/{i}": value for i, value in enumerate(loaded.parameters.values())}
    found, wanted = (run(gradient_graph(each, 6), feeds) for each in (loaded, newest))
    for name in wanted:
        close(found[name], wanted[name].astype(np.float64))


@pytest.mark.parametrize("opset", [5, 27])
def test_a_version_that_cannot_be_read_is_said(opset: int) -> None:
    proto = onnx.load_model_from_string(model([PRODUCT], X, LOGITS, {"w": W}))
    proto.opset_import[0].version = opset
    with pytest.raises(InvalidGraph, match=f"opset {opset} is not supported; export with opset 7 to 26"):
        load(proto.SerializeToString())


def test_upsample_of_old_files_is_converted() -> None:
    nodes = [
        node("Upsample", ["x", "scales"], ["u"], mode="nearest"),
        node("Flatten", ["u"], ["f"]),
        node("MatMul", ["f", "w"], ["logits"]),
    ]
    values = {"scales": np.array([1, 1, 2, 2], np.float32), "w": normal(1, 16, 3)}
    assert load(model(nodes, {"x": (FLOAT, ["batch", 1, 2, 2])}, LOGITS, values, opset=9)).names == ("w",)


# What is odd


NUMBERS = helper.make_tensor_type_proto(FLOAT, ["n"])


def changed(change: Any) -> bytes:
    proto = onnx.load_model_from_string(model([PRODUCT], X, LOGITS, {"w": W}))
    change(proto)
    return proto.SerializeToString()


def rename(proto: ModelProto, name: str) -> None:
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = name


@pytest.mark.parametrize("name", ["gewichte/größe", "重み", "w:0", "a b", "w[0]*"])
def test_names_of_any_script_work(name: str) -> None:
    assert same_as_the_product(changed(lambda proto: rename(proto, name))).names == (name,)
    assert load(changed(lambda proto: rename(proto, name)), parameters=[name]).names == (name,)


def test_nodes_without_names_work() -> None:
    same_as_the_product(changed(lambda proto: proto.graph.node[0].ClearField("name")))


def as_sequence(proto: ModelProto) -> None:
    proto.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(NUMBERS))


def as_optional(proto: ModelProto) -> None:
    proto.graph.input[0].type.CopyFrom(helper.make_optional_type_proto(NUMBERS))


def twice(proto: ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(W, "w"))


def dead(proto: ModelProto) -> None:
    proto.graph.node.append(node("Identity", ["nothing"], ["y"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda p: p.graph.node.append(PRODUCT), "not a valid ONNX graph", id="a value made twice"
        ),
        pytest.param(twice, "'?w'?", id="an initializer twice"),
        pytest.param(as_sequence, "'x' is no numeric tensor", id="a sequence"),
        pytest.param(as_optional, "'x' is no numeric tensor", id="an optional"),
        pytest.param(lambda p: p.training_info.add(), "training_info; export", id="training info"),
        pytest.param(lambda p: rename(p, ""), "has an empty string", id="an empty name"),
        pytest.param(dead, "never", id="a dead node that reads nothing"),
    ],
)
def test_what_is_odd_gets_one_clear_error_or_works(change: Any, message: str) -> None:
    file = changed(change)
    if message == "never":
        same_as_the_product(file)
        return
    with pytest.raises(InvalidGraph, match=message) as raised_:
        load(file)
    assert raised_.value.message.startswith("model")
    assert "\n" not in raised_.value.message


def test_a_frozen_front_may_have_what_has_no_gradient() -> None:
    """int8 products and a fused operator of ONNX Runtime before the only weight that trains."""
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        node("MatMulInteger", ["xq", "q", "xz"], ["hi"]),
        node("Cast", ["hi"], ["hf"], to=FLOAT),
        node("Mul", ["hf", "xs"], ["h"]),
        node("FastGelu", ["h"], ["g"], domain="com.microsoft"),
        node("MatMul", ["g", "w"], ["logits"]),
    ]
    q = np.random.default_rng(0).integers(-9, 9, (4, 5)).astype(np.int8)
    file = with_foreign(model(nodes, X, LOGITS, {"q": q, "w": normal(2, 5, 3)}))
    loaded = load(file)
    assert loaded.names == ("w",)
    assert loaded.frozen == {"q": "int8, which has no gradient"}
    x, y = normal(3, 6, 4), np.array([0, 2, 1, 1, 0, 2])
    front = onnx.load_model_from_string(file)
    front.graph.output.append(onnx.ValueInfoProto(name="g"))
    (g,) = onnxruntime.InferenceSession(front.SerializeToString()).run(["g"], {"x": x})
    close(gradient(loaded, x, y), slope(loaded, g, y))
    graph = gradient_graph(loaded, 6).graph
    assert sum(n.op_type == "MatMulInteger" for n in graph.node) == 1


def test_a_fused_operator_that_a_weight_has_a_part_in_is_refused_with_the_way_out() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Gelu", ["h"], ["logits"], domain="com.microsoft")]
    with pytest.raises(
        InvalidGraph, match=r"operator Gelu .* of domain 'com.microsoft'; .* naming parameters"
    ):
        load(with_foreign(model(nodes, X, LOGITS, {"w": W})))
