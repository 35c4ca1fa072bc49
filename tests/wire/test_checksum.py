"""Every message ends with a checksum over all of it: no flipped bit passes for what was sent."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import METHODS, of_codec, same

from aggregator.trust.trust import Trust
from edge_attention.core.errors import Damaged, EdgeAttentionError
from edge_attention.core.messages.attention import DropContextRequest
from edge_attention.core.messages.link import Heartbeat, HeartbeatAck, UploadChunk, Uploaded
from edge_attention.core.messages.trust import EnrolRequest, Issued, RenewRequest
from edge_attention.wire import checksum, link, services, trust
from edge_attention.wire.codec import Codec
from edge_attention.wire.frames import FrameCodec
from protos.edge_attention.v1 import attention_pb2, link_pb2, program_pb2

ALL = {**METHODS, **{m.path: m for m in (trust.ENROL, trust.RENEW)}}
CODECS = {f"{path}:{side}": getattr(m, side) for path, m in ALL.items() for side in ("request", "response")}
each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
ISSUED = Issued(b"c", b"i", "n", "node")
TRUST = {
    "EnrolRequest": EnrolRequest("eaj_x", b"csr", "n"),
    "EnrolResponse": trust.EnrolResponse(ISSUED),
    "RenewRequest": RenewRequest(b"csr"),
    "RenewResponse": trust.RenewResponse(ISSUED),
}


def drawn(codec, data):
    known = TRUST.get(codec._message.DESCRIPTOR.name)
    return known if known is not None else data.draw(of_codec(codec))


def flips(sent: bytes, bits=range(8)):
    for at in range(len(sent)):
        for bit in bits:
            yield sent[:at] + bytes([sent[at] ^ 1 << bit]) + sent[at + 1 :]


def test_every_message_of_every_call_has_one_and_answers_and_the_link_insist():
    assert Trust, "what serves the two calls of trust"
    for name, codec in CODECS.items():
        field = codec._message.DESCRIPTOR.fields_by_name["checksum"]
        assert (field.number, field.has_presence) == (2047, True), name
        assert codec.sealed == (name.endswith(":response") or "EdgeLinkService" in name), name


@each_codec
@settings(max_examples=3)
@given(data=st.data())
def test_every_flipped_bit_is_found(codec, data):
    sent = codec.encode(drawn(codec, data))
    bits = range(8) if len(sent) < 300 else (0, 3, 7)
    for damaged in flips(sent, bits):
        with pytest.raises(Damaged, match="send it again"):
            codec.decode(damaged, sealed=True)


@each_codec
@settings(max_examples=20)
@given(data=st.data())
def test_more_damage_is_found_too(codec, data):
    sent = bytearray(codec.encode(drawn(codec, data)))
    before = bytes(sent)
    for _ in range(data.draw(st.integers(1, 8))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    sent = sent[: data.draw(st.integers(0, len(sent)))]
    if bytes(sent) != before:
        with pytest.raises(Damaged):
            codec.decode(bytes(sent), sealed=True)


def test_where_it_may_be_absent_a_wrong_one_is_damage():
    """Not quite all is found: a bit before the tag or in it can hide the checksum. Who says that all of a
    call's messages have one (SEALED_KEY) has all of it found."""
    sent = services.DROP_CONTEXT.request.encode(DropContextRequest("c" * 20))
    outcomes = set()
    for damaged in flips(sent[: -checksum.TRAILER - 1]):
        with pytest.raises(EdgeAttentionError) as caught:
            services.DROP_CONTEXT.request.decode(damaged + sent[-checksum.TRAILER - 1 :])
        outcomes.add(type(caught.value))
    assert Damaged in outcomes


@each_codec
@given(data=st.data())
@settings(max_examples=5)
def test_a_message_without_one_is_read_or_refused_as_the_codec_says(codec, data):
    value = drawn(codec, data)
    bare = codec.encode(value)[: -checksum.TRAILER]
    assert same(codec.decode(codec.encode(value)), codec.decode(bare, sealed=False))
    if codec.sealed:
        with pytest.raises(Damaged, match="no checksum"):
            codec.decode(bare)
    else:
        assert same(codec.decode(bare), codec.decode(bare, sealed=False))


def test_bytes_of_a_client_that_look_like_a_checksum_are_not_taken_for_one():
    """A tensor's data may end in any six bytes."""
    bare = attention_pb2.DropContextRequest(context="x" * 50).SerializeToString()
    bare = bare[:-6] + b"\xfd\x7f1234"
    with pytest.raises(EdgeAttentionError):  # no UTF-8: not Damaged, it was never said to have one
        services.DROP_CONTEXT.request.decode(bare)
    chunk = link_pb2.UploadRequest(digest="d", size=9, data=b"abc\xfd\x7f1234").SerializeToString()
    assert services.BULK_UPLOAD.request.decode(chunk) == UploadChunk("", "d", 0, 9, b"abc\xfd\x7f1234")


def test_it_is_what_protobuf_writes():
    sent = services.DROP_CONTEXT.request.encode(DropContextRequest("c"))
    message = attention_pb2.DropContextRequest.FromString(sent)
    assert message.SerializeToString() == sent
    assert message.checksum == zlib.crc32(sent[:-4])


def test_messages_inside_others_have_none_and_cannot_insist():
    with pytest.raises(TypeError, match=r"Program has no field `checksum`"):
        Codec(object, program_pb2.Program, sealed=True)
    assert not Codec(link.Program, program_pb2.Program)._checked
    with pytest.raises(TypeError, match="does not end with a checksum"):
        FrameCodec(Uploaded, link_pb2.Credit)


def test_damage_in_a_heartbeat_and_in_its_answer_is_damage():
    """The smallest messages of the link, all bits."""
    for codec, value in ((link.from_node, Heartbeat(1, 2, 3)), (link.to_node, HeartbeatAck(7))):
        for damaged in flips(codec.encode(value)):
            with pytest.raises(Damaged):
                codec.decode(damaged)


def test_the_page_says_how_to_compute_it():
    page = (Path(__file__).parents[2] / "docs/protocol.md").read_text(encoding="utf-8")
    code = page.split("## Checksums")[1].split("```python")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    bare = attention_pb2.DropContextRequest(context="c").SerializeToString()
    assert names["sealed"](bare) == services.DROP_CONTEXT.request.encode(DropContextRequest("c"))
    for data in flips(names["sealed"](bare)):
        assert names["intact"](data) is checksum.intact(data) is False
    assert names["intact"](names["sealed"](bare))
