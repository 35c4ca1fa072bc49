"""The node link on the wire: what the daemons put on `EdgeLinkService` and take off it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from edge_attention.core.errors import InvalidProgram
from edge_attention.core.messages.link import (
    Cancel,
    Chunk,
    Credit,
    DownloadRequest,
    FromNode,
    Heartbeat,
    HeartbeatAck,
    Register,
    Registered,
    ToNode,
    UploadChunk,
    Uploaded,
)
from edge_attention.core.messages.program import (
    Append,
    Batch,
    Call,
    Contribution,
    Drop,
    Instruction,
    PreparedProgram,
    Program,
    Repeat,
    Return,
    Run,
    Stored,
    Value,
)
from edge_attention.wire import codec
from edge_attention.wire.codec import FIELDS, Codec
from edge_attention.wire.frames import FrameCodec
from edge_attention.wire.methods import Method, Service
from edge_attention.wire.parts import Counter, Malformed
from edge_attention.wire.task_frames import ContributionCodec, ProgramCodec
from edge_attention.wire.tensors import decode_range, decode_tensor, encode_range, encode_tensor
from protos.edge_attention.v1 import link_pb2, program_pb2


def _fill_value(message: Any, value: Value) -> None:
    if isinstance(value, np.ndarray):
        encode_tensor(value, message.inline)
        return
    message.stored = value.name
    if value.tiles is not None:
        encode_range(value.tiles, message.tiles)


def _read_value(message: Any) -> Value:
    match message.WhichOneof("source"):
        case "stored":
            tiles = decode_range(message.tiles) if message.HasField("tiles") else None
            return Stored(message.stored, tiles)
        case "inline":
            return decode_tensor(message.inline)
    raise InvalidProgram("a value names neither a stored tensor nor an inline one")


codec.special(Value, _fill_value, _read_value)
codec.union(
    Instruction,
    {
        Run: "run",
        Append: "append",
        Batch: "batch",
        Repeat: "repeat",
        Return: "return_value",
        Drop: "drop",
    },
)

_put_block, _get_block = codec.repeated("instructions", Instruction)
_written: OrderedDict[int, tuple[tuple[Instruction, ...], bytes]] = OrderedDict()
_read: OrderedDict[bytes, tuple[Instruction, ...]] = OrderedDict()
_RECENT, _RECENT_BYTES = 256, 8192


def _block(value: tuple[Instruction, ...]) -> bytes:
    """Recipes send the same instructions over and over, with other tensors: they are encoded once."""
    known = _written.get(id(value))
    if known is not None and known[0] is value:
        return known[1]
    block = program_pb2.Program()
    _put_block(block, value)
    data: bytes = block.SerializeToString()
    if len(data) <= _RECENT_BYTES:
        # Kept with the value, so that nothing else gets its id meanwhile.
        _written[id(value)] = (value, data)
        if len(_written) > _RECENT:
            _written.popitem(last=False)
    return data


def _put_instructions(message: Any, value: tuple[Instruction, ...]) -> None:
    message.MergeFromString(_block(value))


def _get_instructions(message: Any) -> tuple[Instruction, ...]:
    """The same on the other side: instructions are frozen and their arrays read-only, so tasks share them."""
    codec.require_readable(message.instructions)
    # With their number: an empty one, which is refused, adds nothing else.
    parts = [part.SerializeToString(deterministic=True) for part in message.instructions]
    key = b"%d " % len(parts) + b"".join(parts)
    value = _read.get(key)
    if value is None:
        value = _get_block(message)
        if len(key) <= _RECENT_BYTES:
            _read[key] = value
            if len(_read) > _RECENT:
                _read.popitem(last=False)
    return value


# Program's own, by its field's name: a Repeat's body is `body`, and is part of them.
codec.named_field(Program, "instructions", _put_instructions, _get_instructions)


def _put_slots(message: Any, value: bytes | tuple[bytes | memoryview, ...]) -> None:
    message.slots = b"".join(value) if isinstance(value, tuple) else value


codec.named_field(Call, "slots", _put_slots, lambda message: message.slots)

from_node: Codec[FromNode] = ContributionCodec(
    FromNode,
    link_pb2.ConnectRequest,
    {Register: "register", Heartbeat: "heartbeat", Contribution: "contribution", Credit: "credit"},
    sealed=True,
    parts=1 << 19,
    fields=FIELDS,
)
to_node = ProgramCodec(
    ToNode,
    link_pb2.ConnectResponse,
    {
        Registered: "registered",
        HeartbeatAck: "heartbeat_ack",
        Program: "program",
        Call: "call",
        Cancel: "cancel",
        Credit: "credit",
    },
    sealed=True,
    parts=1 << 18,
    fields=FIELDS,
    block=_block,
)

prepared_program = Codec[PreparedProgram](
    PreparedProgram, program_pb2.PreparedProgram, parts=1 << 18, fields=FIELDS
)
"""The bytes that a prepared program is known by are those it was sent as, whoever wrote them."""

download_request = Codec[DownloadRequest](DownloadRequest, link_pb2.DownloadRequest, sealed=True)
download_chunk = FrameCodec(Chunk, link_pb2.DownloadResponse, sealed=True)
upload_chunk = FrameCodec(UploadChunk, link_pb2.UploadRequest, sealed=True)
upload_response = Codec[Uploaded](Uploaded, link_pb2.UploadResponse, sealed=True)

LINK = Service("edge_attention.v1.EdgeLinkService")
CONNECT = Method(LINK, "Connect", from_node, to_node, streams_request=True, streams_response=True, raw=True)
DOWNLOAD = Method(LINK, "Download", download_request, download_chunk, streams_response=True)
UPLOAD = Method(LINK, "Upload", upload_chunk, upload_response, streams_request=True)


_OF_TASKS: tuple[tuple[Any, str, Counter], ...] = (
    (link_pb2.ConnectRequest, "contribution", Counter(link_pb2.ConnectRequest.DESCRIPTOR)),
    (link_pb2.ConnectResponse, "call", Counter(link_pb2.ConnectResponse.DESCRIPTOR)),
)


def task_of(data: bytes) -> str:
    """The task a message speaks of, though the rest of it be damaged; "" if it cannot be told.

    It may be a contribution, or a program or a call: a program's field has a contribution's number.
    """
    for kind, field, counter in _OF_TASKS:
        try:
            if counter.passes(data, FIELDS) and (task_id := getattr(kind.FromString(data), field).task_id):
                return str(task_id)
        except (DecodeError, Malformed):
            continue
    return ""
