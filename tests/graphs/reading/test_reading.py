"""What the reader refuses, and what it makes of what it takes."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from hostile import files, outside, wire
from hostile.files import FLOAT, model, node, value
from onnx import AttributeProto, SparseTensorProto, TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.attention import library
from edge_attention.graphs.onnx_file import parse
from edge_attention.graphs.reading import check_graph, read_graph, read_with_notes

ROOT = Path(__file__).resolve().parents[2]
X = [value("x", FLOAT, ["n"])]
Y = [value("y", FLOAT, None)]


def refused(made, match):
    data = made if isinstance(made, bytes) else made.SerializeToString()
    for read in (read_graph, check_graph, read_with_notes, parse):
        with pytest.raises(InvalidGraph, match=match) as raised:
            read(data, "this file")
        assert "this file" in raised.value.message
        assert raised.value.message.isprintable()


def one(op, inputs=("x",), outputs=("y",), domain="", **attributes):
    domains = [domain] if domain else []
    return model([node(op, list(inputs), list(outputs), domain=domain, **attributes)], X, Y, domains=domains)


# What is taken


@pytest.mark.parametrize("name", library.names())
def test_the_library_is_read(name):
    data = library.load(name)
    checked = read_graph(data, name)
    assert checked.digest == library.digest(name)
    assert (
        onnx.load_model_from_string(checked.data).graph.node == onnx.load_model_from_string(data).graph.node
    )


@pytest.mark.parametrize("path", sorted((ROOT / "graphs/data").glob("*.onnx")), ids=lambda path: path.stem)
def test_exports_of_pytorch_are_read(path):
    data = path.read_bytes()
    checked = read_graph(data, path.stem)
    before, after = (onnx.load_model_from_string(file).graph for file in (data, checked.data))
    assert after.initializer == before.initializer
    assert [(n.op_type, n.input, n.output, n.name) for n in after.node] == [
        (n.op_type, n.input, n.output, n.name) for n in before.node
    ]
    assert checked.nodes >= len(before.node)
    assert checked.inputs == tuple(value.name for value in before.input)
    assert checked.outputs == tuple(value.name for value in before.output)
    onnx.checker.check_model(checked.data, full_check=True)
    assert not any(n.metadata_props or n.doc_string for n in after.node)
    # The client's half goes on with what exporters note.
    notes = onnx.load_model_from_string(read_with_notes(data, path.stem)).graph
    assert [n.metadata_props for n in notes.node] == [n.metadata_props for n in before.node]


def test_the_digest_is_of_the_file_as_sent_and_the_data_is_written_anew():
    made = files.linear()
    made.doc_string, made.producer_name = "for nobody", "a tool"
    made.metadata_props.add(key="ort_config", value="{}")
    made.graph.doc_string = made.graph.node[0].doc_string = "stack trace"
    made.graph.initializer[0].doc_string = made.graph.input[0].doc_string = "here"
    made.graph.value_info.append(value("h", FLOAT, [3]))
    made.graph.input[0].type.denotation = "TENSOR"
    made.opset_import.add(domain="ai.onnx.training", version=1)
    data = made.SerializeToString()
    checked = read_graph(data, "it")
    assert checked.digest == hashlib.sha256(data).hexdigest()
    assert checked.operators == {("", "Gemm")}
    read = onnx.load_model_from_string(checked.data)
    assert read == files.linear()
    assert read_graph(checked.data, "again").data == checked.data


def test_a_field_given_twice_is_what_protobuf_makes_of_it():
    made = files.linear()
    again = made.SerializeToString() + wire.field(7, wire.field(2, b"renamed"))
    assert onnx.load_model_from_string(read_graph(again, "it").data).graph.name == "renamed"


def test_what_is_not_there_is_not_written():
    made = model([node("Relu", ["x"], ["y"])], X, Y)
    made.graph.output[0].ClearField("type")
    made.graph.input[0].type.tensor_type.ClearField("shape")
    read = onnx.load_model_from_string(read_graph(made.SerializeToString(), "it").data)
    assert read == made


def test_graphs_within_graphs_and_functions_are_counted():
    assert read_graph(files.looped().SerializeToString(), "it").nodes == 5
    inner = files.function("G", [node("Neg", ["a"], ["b"])])
    outer = files.function(
        "F", [node("G", ["a"], ["c"], domain="local"), node("G", ["c"], ["b"], domain="local")]
    )
    checked = read_graph(files.called(inner, outer).SerializeToString(), "it")
    assert checked.nodes == 1 + 2 * (1 + 1)
    assert checked.operators == {("local", "F"), ("local", "G"), ("", "Neg")}


def test_every_operator_of_onnx_is_listed_or_left_out_for_a_reason():
    from edge_attention.graphs.reading import operators

    left_out = {
        *("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),  # text
        *("ImageDecoder", "Scatter", "Upsample"),
        *("CausalConvWithState", "LinearAttention", "SwiGLU"),  # opset 27
        *("CastMap", "CategoryMapper", "DictVectorizer", "ZipMap"),
    }
    schemas = {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    for domain in ("", "ai.onnx.ml"):
        named = {name for of, name in schemas if of == domain}
        assert named - operators.OPERATORS[domain] == named & left_out
    for name in left_out - {"CausalConvWithState", "LinearAttention", "SwiGLU"}:
        assert name in str(operators.__doc__), name


# What is no graph


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no graph in it"),
        (b"not a graph", "not an ONNX file"),
        (b"\x00\x00\x00\x00ORTM", "own format"),
        (b"\xff" * 40, "not an ONNX file"),
        (b"\x3a\x05\x0a", "not an ONNX file"),
        (b"\x3a\x80", "not an ONNX file"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "not an ONNX file"),
        (wire.field(7, b"") + b"\x12\x02\xff\xfe", "no UTF-8"),
    ],
)
def test_bytes_that_are_no_file_are_refused(data, match):
    refused(data, match)


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_file_that_breaks_off_is_refused(cut):
    refused(files.linear().SerializeToString()[:-cut], "not an ONNX file|several|holds|no graph")


UNKNOWN = [wire.field(999, b"x"), wire.varint(999 << 3) + b"\x01", wire.varint(999 << 3 | 5) + b"\x00" * 4]


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_unknown_fields_are_refused_wherever_they_are(unknown):
    made = files.linear()
    refused(made.SerializeToString() + unknown, "field 999 in a Model")
    graph = made.graph.SerializeToString()
    refused(files.wrapped(made, graph + unknown), "field 999 in a Graph")
    for number, message, inner in (
        (1, "Node", made.graph.node[0]),
        (5, "Tensor", made.graph.initializer[0]),
        (11, "Value", made.graph.input[0]),
    ):
        data = wire.field(number, inner.SerializeToString() + unknown)
        refused(files.wrapped(made, graph + data), f"field 999 in a {message}")
    attribute = wire.field(5, made.graph.node[0].attribute[0].SerializeToString() + unknown)
    refused(files.wrapped(made, graph + wire.field(1, attribute)), "field 999 in a Attribute")


def test_a_field_in_another_form_and_a_group_are_refused():
    data = files.linear().SerializeToString()
    refused(data + wire.varint(7 << 3) + b"\x01", r"field 7 \(graph\) in another form")
    refused(data + wire.varint(9 << 3 | 3) + wire.varint(9 << 3 | 4), "a group")


# Data elsewhere


EXTERNAL = outside.places()
ELSEWHERE = "in other files|sparse|training_info"


@pytest.mark.parametrize("place", EXTERNAL)
def test_external_data_is_refused_wherever_it_is(place):
    refused(EXTERNAL[place], ELSEWHERE)


@pytest.mark.parametrize("place", EXTERNAL)
def test_external_data_is_refused_without_the_word_and_with_the_word_alone(place):
    """`data_location` alone, and `external_data` alone: each says that the data is elsewhere."""
    for field in ("data_location", "external_data"):
        made = type(EXTERNAL[place])()
        made.CopyFrom(EXTERNAL[place])
        for tensor in tensors_of(made):
            if tensor.external_data:
                tensor.ClearField(field)
        refused(made, ELSEWHERE)


def tensors_of(message):
    """Every tensor in a message, however deep."""
    if isinstance(message, TensorProto):
        yield message
    for field, given in message.ListFields():
        if field.message_type is not None:
            for item in given if field.is_repeated else [given]:
                yield from tensors_of(item)


TAGS = (0, 2, 3, 4, 5)


@pytest.mark.parametrize(("tag", "length"), [*itertools.product(TAGS, (0, 2, 3, 5)), (9, 0)])
def test_external_data_is_refused_however_it_is_written(tag, length):
    """An overlong tag of the key once got past a search for its bytes, and ONNX Runtime opened the file."""
    entry = wire.field(1, b"location", tag, length) + wire.field(2, b"secret.bin")
    tensor = (
        b"\x08\x02\x10\x01"
        + wire.field(8, b"w")
        + wire.field(13, entry, tag, length)
        + wire.varint(14 << 3, tag)
        + wire.varint(1, length)
    )
    made = one("Relu")
    data = files.wrapped(made, made.graph.SerializeToString() + wire.field(5, tensor, tag, length))
    refused(data, "in other files|not an ONNX file")


def test_sparse_constants_are_refused():
    made = one("Relu")
    made.graph.sparse_initializer.append(SparseTensorProto())
    refused(made, "sparse initializers")
    body = helper.make_graph([node("Neg", ["x"], ["t"])], "b", [], [value("t", FLOAT, None)])
    body.sparse_initializer.append(files.sparse())
    refused(one("If", inputs=("c",), then_branch=body, else_branch=body), "sparse initializers")
    refused(one("Constant", inputs=(), sparse_value=files.sparse()), "sparse constant")
    several = one("Relu")
    several.graph.node[0].attribute.append(
        AttributeProto(name="s", type=AttributeProto.SPARSE_TENSORS, sparse_tensors=[files.sparse()])
    )
    refused(several, "sparse constant")


def test_a_segment_of_a_tensor_and_training_info_are_refused():
    made = files.linear()
    made.graph.initializer[0].segment.begin = 1
    refused(made, "segment")
    made = files.linear()
    made.training_info.add()
    refused(made, "training_info")


# Operators


@pytest.mark.parametrize(
    ("op", "domain"),
    [
        ("EPContext", "com.microsoft"),
        ("BeamSearch", "com.microsoft"),
        ("PagedAttention", "com.microsoft"),
        ("Tokenizer", "com.microsoft"),
        ("StringConcat", ""),
        ("ImageDecoder", ""),
        ("Upsample", "ai.onnx"),
        ("NoSuchThing", ""),
        ("", ""),
        ("ZipMap", "ai.onnx.ml"),
    ],
)
def test_operators_that_are_not_listed_are_refused_by_name(op, domain):
    refused(one(op, domain=domain), f"operator {op or '.without a name.'} .* is not among the operators")


def test_the_name_of_a_node_is_not_that_of_its_operator():
    refused(model([node("", ["x"], ["y"], name="Relu")], X, Y), "is not among the operators")


@pytest.mark.parametrize("domain", ["org.pytorch.aten", "com.microsoft.nchwc", "ai.onnx.training", "mine"])
def test_other_domains_are_refused(domain):
    refused(one("Conv", domain=domain), f"operator Conv .* is of domain '{domain}'")


def test_an_operator_is_refused_within_graphs_and_functions_too():
    body = helper.make_graph([node("StringConcat", ["x", "x"], ["t"])], "b", [], [value("t", FLOAT, None)])
    refused(one("If", inputs=("c",), then_branch=body, else_branch=body), "StringConcat")
    refused(files.called(files.function("F", [node("StringConcat", ["a", "a"], ["b"])])), "StringConcat")


def test_text_is_refused_everywhere():
    text = TensorProto.STRING
    word = helper.make_tensor("w", text, [1], [b"a"])
    refused(one("Cast", to=text), "makes text")
    refused(one("SequenceEmpty", inputs=(), dtype=text), "makes text")
    refused(one("Constant", inputs=(), value_string="a"), "makes text")
    refused(one("Constant", inputs=(), value_strings=["a"]), "makes text")
    refused(one("Constant", inputs=(), value=word), "is text")
    made = one("Relu")
    made.graph.initializer.append(word)
    refused(made, "is text")
    refused(model([node("Shape", ["x"], ["y"])], [value("x", text, [1])], Y), "input 'x' is text")
    sequence = helper.make_tensor_sequence_value_info("x", text, None)
    refused(model([node("SequenceLength", ["x"], ["y"])], [sequence], Y), "input 'x' is text")
    labels = one("LinearClassifier", domain="ai.onnx.ml", classlabels_strings=["a", "b"], coefficients=[1.0])
    refused(labels, "makes text")


def test_text_is_refused_through_the_attributes_of_functions():
    cast = node("Cast", ["a"], ["b"])
    cast.attribute.append(files.reference("to", "kind", AttributeProto.INT))
    one_deep = files.function("F", [cast], attributes=["kind"])
    assert read_graph(files.called(one_deep, kind=TensorProto.INT64).SerializeToString(), "it").nodes == 2
    refused(files.called(one_deep, kind=TensorProto.STRING), "makes text")
    call = node("F", ["a"], ["b"], domain="local")
    call.attribute.append(files.reference("kind", "outer", AttributeProto.INT))
    two_deep = files.function("G", [call], attributes=["outer"])
    refused(files.called(one_deep, two_deep, name="G", outer=TensorProto.STRING), "makes text")
    default = helper.make_attribute("kind", int(TensorProto.STRING))
    refused(files.called(files.function("F", [cast], attribute_protos=[default])), "makes text")


def test_types_that_are_no_tensors_of_numbers_are_refused():
    for kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128, 99, -1):
        made = files.linear()
        made.graph.input[0].type.tensor_type.elem_type = kind
        refused(made, "input 'x' is ")
    made = files.linear()
    made.graph.input[0].type.map_type.key_type = TensorProto.INT64
    refused(made, "is a map")
    made.graph.input[0].type.sparse_tensor_type.elem_type = FLOAT
    refused(made, "is a sparse_tensor")
    made.graph.input[0].type.opaque_type.name = "thing"
    refused(made, "is a opaque")


# Functions


def test_functions_that_call_themselves_are_refused():
    refused(files.called(files.function("F", [node("F", ["a"], ["b"], domain="local")])), "calls itself")
    one_calls = files.function("F", [node("G", ["a"], ["b"], domain="local")])
    other = files.function("G", [node("F", ["a"], ["b"], domain="local")])
    refused(files.called(one_calls, other), "calls itself")


def doubling(count):
    """Functions that each call the one before twice."""
    made = [files.function("F0", [node("Neg", ["a"], ["b"])])]
    for k in range(1, count):
        calls = [node(f"F{k - 1}", [a], [b], domain="local") for a, b in (("a", "c"), ("c", "b"))]
        made.append(files.function(f"F{k}", calls))
    return files.called(*made, name=f"F{count - 1}")


def test_functions_are_counted_as_often_as_they_are_called():
    assert read_graph(doubling(12).SerializeToString(), "it").nodes == 1 + (3 * 2**11 - 2)
    refused(doubling(30), "MAX_NODES")
    refused(doubling(60), "MAX_NODES|MAX_CALLS")


def test_a_chain_of_functions_is_bounded():
    made = [files.function("F0", [node("Neg", ["a"], ["b"])])]
    made += [
        files.function(f"F{k}", [node(f"F{k - 1}", ["a"], ["b"], domain="local")]) for k in range(1, 2000)
    ]
    refused(files.called(*made, name="F1999"), "MAX_CALLS")


def test_a_function_takes_no_operator_s_place():
    body = [node("Neg", ["a"], ["b"])]
    for domain in ("", "ai.onnx", "com.microsoft"):
        refused(files.called(files.function("Relu", body, domain=domain)), "is the operators'")
    refused(files.called(files.function("F", body), files.function("F", body)), "two functions 'F'")


def test_a_function_is_of_no_domain_where_onnx_runtime_has_operators():
    """It would run its own, which are not on the list: of a block's size they believe what a node says."""
    body = [node("Neg", ["a"], ["b"])]
    theirs = {schema.domain for schema in get_all_operator_schema()}
    assert "com.microsoft.nchwc" in theirs
    for domain in (*theirs, "ai.onnx.training", "com.microsoft.dml", "org.pytorch.aten"):
        made = files.called(files.function("ReorderInput", body, domain=domain), name="ReorderInput")
        made.graph.node[0].domain = domain
        refused(made, "is the operators'")
    exported = files.function("F", body, domain="pkg.onnxscript.torch_lib")
    assert read_graph(files.called(exported, files.function("F", body)).SerializeToString(), "it").nodes == 2


