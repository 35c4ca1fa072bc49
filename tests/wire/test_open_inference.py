"""The protocol's messages as bytes: what protobuf makes of the same, and what is refused."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument, InvalidTensor, MessageTooLarge
from edge_attention.core.messages.open_inference import (
    InferenceResponse,
    NamedTensor,
    RequestedOutput,
    StreamedInference,
)
from edge_attention.wire import open_inference as wire
from edge_attention.wire import services
from edge_attention.wire.codec import MESSAGE_LIMIT
from protos.edge_attention.open_inference.v2 import open_inference_pb2 as pb

DECODE = wire.MODEL_INFER.request.decode


def request(raw=(), inputs=1, **fields):
    made = pb.ModelInferRequest(model_name="m", raw_input_contents=raw, **fields)
    for index in range(inputs):
        made.inputs.add(name=f"x{index}", datatype="INT32", shape=[2])
    return made


@given(
    st.text(max_size=9),
    st.lists(st.binary(max_size=99), max_size=9),
    st.dictionaries(st.text(max_size=3), st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text()),
)
def test_a_request_is_read_as_protobuf_reads_it(id, raw, parameters):
    message = request(raw, len(raw), id=id, model_version="3")
    message.outputs.add(name="y").parameters["classification"].int64_param = 2
    for name, value in parameters.items():
        wire._fill_parameter(message.parameters[name], value)
    found = DECODE(message.SerializeToString())
    assert (found.model, found.version, found.id, found.parameters) == ("m", "3", id, parameters)
    assert found.outputs == (RequestedOutput("y", {"classification": 2}),)
    assert [(one.name, one.datatype, one.shape) for one in found.inputs] == [
        (f"x{index}", "INT32", (2,)) for index in range(len(raw))
    ]
    assert [bytes(one.data) for one in found.inputs] == raw


def test_raw_tensors_may_come_before_and_between_the_rest():
    head = pb.ModelInferRequest(model_name="m").SerializeToString()
    one = request(inputs=1).SerializeToString()
    raw = pb.ModelInferRequest(raw_input_contents=[b"a", b"b"]).SerializeToString()
    other = pb.ModelInferRequest()
    other.inputs.add(name="z", datatype="BYTES", shape=[1])
    found = DECODE(raw[:3] + head + one + raw[3:] + other.SerializeToString())
    assert [(one.name, bytes(one.data)) for one in found.inputs] == [("x0", b"a"), ("z", b"b")]


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(InvalidArgument, MessageTooLarge):
        DECODE(data)


CONTENTS = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(1 << 15), 1]),
    "INT32": ("int_contents", [-(1 << 31), 1]),
    "INT64": ("int64_contents", [-(1 << 63), 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, (1 << 32) - 1]),
    "UINT64": ("uint64_contents", [0, (1 << 64) - 1]),
    "FP32": ("fp32_contents", [0.5, -1]),
    "FP64": ("fp64_contents", [0.1, -1]),
    "BYTES": ("bytes_contents", [b"", b"ab"]),
}


def typed(datatype, field, values):
    message = pb.ModelInferRequest(model_name="m", id="7")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[2])
    getattr(tensor.contents, field).extend(values)
    return message.SerializeToString()


@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_contents(datatype):
    field, values = CONTENTS[datatype]
    (tensor,) = DECODE(typed(datatype, field, values)).inputs
    assert isinstance(tensor.data, np.ndarray)
    assert tensor.data.tolist() == values


@pytest.mark.parametrize(
    ("datatype", "field", "values", "why"),
    [
        ("INT8", "int_contents", [128], "past what INT8 holds"),
        ("UINT16", "uint_contents", [1 << 16], "past what UINT16 holds"),
        ("FP16", "fp32_contents", [1.0], "FP16 and BF16 have no typed contents"),
        ("INT32", "fp32_contents", [1.0], "unexpected explicit tensor data for input tensor 'x'"),
        ("BOGUS", "int_contents", [1], "of type 'BOGUS'"),
    ],
)
def test_contents_of_another_type(datatype, field, values, why):
    data = typed(datatype, field, values)
    with pytest.raises(InvalidTensor, match=why):
        DECODE(data)
    # On a stream it is that request's answer.
    refused = wire.MODEL_STREAM_INFER.request.decode(data)
    assert refused.id == "7"
    assert re.search(why, str(refused.refused))


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (request([b"a"], 2), "unable to find data for input tensor 'x1' for model 'm'"),
        (request([b"a", b"b"], 1), "has 2 tensors for model 'm', and the request has 1 inputs"),
        (request([], 1), "unable to find data for input tensor 'x0'"),
    ],
)
def test_raw_tensors_and_inputs_go_together(message, why):
    with pytest.raises(InvalidArgument, match=why):
        DECODE(message.SerializeToString())


def test_raw_and_typed_together():
    message = request([b"a" * 8])
    message.inputs[0].contents.int_contents.extend([1, 2])
    with pytest.raises(InvalidArgument, match="contents field must not be specified when using raw_input"):
        DECODE(message.SerializeToString())


def test_a_message_of_no_end_of_fields_is_not_walked():
    with pytest.raises(MessageTooLarge, match="MESSAGE_FIELDS"):
        DECODE(b"\x3a\x00" * (wire.MESSAGE_FIELDS + 1))
    with pytest.raises(InvalidArgument, match="has 4096 tensors"):
        DECODE(b"\x3a\x00" * wire.MESSAGE_FIELDS)


def test_what_is_not_raw_has_a_limit_of_its_own():
    large = request([b"\0" * (2 * MESSAGE_LIMIT)])
    assert len(DECODE(large.SerializeToString()).inputs[0].data) == 2 * MESSAGE_LIMIT
    large.id = "x" * MESSAGE_LIMIT
    with pytest.raises(MessageTooLarge, match="all but raw tensors has"):
        DECODE(large.SerializeToString())


def test_an_answer_is_as_protobuf_writes_it():
    strings = np.empty(1, object)
    strings[0] = b"two"
    tensors = (
        NamedTensor("y", "FP32", (1, 2), np.array([[1, 2]], np.float32)),
        NamedTensor("z", "BYTES", (1,), strings, {"k": True}),
    )
    answer = InferenceResponse("m", "1", "id", {"exact": False}, tensors)
    found = pb.ModelInferResponse.FromString(wire.MODEL_INFER.response.encode(answer))
    assert (found.model_name, found.model_version, found.id) == ("m", "1", "id")
    assert not found.parameters["exact"].bool_param
    assert [(one.name, one.datatype, list(one.shape)) for one in found.outputs] == [
        ("y", "FP32", [1, 2]),
        ("z", "BYTES", [1]),
    ]
    assert list(found.raw_output_contents) == [np.array([1, 2], "<f4").tobytes(), b"\3\0\0\0two"]
    streamed = wire.MODEL_STREAM_INFER.response.encode(StreamedInference(answer, "why"))
    message = pb.ModelStreamInferResponse.FromString(streamed)
    assert message.infer_response == found
    assert message.error_message == "why"


def test_the_messages_are_those_that_every_client_has():
    """Numbers, types and names of fields are those of `tritonclient`; both live in one process."""
    theirs = pytest.importorskip("tritonclient.grpc.service_pb2")
    configs = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    compared = 0
    for name, ours in pb.DESCRIPTOR.message_types_by_name.items():
        other = theirs.DESCRIPTOR.message_types_by_name.get(name)
        compared += _same(ours, other or configs.DESCRIPTOR.message_types_by_name[name])
    assert compared > 150
    enum = configs.DESCRIPTOR.enum_types_by_name["DataType"].values_by_name
    for name, value in pb.DESCRIPTOR.enum_types_by_name["DataType"].values_by_name.items():
        assert enum[name].number == value.number
    service = theirs.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {method.path for method in wire.METHODS} == {
        f"/{service.full_name}/{method.name}" for method in service.methods
    }


def _same(ours, theirs):
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        assert (other.number, other.type, other.is_repeated) == (field.number, field.type, field.is_repeated)
    inner = sum(_same(one, theirs.nested_types_by_name[one.name]) for one in ours.nested_types)
    return len(ours.fields) + inner


def test_reflection_tells_of_the_protocol_by_its_own_names():
    pool = wire.described([services.FLEET.name, wire.OPEN_INFERENCE.name])
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    assert {method.name for method in service.methods} == {method.name for method in wire.METHODS}
    infer = service.methods_by_name["ModelStreamInfer"]
    assert (infer.client_streaming, infer.server_streaming) == (True, True)
    assert infer.input_type.full_name == "inference.ModelInferRequest"
    answer = infer.output_type.fields_by_name["infer_response"].message_type
    assert answer.fields_by_name["parameters"].message_type.full_name.startswith(
        "inference.ModelInferResponse."
    )
    assert pool.FindServiceByName(services.FLEET.name).methods
