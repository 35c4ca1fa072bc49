"""The codec: nothing is dropped, nothing a peer sends does more than raise an error of the catalogue."""

from __future__ import annotations

import dataclasses
import tracemalloc
from enum import Enum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import FILES, METHODS, ONEOFS, arrays, of_codec, pairs, same

from edge_attention.core.errors import EdgeAttentionError, InvalidArgument, InvalidTensor, MessageTooLarge
from edge_attention.core.messages import program
from edge_attention.core.messages.attention import AttendRequest, ContextSpec, CreateContextRequest
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.messages.link import Credit, Heartbeat, Register
from edge_attention.core.messages.table import MissingRule
from edge_attention.core.messages.training import MissingSamples, RunState
from edge_attention.core.tensors import DataType, Encoding
from edge_attention.wire import checksum, link, services
from edge_attention.wire.codec import MESSAGE_LIMIT, Codec
from protos.edge_attention.v1 import (
    attention_pb2,
    fleet_pb2,
    link_pb2,
    program_pb2,
    table_pb2,
    tensor_pb2,
    training_pb2,
)

CODECS = {
    f"{path}:{side}": getattr(m, side) for path, m in METHODS.items() for side in ("request", "response")
}
each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


@each_codec
@settings(max_examples=25)
@given(data=st.data())
def test_what_is_sent_arrives(codec, data):
    value = data.draw(of_codec(codec))
    assert same(value, codec.decode(codec.encode(value)))


def test_every_rpc_of_the_contract_is_a_method_with_its_messages_and_streams():
    declared = {
        f"/{service.full_name}/{rpc.name}": (
            rpc.input_type.name,
            rpc.output_type.name,
            rpc.client_streaming,
            rpc.server_streaming,
        )
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for rpc in service.methods
    }
    ours = {
        path: (
            m.request._message.DESCRIPTOR.name,
            m.response._message.DESCRIPTOR.name,
            m.streams_request,
            m.streams_response,
        )
        for path, m in METHODS.items()
    }
    assert ours == declared


def test_a_dataclass_and_its_message_have_the_same_fields():
    travelling = pairs()
    assert len(travelling) > 40
    for cls, message in travelling.items():
        assert {f.name for f in dataclasses.fields(cls)} == set(message.fields_by_name) - {"checksum"}, cls


def test_no_message_of_the_contract_is_left_without_a_dataclass():
    handled = {message.name for message in pairs().values()} | set(ONEOFS)
    special = {"Tensor", "Range", "Value", "AppendDatasetResponse"}
    declared = {name for file in FILES for name in file.DESCRIPTOR.message_types_by_name}
    assert handled | special == declared


def test_twins_are_twins():
    a, b = attention_pb2.AppendResponse.DESCRIPTOR, attention_pb2.AppendDatasetResponse.DESCRIPTOR
    fields = [{(f.name, f.number, f.type) for f in m.fields} for m in (a, b)]
    assert fields[0] == fields[1]


@pytest.mark.parametrize("name", ONEOFS)
def test_a_union_has_a_class_for_each_of_its_kinds(name):
    (message,) = (
        f.DESCRIPTOR.message_types_by_name[name] for f in FILES if name in f.DESCRIPTOR.message_types_by_name
    )
    oneof, *others = message.oneofs
    assert {other.name for other in others} <= {"_checksum"}
    kinds = {f.name for f in oneof.fields}
    assert set(ONEOFS[name].values()) == kinds == set(message.fields_by_name) - {"checksum"}


@pytest.mark.parametrize(
    ("cls", "enum"),
    [
        (DataType, tensor_pb2.DataType),
        (Encoding, tensor_pb2.Encoding),
        (NodeState, fleet_pb2.NodeState),
        (RunState, training_pb2.RunState),
        (MissingSamples, training_pb2.MissingSamples),
        (MissingRule, table_pb2.MissingRule),
    ],
)
def test_enums_are_numbered_as_in_the_contract(cls: type[Enum], enum):
    descriptor = enum.DESCRIPTOR
    prefix = "".join("_" + c if c.isupper() else c for c in descriptor.name).lstrip("_").upper()
    want = {f"{prefix}_UNSPECIFIED": 0} | {
        f"{prefix}_{m.name}": number for number, m in enumerate(cls, start=1)
    }
    assert {v.name: v.number for v in descriptor.values} == want


def test_an_enum_not_said_is_its_first_and_an_unknown_one_is_refused():
    codec = Codec[program.Return](program.Return, program_pb2.Return)
    assert codec.decode(program_pb2.Return(stored="a").SerializeToString()).encoding is Encoding.RAW
    with pytest.raises(InvalidArgument, match="Encoding has no value 9"):
        codec.decode(program_pb2.Return(encoding=9).SerializeToString())