# Constants


def damaged(**fields):
    made = files.linear()
    made.graph.initializer[0].CopyFrom(
        TensorProto(name="w", **{"data_type": FLOAT, "dims": [4, 3], **fields})
    )
    return made


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"raw_data": b"1" * 47},
        {"raw_data": b"1" * 49},
        {"raw_data": b"1" * 48, "float_data": [1.0]},
        {"float_data": [1.0] * 11},
        {"float_data": [1.0] * 12, "int32_data": [1]},
        {"double_data": [1.0] * 12},
        {"int32_data": [1] * 12},
        {"raw_data": b"", "dims": []},
        {"raw_data": b"1" * 13, "data_type": TensorProto.INT4, "dims": [25, 2]},
        {"int32_data": [1] * 25, "data_type": TensorProto.INT4, "dims": [25]},
    ],
)
def test_a_constant_that_does_not_hold_what_its_shape_says_is_refused(fields):
    refused(damaged(**fields), "holds|holds text")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"dims": [-4, -3], "raw_data": b"1" * 48}, "negative dimension"),
        ({"dims": [1 << 32, 1 << 32], "raw_data": b""}, "MAX_ELEMENTS"),
        ({"dims": [0, 1 << 62, 1 << 62]}, "MAX_ELEMENTS"),
        ({"dims": [1] * 17, "raw_data": b"1" * 4}, "MAX_RANK"),
        ({"data_type": 0}, "element type 0"),
        ({"data_type": 14, "float_data": [1.0] * 24}, "complex"),
        ({"data_type": 77}, "element type 77"),
        ({"string_data": [b"a"]}, "holds text"),
    ],
)
def test_a_constant_of_a_shape_or_type_that_cannot_be_is_refused(fields, match):
    refused(damaged(**fields), match)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 5), np.float32),
        np.float64(3),
        np.array([True, False]),
        np.arange(5, dtype=np.uint64),
        np.arange(3, dtype=np.float16),
    ],
)
def test_constants_of_any_other_kind_are_taken(array):
    made = one("Relu")
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    made.graph.initializer.append(files.constant("raw", array))
    made.graph.initializer.append(helper.make_tensor("typed", kind, array.shape, array))
    read = onnx.load_model_from_string(read_graph(made.SerializeToString(), "it").data)
    assert read.graph.initializer == made.graph.initializer


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1])
def test_packed_constants_are_taken(kind):
    made = one("Relu")
    made.graph.initializer.append(TensorProto(name="a", data_type=kind, dims=[5], raw_data=b"123"))
    made.graph.initializer.append(TensorProto(name="b", data_type=kind, dims=[5], int32_data=[1, 2, 3]))
    read_graph(made.SerializeToString(), "it")


