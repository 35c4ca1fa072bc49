"""Bodies of requests to models: JSON, bytes behind it, and answers in the same form."""

from __future__ import annotations

import json
import re
import struct

import numpy as np
import pytest

from aggregator.http.infer_body import InferWishes, answer_of, request_of, split
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.open_inference import InferenceResponse, NamedTensor

NOTHING = memoryview(b"")
X = {"name": "x", "datatype": "INT32", "shape": [2], "data": [1, 2]}


def read(binary=b"", **said):
    return request_of("m", "3", {"inputs": [X], **said}, memoryview(binary))


def binary_input(name, size, **more):
    return {"name": name, "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": size}, **more}


def test_json_and_bytes_are_told_apart():
    body = bytearray(b'{"inputs":[]}\0\1')
    head, rest = split(body, "13")
    assert (bytes(head), bytes(rest)) == (b'{"inputs":[]}', b"\0\1")
    assert bytes(split(body, None)[0]) == bytes(body)
    for wrong in ("16", "-1", "1e1", "", "٣", "9" * 30):
        with pytest.raises(InvalidArgument, match="Inference-Header-Content-Length is"):
            split(body, wrong)


def test_inputs_of_both_kinds_are_read_in_their_order():
    said = [binary_input("a", 4), X, binary_input("b", 4)]
    request, wishes = read(struct.pack("<ff", 1.5, 2.5), inputs=said, id="q1", parameters={"priority": 2})
    assert (request.model, request.version, request.id, request.parameters) == (
        "m",
        "3",
        "q1",
        {"priority": 2},
    )
    a, x, b = request.inputs
    assert (bytes(a.data), bytes(b.data)) == (struct.pack("<f", 1.5), struct.pack("<f", 2.5))
    assert x.data.tolist() == [1, 2]
    assert a.parameters == {}
    assert wishes == InferWishes({}, False)


def test_outputs_are_wanted_as_bytes_or_json():
    outputs = [
        {"name": "y", "parameters": {"binary_data": True, "classification": 2}},
        {"name": "z", "parameters": {"binary_data": False}},
        {"name": "w"},
    ]
    request, wishes = read(outputs=outputs, parameters={"binary_data_output": True})
    assert [one.name for one in request.outputs] == ["y", "z", "w"]
    assert request.outputs[0].parameters == {"classification": 2}
    assert request.parameters == {}
    assert wishes == InferWishes({"y": True, "z": False}, True)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"inputs": None}, "Unable to parse 'inputs'"),
        ({"inputs": [1]}, "Unable to parse 'inputs'"),
        ({"inputs": [X] * 2000}, "bound tensors"),
        ({"inputs": [{**X, "name": 1}]}, "Unable to parse 'name' of input 0"),
        ({"inputs": [{**X, "datatype": None}]}, "Unable to parse 'datatype' of input 'x'"),
        ({"inputs": [{**X, "shape": [-1]}]}, "Unable to parse 'shape' of input 'x'"),
        ({"inputs": [{**X, "shape": [True]}]}, "Unable to parse 'shape'"),
        ({"inputs": [{**X, "shape": [2.0]}]}, "Unable to parse 'shape'"),
        ({"inputs": [{**X, "shape": [1] * 40}]}, "Unable to parse 'shape'"),
        ({"inputs": [{**X, "shape": "2"}]}, "Unable to parse 'shape'"),
        ({"inputs": [{"name": "x", "datatype": "INT32", "shape": [2]}]}, "object member 'data' of input 'x'"),
        ({"parameters": {"a": "x" * 5000}}, "'a' of the request: a parameter is a string of at most 4,096"),
        ({"inputs": [{**X, "parameters": []}]}, "Unable to parse 'parameters' of input 'x'"),
        ({"inputs": [{**X, "parameters": {"a": [1]}}]}, "parameter 'a' of input 'x'"),
        ({"inputs": [binary_input("a", 4)]}, "unexpected size for input 'a', expecting 4 bytes"),
        ({"inputs": [binary_input("a", -1)]}, "binary_data_size of input 'a' is -1"),
        ({"inputs": [binary_input("a", True)]}, "binary_data_size of input 'a' is True"),
        ({"inputs": [binary_input("a", 0, data=[1])]}, "send one of both"),
        ({"parameters": {"timeout": 10**400}}, "parameter 'timeout' of the request has 1329 bits"),
        ({"inputs": [{**X, "parameters": {"a": -(1 << 63) - 1}}]}, "parameter 'a' of input 'x' has 64 bits"),
        ({"outputs": [{"name": "y", "parameters": {"a": 1 << 64}}]}, "parameter 'a' of output 'y' has 65"),
        ({"outputs": {}}, "Unable to parse 'outputs'"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "binary_data of output 'y' is '1'"),
        ({"parameters": {"binary_data_output": "yes"}}, "binary_data_output is 'yes'"),
        ({"id": 7}, "Unable to parse 'id' of the request"),
    ],
)
def test_what_is_no_request_is_refused(said, why):
    with pytest.raises(InvalidArgument, match=re.escape(why)):
        read(**said)


