"""Tasks framed by hand: protobuf's bytes to the letter, and whatever protobuf reads is read the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import ONEOFS

from edge_attention.core.errors import Damaged, EdgeAttentionError, InvalidArgument, MessageTooLarge
from edge_attention.core.messages.link import Cancel, Credit, Heartbeat
from edge_attention.core.messages.program import Call, Contribution, Drop, Fault, Program, Return, Run, Stored
from edge_attention.core.tensors import Array, Encoded, Encoding
from edge_attention.wire import checksum, link, task_frames
from edge_attention.wire.codec import Codec
from protos.edge_attention.v1 import link_pb2

FROM_NODE = Codec[Any](link.FromNode, link_pb2.ConnectRequest, ONEOFS["ConnectRequest"], sealed=True)
TO_NODE = Codec[Any](link.ToNode, link_pb2.ConnectResponse, ONEOFS["ConnectResponse"], sealed=True)
PAIRS = [(link.from_node, FROM_NODE), (link.to_node, TO_NODE)]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=140)
DTYPES = [np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_, np.float16]
DOUBLES = st.floats() | st.just(0.0) | st.just(-0.0)


@st.composite
def arrays(draw: st.DrawFn) -> Array | Encoded:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=3) | st.just([200]))
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    if draw(st.booleans()):
        array = array.T
    if dtype is np.float32 and draw(st.booleans()):
        return Encoded(array, draw(st.sampled_from(Encoding)))
    return array


RANGES = st.tuples(st.integers(0, 1 << 40), st.integers(0, 300)).map(lambda at: range(at[0], at[0] + at[1]))
TENSORS = st.dictionaries(TEXTS, arrays(), max_size=3)
BLOCKS = st.lists(
    st.sampled_from(
        [
            Run("ab" * 32, {"q": Stored("task/q"), "lo": np.arange(3)}, {"out": "task/out"}),
            Run("cd" * 32, {"k": Stored("context/1/k", range(2, 5))}, {}),
            Return("task/out", "out"),
            Return("task/out", "half", Encoding.FLOAT16),
            Drop(("task/", "context/2/"), 3),
            Drop(("",)),
        ]
    ),
    max_size=4,
).map(tuple)
NUMBERS = st.integers(0, 2**64 - 1) | st.integers(0, 300)
PROGRAMS = st.builds(
    Program, TEXTS, TEXTS, RANGES, BLOCKS, NUMBERS, st.none() | DOUBLES, TENSORS, st.just(()), TEXTS
)
SOME = st.binary(max_size=40) | st.just(bytes(200))
CALLS = st.builds(Call, TEXTS, TEXTS, RANGES, NUMBERS, st.none() | DOUBLES, SOME, SOME, TEXTS, SOME)
CONTRIBUTIONS = st.builds(
    Contribution, TEXTS, TEXTS, RANGES, NUMBERS, st.integers(0, 2**32 - 1), TENSORS, st.just(()),
    st.booleans(),
    st.none() | st.just(Fault("Internal", "it fell")), DOUBLES, DOUBLES,
)  # fmt: skip


def plain(value: Any) -> Any:
    """`value` so that `==` compares it: arrays by their bytes, NaN by its bits."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes(), value.flags.writeable
    if isinstance(value, float):
        return np.float64(value).tobytes()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return type(value).__name__, [plain(getattr(value, name)) for name in names]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return value


def read(codec: Codec[Any], data: bytes) -> Any:
    try:
        return plain(codec.decode(data))
    except EdgeAttentionError as error:
        return type(error), error.message


@given(CONTRIBUTIONS)
def test_a_contribution_is_what_protobuf_writes_and_reads(contribution: Contribution) -> None:
    data = link.from_node.encode(contribution)
    assert data == FROM_NODE.encode(contribution)
    assert read(link.from_node, data) == read(FROM_NODE, data)


@given(PROGRAMS)
def test_a_program_is_what_protobuf_writes_and_reads(program: Program) -> None:
    data, protobufs = link.to_node.encode(program), TO_NODE.encode(program)
    # Not byte for byte: protobuf writes the entries of a map in an order of its own, another each time.
    assert len(data) == len(protobufs)
    assert read(TO_NODE, data) == read(TO_NODE, protobufs)
    for _ in range(2):  # the second time its end is known
        assert read(link.to_node, data) == read(TO_NODE, data)