# Attributes and names


def test_an_attribute_has_one_value_of_a_known_type():
    for change in (
        {"type": AttributeProto.UNDEFINED},
        {"type": AttributeProto.INT, "f": 1.0},
        {"type": AttributeProto.INT, "i": 1, "ints": [1]},
        {"type": AttributeProto.INT, "i": 1, "g": onnx.GraphProto()},
        {"type": AttributeProto.INT, "ref_attr_name": "a"},
        {"type": AttributeProto.TENSOR},
        {"type": AttributeProto.GRAPH},
        {"type": AttributeProto.TYPE_PROTO},
    ):
        made = one("Relu")
        made.graph.node[0].attribute.append(AttributeProto(name="a", **change))
        refused(made, "attribute 'a' of operator Relu")
    relu = wire.field(1, b"x") + wire.field(4, b"Relu") + wire.field(5, wire.field(1, b"a") + b"\xa0\x01\x63")
    refused(files.wrapped(made, wire.field(1, relu)), "attribute 'a' of operator Relu .* has no type")
    made = one("Softmax", axis=1)
    made.graph.node[0].attribute.append(helper.make_attribute("axis", 0))
    refused(made, "an attribute twice")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "a\x00", "‮"])
def test_names_that_a_terminal_obeys_are_refused(name):
    refused(model([node("Relu", ["x"], ["y"], name=name)], X, Y), "cannot be printed")
    refused(model([node("Relu", ["x"], [name])], X, Y), "cannot be printed")
    refused(model([node("Relu", ["x"], ["y"])], [value(name, FLOAT, [1])], Y), "cannot be printed")
    refused(model([node("Relu", ["x"], ["y"])], [value("x", FLOAT, [name])], Y), "cannot be printed")
    refused(model([node("Relu", ["x"], ["y"])], X, Y, [(name, np.ones(2, np.float32))]), "cannot be printed")


