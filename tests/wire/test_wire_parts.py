"""The fields of a message are counted as protobuf reads them, before it does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument, MessageTooLarge
from edge_attention.core.messages.link import Credit, Register, Registered, Sequence
from edge_attention.core.messages.program import Drop, Program
from edge_attention.wire import checksum, link
from edge_attention.wire.codec import FIELDS, MESSAGE_LIMIT
from edge_attention.wire.parts import Counter, Malformed
from protos.edge_attention.v1 import link_pb2

COUNTER = Counter(link_pb2.ConnectResponse.DESCRIPTOR)


def walked(message):
    """How many fields protobuf finds: each of a list, an entry of a map with key and value."""
    count = 0
    for field, value in message.ListFields():
        if field.message_type is None:
            count += len(value) if field.is_repeated and field.type in (9, 12) else 1
        elif field.message_type.GetOptions().map_entry:
            for entry in value.values():
                count += 3 + (walked(entry) if hasattr(entry, "ListFields") else 0)
        else:
            for part in value if field.is_repeated else [value]:
                count += 1 + walked(part)
    return count


NAMES = st.text(min_size=1, max_size=3)


@st.composite
def messages(draw):
    message = link_pb2.ConnectResponse()
    program = message.program
    program.task_id = draw(st.text(max_size=200))
    program.version = draw(st.integers(0, 2**64 - 1))
    for shape in draw(st.lists(st.lists(st.integers(0, 2**40), max_size=5), max_size=3)):
        tensor = program.tensors.add()
        tensor.shape.extend(shape)
        tensor.data = draw(st.binary(max_size=200))
    blocks = [program.instructions]
    for depth in draw(st.lists(st.integers(0, 3), max_size=6)):
        part = blocks[min(depth, len(blocks) - 1)].add()
        if draw(st.booleans()):
            part.repeat.times = draw(st.integers(0, 3))
            blocks.append(part.repeat.body)
        else:
            part.run.graph = draw(NAMES)
            for name in draw(st.sets(NAMES, max_size=3)):
                part.run.inputs[name].stored = draw(NAMES)
                part.run.outputs[name] = draw(NAMES)
    return message


@given(messages())
def test_as_many_are_found_as_protobuf_finds(message):
    data, fields = message.SerializeToString(), walked(message)
    assert COUNTER.passes(data, fields)
    assert not fields or not COUNTER.passes(data, fields - 1)


@given(messages(), st.data())
def test_damaged_bytes_are_counted_or_refused(message, data):
    """Never another error; and what protobuf reads and this passes has no more fields."""
    damaged = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    most = data.draw(st.integers(0, 50))
    try:
        passes = COUNTER.passes(bytes(damaged), most)
    except Malformed:
        return
    if passes:
        try:
            read = link_pb2.ConnectResponse.FromString(bytes(damaged))
        except Exception:
            return
        assert walked(read) <= most + 3 * len(damaged)  # a map's entry may lack its key and its value
        assert sum(1 for _ in read.program.instructions) <= most


@pytest.mark.parametrize(
    "data",
    [
        b"\x0b\x0c",  # a group
        b"\x0a\x05\x01",  # more than there is
        b"\x1a\x02\x0a\x05",  # in a message, past its end
        b"\x80" * 11,
        b"\xff\xff\xff\xff\xff\x01\x00",  # a tag of more than 32 bits
        b"\x0e\x00",  # of a wire type that is none
    ],
)
def test_what_two_readers_may_read_differently_is_refused(data):
    with pytest.raises(Malformed):
        COUNTER.passes(data, 100)
    padding = b"\xd2\x05\x80\x80\x08" + bytes(1 << 17)  # a field nobody knows: few bytes are not counted
    with pytest.raises(InvalidArgument, match="are not a connect response"):
        link.to_node.decode(checksum.seal(padding + data))


def varint(number):
    return bytes([number & 127 | 128, *varint(number >> 7)]) if number > 127 else bytes([number])


def many(descriptor, path):
    """Bytes of a message with nothing but a list at `path`, of empty parts of two bytes each."""
    fields = []
    for name in path:
        fields.append(descriptor.fields_by_name[name])
        descriptor = fields[-1].message_type
    data = bytes([fields[-1].number << 3 | 2, 0]) * ((MESSAGE_LIMIT - 200) // 2)
    for field in fields[-2::-1]:
        data = bytes([field.number << 3 | 2]) + varint(len(data)) + data
    return checksum.seal(data)


def lists(descriptor, path=()):
    """The paths of all lists of texts and messages that a message may hold, five messages deep."""
    for field in descriptor.fields:
        here = (*path, field.name)
        if field.is_repeated and (field.message_type is not None or field.type in (9, 12)):
            yield here
        if field.message_type is not None and len(here) < 5:
            yield from lists(field.message_type, here)


BOTH = [(link_pb2.ConnectRequest, link.from_node), (link_pb2.ConnectResponse, link.to_node)]


@pytest.mark.parametrize(
    ("codec", "message", "path"),
    [(codec, message, path) for message, codec in BOTH for path in lists(message.DESCRIPTOR)],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_no_list_of_empty_parts_is_read_on_the_link(codec, message, path, monkeypatch):
    """Two million of them took protobuf 130 MB, and the loop of either daemon up to 1.3 s."""
    monkeypatch.setattr(codec, "_message", None)  # it is not asked
    with pytest.raises(MessageTooLarge, match="over 65,536 fields"):
        codec.decode(many(message.DESCRIPTOR, path))


def test_numbers_in_a_list_are_counted_before_they_are_read():
    message = link_pb2.ConnectRequest()
    message.register.datasets.add().columns.add().shape.extend([0] * 1_000_000)
    with pytest.raises(MessageTooLarge, match="too many parts"):
        link.from_node.decode(checksum.seal(message.SerializeToString()))


def test_the_largest_that_is_sent_passes():
    stored = range(16_384)  # all that a node stores
    sequences = tuple(Sequence(f"context/{n:08}/keys/0", 1 << 20) for n in stored)
    register = Register(1, "v", "n", "i", "s", "p", 1, 1, sequences=sequences)
    data = link.from_node.encode(register)
    assert len(data) > 1 << 18
    assert link.from_node.decode(data) == register
    drop = tuple(sequence.name for sequence in sequences)
    registered = Registered("s", 1.0, 1.0, False, Credit(1, 1), drop)
    assert link.to_node.decode(link.to_node.encode(registered)) == registered
    program = Program("t", "s", range(1), tuple(Drop((f"task/{n}",)) for n in range(10_000)))
    assert link.to_node.decode(link.to_node.encode(program)) == program
    assert FIELDS == 65_536