@given(CALLS)
def test_a_call_is_what_protobuf_writes_and_reads(call: Call) -> None:
    data = link.to_node.encode(call)
    assert data == TO_NODE.encode(call)
    assert read(link.to_node, data) == read(TO_NODE, data) == plain(call)


@pytest.mark.parametrize(("ours", "protobufs"), PAIRS)
@given(message=PROGRAMS | CALLS | CONTRIBUTIONS, data=st.data())
def test_what_nobody_would_write_is_read_as_protobuf_reads_it(
    ours: Codec[Any], protobufs: Codec[Any], message: Program | Call | Contribution, data: st.DataObject
) -> None:
    """Bytes changed, taken out, put in and said twice, and the checksum right all the same."""
    whole = (link.from_node if isinstance(message, Contribution) else link.to_node).encode(message)
    read(ours, whole)
    changed = bytearray(whole[: -checksum.TRAILER])
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(changed)) | st.integers(0, min(40, len(changed))))
        some = data.draw(st.binary(max_size=3) | st.sampled_from([b"\x80\x00", b"\x0a\x00", b"\x42\x00"]))
        changed[at : at + data.draw(st.integers(0, 3))] = some
    if data.draw(st.booleans()) and len(changed) > 3:
        # So that the length of what is in it fits again.
        inner = bytes(changed[2 if changed[1] < 0x80 else 3 :])
        inner += data.draw(st.sampled_from([b"", b"\x0a\x01x", b"\x42\x00", b"\x52\x01y", b"\x99\x01"]))
        changed = bytearray(whole[:1] + task_frames.varint(len(inner)) + inner)
    sealed = checksum.seal(bytes(changed))
    for _ in range(2):
        assert read(ours, sealed) == read(protobufs, sealed)


@pytest.mark.parametrize(("ours", "protobufs"), PAIRS)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_read_as_protobuf_reads_them(
    ours: Codec[Any], protobufs: Codec[Any], data: bytes
) -> None:
    for sent in (data, *(checksum.seal(kind + data) for kind in (b"", b"\x1a", b"\x32"))):
        assert read(ours, sent) == read(protobufs, sent)


def test_a_flipped_bit_is_damage_whatever_it_hits() -> None:
    tensors = {"q": np.ones((2, 3), np.float32)}
    whole = link.to_node.encode(Program("t", "s", range(3), (Return("task/q", "q"),), 1, 2.0, tensors))
    for at in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        assert read(link.to_node, bytes(damaged)) == read(TO_NODE, bytes(damaged))
        assert read(link.to_node, bytes(damaged))[0].__name__ == "Damaged"


@pytest.mark.parametrize("version", [-1, 2**64])
def test_a_number_past_its_field_cannot_be_sent(version: int) -> None:
    with pytest.raises(InvalidArgument, match="cannot be sent"):
        link.to_node.encode(Program("t", "", range(0), (), version))
    with pytest.raises(InvalidArgument, match="cannot be sent"):
        link.to_node.encode(Call("t", "", range(0), version))
    with pytest.raises(InvalidArgument, match="cannot be sent"):
        link.from_node.encode(Contribution("t", "", range(0), version, 0))
    with pytest.raises(InvalidArgument, match="cannot be sent"):
        link.from_node.encode(Contribution("t", "", range(0), 0, version << 31))


def test_what_is_past_the_limit_of_a_message_is_refused() -> None:
    large = {"q": np.zeros(1 << 20, np.float32)}
    for codec, message in (
        (link.to_node, Program("t", "", range(0), (), 0, None, large)),
        (link.to_node, Call("t", "", range(0), slots=large["q"].tobytes())),
        (link.from_node, Contribution("t", "", range(0), 0, 0, large)),
    ):
        with pytest.raises(MessageTooLarge):
            codec.encode(message)  # type: ignore[arg-type]


def test_an_end_that_says_more_than_instructions_is_not_kept() -> None:
    """Protobuf lets the last of two fields count: a second task in an end would be the next one's."""
    first = link.to_node.encode(Program("t-1", "s", range(3), (Return("task/q", "q"),)))
    inner = first[2 : -checksum.TRAILER] + b"\x0a\x02t9"
    for task in ("t-1", "t-2"):
        body = inner.replace(b"t-1", task.encode())
        sent = checksum.seal(b"\x1a" + task_frames.varint(len(body)) + body)
        assert link.to_node.decode(sent).task_id == "t9"  # type: ignore[union-attr]