def test_bytes_that_are_nobodys_are_refused():
    with pytest.raises(InvalidArgument, match="unexpected additional input data for model 'm': 1 bytes"):
        read(b"\0\0\0\0\0", inputs=[binary_input("a", 4)])
    with pytest.raises(InvalidArgument, match="no JSON object"):
        request_of("m", "", [], NOTHING)
    with pytest.raises(InvalidArgument, match="non-existing object member 'inputs'"):
        request_of("m", "", {}, NOTHING)


def test_an_input_in_shared_memory_is_left_to_who_knows_of_regions():
    request, _ = read(inputs=[{**X, "data": None, "parameters": {"shared_memory_region": "r"}}])
    assert request.inputs[0].data is None
    assert request.inputs[0].parameters == {"shared_memory_region": "r"}


def response(**arrays):
    names = {"int32": "INT32", "float32": "FP32", "object": "BYTES"}
    outputs = tuple(NamedTensor(n, names[a.dtype.name], a.shape, a) for n, a in arrays.items())
    return InferenceResponse("m", "1", "q", {"exact": True}, outputs)


def test_an_answer_is_json_bytes_or_both():
    y, z = np.array([[1, 2]], np.int32), np.array([1.5], np.float32)
    answer = answer_of(response(y=y, z=z), InferWishes({"z": True}, False))
    body = b"".join(answer.pieces)
    assert answer.size == len(body)
    said = json.loads(body[: answer.header])
    assert (said["model_name"], said["model_version"]) == ("m", "1")
    assert (said["id"], said["parameters"]) == ("q", {"exact": True})
    assert said["outputs"] == [
        {"name": "y", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]},
        {"name": "z", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
    ]
    assert body[answer.header :] == z.tobytes()

    plain = answer_of(response(y=y), InferWishes({}, False))
    assert plain.header is None
    assert json.loads(b"".join(plain.pieces))["outputs"][0]["data"] == [1, 2]

    words = np.array([b"ab", b""], object)
    packed = answer_of(response(w=words), InferWishes({}, True))
    body = b"".join(packed.pieces)
    assert body[packed.header :] == b"\2\0\0\0ab\0\0\0\0"


def test_a_long_answer_in_json_is_written_as_it_is_sent():
    long = np.arange(100_000, dtype=np.int32)
    answer = answer_of(response(y=long), InferWishes({}, False))
    assert (answer.size, answer.header) == (None, None)
    pieces = list(answer.pieces)
    assert max(map(len, pieces)) < 128 * 1024
    assert json.loads(b"".join(pieces))["outputs"][0]["data"] == long.tolist()


def test_an_answer_that_json_cannot_say_is_refused_before_anything_is_sent():
    with pytest.raises(InvalidArgument, match="NaN or infinity"):
        answer_of(response(z=np.array([np.nan], np.float32)), InferWishes({}, False))