# Bounds


def test_bounds_are_named():
    long = "n" * 1025
    refused(model([node("Relu", ["x"], ["y"], name=long)], X, Y), "MAX_NAME")
    refused(model([node("Sum", ["x"] * 8193, ["y"])], X, Y), "MAX_VALUES")
    many = one("Relu")
    many.graph.node[0].attribute.extend(helper.make_attribute(f"a{k}", k) for k in range(65))
    refused(many, "MAX_ATTRIBUTES")
    refused(model([node("Relu", ["x"], ["y"])] * 50_001, X, Y), "MAX_NODES")
    ranked = model([node("Relu", ["x"], ["y"])], [value("x", FLOAT, [1] * 17)], Y)
    refused(ranked, "MAX_RANK")
    refused(model([node("Relu", ["x"], ["y"])], [value("x", FLOAT, [1 << 41])], Y), "MAX_ELEMENTS")
    refused(model([node("Relu", ["x"], ["y"])], [value("x", FLOAT, [-1])], Y), "negative dimension")


def test_depth_is_bounded():
    def nested(depth):
        body = helper.make_graph([node("Neg", ["x"], ["t"])], "b", [], [value("t", FLOAT, None)])
        for _ in range(depth - 1):
            inner = node("If", ["c"], ["t"], then_branch=body, else_branch=helper.make_graph([], "e", [], []))
            body = helper.make_graph([inner], "b", [], [value("t", FLOAT, None)])
        return one("If", inputs=("c",), then_branch=body, else_branch=helper.make_graph([], "e", [], []))

    assert read_graph(nested(12).SerializeToString(), "it").nodes == 13
    refused(nested(13), "MAX_DEPTH")
    refused(nested(30), "MAX_NESTING")
    deep = b""
    for _ in range(100_000):
        deep = wire.field(6, b"")  # an attribute's graph, in a node, in a graph
    for _ in range(3000):
        deep = wire.field(1, wire.field(5, wire.field(6, deep)))
    refused(files.wrapped(files.linear(), deep), "MAX_NESTING")