def test_absent_and_zero_are_told_apart():
    queries = np.zeros((1, 1, 1), np.float32)
    codec = services.ATTEND.request
    for sent in (
        AttendRequest("c", queries),
        AttendRequest("c", queries, window=0, scale=0.0, deadline_seconds=0.0, until=0),
    ):
        came = codec.decode(codec.encode(sent))
        assert (came.window, came.scale, came.deadline_seconds, came.until, came.positions) == (
            sent.window,
            sent.scale,
            sent.deadline_seconds,
            sent.until,
            None,
        )


def decode_or_refuse(codec, data: bytes) -> None:
    """Decoding gives a value or an error of the catalogue with a sentence, and takes little memory."""
    said = "a value"
    tracemalloc.start()
    try:
        codec.decode(data)
    except EdgeAttentionError as error:
        said = error.message
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert 0 < len(said) < 1000
    assert peak < 2**20 + 100 * len(data)


@each_codec
@settings(max_examples=20)
@given(data=st.data())
def test_random_bytes_raise_only_the_catalogue(codec, data):
    decode_or_refuse(codec, checksum.seal(data.draw(st.binary(max_size=200))))


@each_codec
@settings(max_examples=25)
@given(data=st.data())
def test_damaged_messages_raise_only_the_catalogue(codec, data):
    """Damaged before their checksum was made: a peer with a defect, or a hostile one."""
    sent = bytearray(codec.encode(data.draw(of_codec(codec)))[: -checksum.TRAILER])
    for _ in range(data.draw(st.integers(1, 4))):
        if sent:
            sent[data.draw(st.integers(0, len(sent) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    decode_or_refuse(codec, checksum.seal(bytes(sent[: data.draw(st.integers(0, len(sent)))])))


@settings(max_examples=200)
@given(
    st.builds(
        tensor_pb2.Tensor,
        name=st.text(st.characters(codec="utf-8"), max_size=100),
        data_type=st.integers(-1, 10),
        shape=st.lists(
            st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 2**31, 2**32, 2**40, 2**62, 2**63 - 1]), max_size=10
        ),
        encoding=st.integers(0, 3),
        data=st.binary(max_size=64),
    )
)
def test_tensors_of_any_shape_raise_only_the_catalogue(tensor):
    message = attention_pb2.AttendRequest(context="c", queries=tensor)
    decode_or_refuse(services.ATTEND.request, message.SerializeToString())


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_ranges_are_ranges_or_refused(start, stop):
    data = program_pb2.Program(coverage={"start": start, "stop": stop}).SerializeToString()
    codec = Codec[program.Program](program.Program, program_pb2.Program)
    if 0 <= start <= stop:
        assert codec.decode(data).coverage == range(start, stop)
        len(codec.decode(data).coverage)
    else:
        with pytest.raises(InvalidArgument, match="not a range"):
            codec.decode(data)


def test_programs_nested_deep_are_refused_or_read_but_never_overflow():
    refused = 0
    for depth in (10, 40, 60, 500):
        inner = program_pb2.Instruction(drop={"stored": ["x"]}).SerializeToString()
        for _ in range(depth):
            repeat = program_pb2.Repeat(times=1).SerializeToString() + _field(2, inner)
            inner = _field(4, repeat)
        data = _field(3, _field(8, inner))  # ConnectResponse.program.instructions
        try:
            value = link.to_node.decode(checksum.seal(data))
        except EdgeAttentionError:
            refused += 1
        else:
            assert isinstance(value, program.Program)
    assert refused in range(1, 4)


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited field, by hand."""
    size, n = b"", len(data)
    while True:
        size += bytes([n & 127 | (128 if n > 127 else 0)])
        n >>= 7
        if not n:
            return bytes([number << 3 | 2]) + size + data


@pytest.mark.parametrize(
    ("codec", "what"), [(link.from_node, "connect request"), (link.to_node, "connect response")]
)
def test_an_empty_union_and_one_of_a_newer_kind_are_refused(codec, what):
    with pytest.raises(InvalidArgument, match="empty or of an unknown kind"):
        codec.decode(checksum.seal(b""))
    with pytest.raises(InvalidArgument, match="unknown kind"):
        codec.decode(checksum.seal(_field(14, b"")))
    with pytest.raises(InvalidArgument, match=what):
        codec.decode(checksum.seal(b"\xff"))


def test_a_tensor_sent_twice_is_refused():
    tensor = tensor_pb2.Tensor(name="w", data_type=1, shape=[0])
    data = link_pb2.ConnectRequest(contribution={"tensors": [tensor, tensor]}).SerializeToString()
    with pytest.raises(InvalidArgument, match="'w' is in the message twice"):
        link.from_node.decode(checksum.seal(data))


def test_a_value_without_a_source_is_refused():
    with pytest.raises(EdgeAttentionError, match="neither"):
        link.to_node.decode(checksum.seal(_field(3, _field(8, _field(2, _field(2, b""))))))


def test_what_nobody_foresaw_in_a_message_is_an_error_of_the_catalogue(monkeypatch):
    codec = Codec[program.Return](program.Return, program_pb2.Return)

    def fail(message):
        raise RecursionError

    monkeypatch.setattr(codec, "_converters", (None, fail))
    with pytest.raises(InvalidArgument, match="the return cannot be read: RecursionError"):
        codec.decode(b"")


@given(arrays())
def test_inline_values_keep_their_bits(array):
    sent = program.Program("t", "s", range(1), (program.Append("task/x", array),))
    (came,) = link.to_node.decode(link.to_node.encode(sent)).instructions
    assert same(array, came.source)


def test_a_message_past_the_limit_is_refused_on_both_sides():
    codec = services.BULK_UPLOAD.request
    large = link.UploadChunk("", "d", 0, 1, b"x" * MESSAGE_LIMIT)
    with pytest.raises(MessageTooLarge, match=f"upload request has .* at most {MESSAGE_LIMIT:,}"):
        codec.encode(large)
    by_hand = link_pb2.UploadRequest(data=large.data).SerializeToString()
    with pytest.raises(MessageTooLarge):
        codec.decode(by_hand)
    fits = dataclasses.replace(large, data=b"x" * (MESSAGE_LIMIT - 100))
    assert codec.decode(codec.encode(fits)) == fits


@pytest.mark.parametrize(
    "spec",
    [
        ContextSpec("c", -1, 1, 1, 1),
        ContextSpec("c", 2**40, 1, 1, 1),
        ContextSpec("\ud800", 1, 1, 1, 1),
        ContextSpec("c", "many", 1, 1, 1),  # type: ignore[arg-type]
    ],
)
def test_what_a_field_cannot_hold_is_refused_before_it_is_sent(spec):
    with pytest.raises(InvalidArgument, match="create context request cannot be sent"):
        services.CREATE_CONTEXT.request.encode(CreateContextRequest(spec))


def test_unknown_fields_of_a_newer_peer_are_passed_over():
    sent = link.from_node.encode(Heartbeat(1, 2, 3))
    newer = checksum.seal(sent[: -checksum.TRAILER] + _field(200 & 15, b""))
    assert link.from_node.decode(newer) == Heartbeat(1, 2, 3)


def test_sixty_four_bits_survive():
    credit = Credit(2**64 - 1, 2**32 - 1)
    assert link.from_node.decode(link.from_node.encode(credit)) == credit
    register = Register(1, "v", "n", "i", "s", "p", 1, 2**64 - 1)
    assert link.from_node.decode(link.from_node.encode(register)) == register


def test_a_required_tensor_that_is_absent_is_refused():
    with pytest.raises(InvalidTensor, match="queries"):
        services.ATTEND.request.decode(attention_pb2.AttendRequest(context="c").SerializeToString())


def varint(number):
    return bytes([number & 127 | 128, *varint(number >> 7)]) if number > 127 else bytes([number])


def many(message, path, size):
    """Bytes of a message with nothing but a list at `path`, of empty parts of two bytes each."""
    fields, descriptor = [], message.DESCRIPTOR
    for name in path:
        fields.append(descriptor.fields_by_name[name])
        descriptor = fields[-1].message_type
    data = bytes([fields[-1].number << 3 | 2, 0]) * (size // 2)
    for field in fields[-2::-1]:
        data = bytes([field.number << 3 | 2]) + varint(len(data)) + data
    return data


@pytest.mark.parametrize("path", [("job", "encoders"), ("job", "head", "trainable")], ids=str)
def test_the_parts_of_a_request_are_counted_before_they_are_read(path):
    """Two bytes each: four megabytes of them held an aggregator's event loop for 47 s."""
    for method in (services.PLAN_RUN, services.START_RUN):
        message = method.request._message
        with pytest.raises(MessageTooLarge, match="too many parts"):
            method.request.decode(many(message, path, services.RUN_LIMIT - 100))
        with pytest.raises(MessageTooLarge, match="has at most 1,048,576"):
            method.request.decode(many(message, path, services.RUN_LIMIT))


def test_the_parts_of_what_a_node_sends_are_counted():
    for path in (("register", "sequences"), ("contribution", "tensors")):
        data = many(link_pb2.ConnectRequest, path, MESSAGE_LIMIT - 100)
        with pytest.raises(MessageTooLarge, match="too many parts"):
            link.from_node.decode(checksum.seal(data))


def test_the_dimensions_of_a_tensor_are_counted_before_they_are_read():
    message = attention_pb2.AttendRequest()
    message.queries.data_type = 1
    message.queries.shape.extend([0] * 1_000_000)
    with pytest.raises(InvalidTensor, match="1,000,000 dimensions"):
        services.ATTEND.request.decode(message.SerializeToString())