def test_what_is_kept_has_a_bound() -> None:
    codec = link.to_node
    assert isinstance(codec, task_frames.ProgramCodec)
    for n in range(3 * task_frames._HEADERS):
        tensors = {f"n{n}": np.ones(n + 1, np.float32)}
        codec.decode(codec.encode(Program("t", "", range(0), (Return(f"task/{n}", "x"),), 0, None, tensors)))
    assert len(codec._ends) <= task_frames._HEADERS
    assert len(task_frames._headers) <= task_frames._HEADERS


def test_other_messages_are_left_to_protobuf() -> None:
    for codec, message in ((link.to_node, Cancel("t")), (link.from_node, Heartbeat(1, 2, 3))):
        assert codec.decode(codec.encode(message)) == message  # type: ignore[arg-type]
    assert isinstance(link.from_node.decode(link.from_node.encode(Credit(1, 2))), Credit)


def test_programs_of_one_mapping_of_tensors_are_written_as_those_of_their_own() -> None:
    """It is encoded once; another mapping, equal or not, is another."""
    shared = {"task/q": np.arange(6, dtype=np.float32)}
    others = ({"task/q": np.zeros(6, np.float32)}, {}, {"task/q": np.zeros(1 << 15, np.float32)})
    for tensors in (shared, shared, *others, shared, dict(shared)):
        program = Program("t.0.1", "s", range(3), (Return("task/q", "q"),), tensors=tensors)
        found = link.to_node.decode(link.to_node.encode(program))
        assert found.tensors.keys() == tensors.keys()
        for name, array in tensors.items():
            np.testing.assert_array_equal(found.tensors[name], array)


@pytest.mark.parametrize("transposed", [False, True])
def test_large_ones_are_the_same_bytes_as_protobufs_and_come_back(transposed: bool) -> None:
    array = np.arange(60_000, dtype=np.float32).reshape(200, 300)
    sent = array.T if transposed else array
    contribution = Contribution("1.0.1", "s", range(0, 2), 0, 0, {"y": sent}, final=True)
    data = link.from_node.encode(contribution)
    assert data == FROM_NODE.encode(contribution)
    np.testing.assert_array_equal(link.from_node.decode(data).tensors["y"], sent)

    call = Call("1.0.1", "s", range(0, 2), program=b"p" * 32, slots=sent.tobytes())
    data = link.to_node.encode(call)
    assert data == TO_NODE.encode(call)
    assert bytes(link.to_node.decode(data).slots) == sent.tobytes()
    with pytest.raises(Damaged):
        link.to_node.decode(data[:100_000] + bytes([data[100_000] ^ 1]) + data[100_001:])


def test_what_is_large_of_a_contribution_lies_in_its_message_and_what_is_small_does_not() -> None:
    large, small = np.arange(60_000, dtype=np.float32), np.arange(6, dtype=np.float32)
    tensors = {"large": large, "small": small, "half": Encoded(large, Encoding.FLOAT16)}
    data = link.from_node.encode(Contribution("1.0.1", "s", range(0, 2), 0, 0, tensors, final=True))
    found = link.from_node.decode(data).tensors
    within = np.frombuffer(data, np.uint8)
    assert {name: np.shares_memory(array, within) for name, array in found.items()} == {
        "large": True, "small": False, "half": False,
    }  # fmt: skip
    np.testing.assert_array_equal(found["large"], large)
    assert not found["large"].flags.writeable


def test_slots_in_pieces_are_the_same_bytes_as_in_one() -> None:
    first, second = np.arange(60_000, dtype=np.float32), np.arange(5, dtype=np.int64)
    pieces = (first.view(np.uint8).data, second.tobytes())
    call = Call("1.0.1", "s", range(0, 2), program=b"p" * 32, slots=pieces, prepared=b"q")
    whole = dataclasses.replace(call, slots=b"".join(pieces))
    for known in (False, True):
        codec = link.to_node
        assert isinstance(codec, task_frames.ProgramCodec)
        assert codec.encode_call(call, known) == codec.encode_call(whole, known)
    assert TO_NODE.encode(call) == TO_NODE.encode(whole) == link.to_node.encode(call)