def test_parts_and_packed_numbers_are_counted_before_they_are_parsed(monkeypatch):
    from edge_attention.graphs.reading import scan

    def parsed():
        raise AssertionError("it was parsed")

    monkeypatch.setattr(scan, "MAX_PARTS", 1000)
    monkeypatch.setattr(scan, "MAX_PACKED", 1000)
    monkeypatch.setattr(scan, "MAX_MESSAGES", 2000)
    monkeypatch.setattr("edge_attention.graphs.reading.reader.new_model", parsed)
    made = files.linear()
    refused(files.wrapped(made, b"\x0a\x00" * 501), "MAX_MESSAGES")
    refused(files.wrapped(made, b"\x6a\x00" * 1000), "MAX_PARTS")
    refused(files.wrapped(made, wire.field(5, b"\x08\x01" * 1001)), "MAX_PARTS")
    refused(files.wrapped(made, wire.field(5, wire.field(7, b"\x00" * 1001))), "MAX_PACKED")


@pytest.mark.parametrize("opset", [0, 12, 27])
def test_versions_are_bounded(opset):
    refused(model([node("Relu", ["x"], ["y"])], X, Y, opset=opset), f"opset {opset} is not supported")


def test_versions_of_other_domains_and_of_the_form_are_bounded():
    refused(model([node("Relu", ["x"], ["y"])], X, Y, ir_version=14), "ir_version 14")
    refused(model([node("Relu", ["x"], ["y"])], X, Y, ir_version=0), "ir_version 0")
    made = one("Gelu", domain="com.microsoft")
    made.opset_import[1].version = 7
    refused(made, "version 7 of domain 'com.microsoft'")
    made.opset_import[1].version = 1
    made.opset_import.add(domain="ai.onnx", version=20)
    refused(made, "imports domain '' twice")
