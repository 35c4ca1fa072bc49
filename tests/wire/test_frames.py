"""Frames by hand: protobuf's bytes to the letter, and whatever protobuf reads is read the same."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import Damaged, InvalidArgument, MessageTooLarge
from edge_attention.core.messages.link import Chunk, Credit, UploadChunk, Uploaded
from edge_attention.wire import checksum
from edge_attention.wire.codec import MESSAGE_LIMIT, Codec
from edge_attention.wire.frames import FrameCodec
from edge_attention.wire.link import download_chunk
from edge_attention.wire.services import BULK_UPLOAD
from protos.edge_attention.v1 import link_pb2

NUMBERS = st.integers(0, 2**64 - 1) | st.integers(0, 300)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
UPLOADS = st.builds(UploadChunk, TEXTS, TEXTS, NUMBERS, NUMBERS, st.binary(max_size=300))
DOWNLOADS = st.builds(Chunk, NUMBERS, NUMBERS, st.binary(max_size=300))
upload_chunk = BULK_UPLOAD.request
PROTOBUF = Codec[UploadChunk](UploadChunk, link_pb2.UploadRequest)


@given(UPLOADS)
def test_an_upload_chunk_is_what_protobuf_writes_and_reads(chunk: UploadChunk) -> None:
    data = upload_chunk.encode(chunk)
    assert data == PROTOBUF.encode(chunk)
    assert upload_chunk.decode(data) == chunk


@given(DOWNLOADS)
def test_a_download_chunk_is_what_protobuf_writes_and_reads(chunk: Chunk) -> None:
    data = download_chunk.encode(chunk)
    message = link_pb2.DownloadResponse(offset=chunk.offset, size=chunk.size, data=chunk.data)
    assert data == checksum.seal(message.SerializeToString())
    message.checksum = int.from_bytes(data[-4:], "little")
    assert data == message.SerializeToString()
    assert download_chunk.decode(data) == chunk


def read(codec: Codec[UploadChunk], data: bytes) -> object:
    try:
        return codec.decode(data)
    except (InvalidArgument, Damaged) as error:
        return error.message


@given(st.binary(max_size=40))
def test_any_bytes_are_read_as_protobuf_reads_them(data: bytes) -> None:
    assert read(upload_chunk, data) == read(PROTOBUF, data)


@given(UPLOADS, st.data())
def test_damaged_frames_are_read_as_protobuf_reads_them(chunk: UploadChunk, data: st.DataObject) -> None:
    frame = bytearray(upload_chunk.encode(chunk))
    for _ in range(data.draw(st.integers(0, 3))):
        if frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(frame[: data.draw(st.integers(0, len(frame)))])
    assert read(upload_chunk, cut) == read(PROTOBUF, cut)


@pytest.mark.parametrize(
    "data",
    [
        b"\x7a\x01x\x18\x05",  # the payload first
        b"\x18\x05\x18\x06",  # a field twice: the last counts
        b"\x7a\x01x\x7a\x01y",
        b"\x18\x85\x00",  # 5, longer than it must be
        b"\x18" + b"\xff" * 9 + b"\x01",
        b"\x18" + b"\xff" * 10 + b"\x01",
        b"\xa0\x06\x01\x18\x05",  # field 100, unknown
        b"\x30\x01",
        b"\x0a\x01\xff",  # no UTF-8
        b"\x1a\x00",  # another wire type
        b"\x7a\x05abc",
        b"\x18",
    ],
)
def test_what_protobuf_would_not_write_is_left_to_it(data: bytes) -> None:
    assert read(upload_chunk, data) == read(PROTOBUF, data)


def test_the_payload_may_be_any_buffer() -> None:
    frame = download_chunk.encode(Chunk(1, 2, memoryview(b"abc")[1:]))  # type: ignore[arg-type]
    assert download_chunk.decode(frame) == Chunk(1, 2, b"bc")


@pytest.mark.parametrize(
    "chunk",
    [
        UploadChunk("s", "d", -1, 0, b""),
        UploadChunk("s", "d", 0, 2**64, b""),
        UploadChunk("\ud800", "d", 0, 0, b""),
        UploadChunk("s", "d", 0, 0, "text"),  # type: ignore[arg-type]
        UploadChunk("s", None, 0, 0, b""),  # type: ignore[arg-type]
        UploadChunk("s", "d", 1.5, 0, b""),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_its_field_is_refused(chunk: UploadChunk) -> None:
    with pytest.raises(InvalidArgument, match="the upload request cannot be sent"):
        upload_chunk.encode(chunk)


def test_a_message_has_a_limit_both_ways() -> None:
    room = MESSAGE_LIMIT - len(upload_chunk.encode(UploadChunk("", "", 1, 1, bytes(MESSAGE_LIMIT - 100)))) + 1
    largest = UploadChunk("", "", 1, 1, bytes(MESSAGE_LIMIT - 101 + room))
    data = upload_chunk.encode(largest)
    assert len(data) == MESSAGE_LIMIT
    assert upload_chunk.decode(data) == largest
    with pytest.raises(MessageTooLarge):
        upload_chunk.encode(UploadChunk("", "", 1, 1, bytes(MESSAGE_LIMIT)))
    with pytest.raises(MessageTooLarge):
        upload_chunk.decode(data + b"\x00")


@dataclass(frozen=True)
class Other:
    """Of a message that holds messages."""

    session: str = ""


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Uploaded, link_pb2.UploadResponse),  # no bytes
        (Credit, link_pb2.Credit),
        (Other, link_pb2.Registered),  # messages in it
    ],
)
def test_messages_of_another_form_are_not_for_frames(cls: type, message: type) -> None:
    with pytest.raises(TypeError):
        FrameCodec(cls, message)
