"""Every codec of the contract, and values of its dataclasses made from their type hints."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from enum import Enum
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from edge_attention.core.messages import program
from edge_attention.core.tensors import Array, Encoded, Encoding
from edge_attention.wire import link, services
from edge_attention.wire.methods import Method
from protos.edge_attention.v1 import (
    attention_pb2,
    ensembles_pb2,
    fleet_pb2,
    inference_pb2,
    link_pb2,
    program_pb2,
    table_pb2,
    tensor_pb2,
    training_pb2,
)

FILES = (
    attention_pb2,
    fleet_pb2,
    ensembles_pb2,
    inference_pb2,
    link_pb2,
    program_pb2,
    table_pb2,
    tensor_pb2,
    training_pb2,
)

METHODS: dict[str, Method] = {
    found.path: found
    for module in (link, services)
    for found in vars(module).values()
    if isinstance(found, Method)
}

ONEOFS: dict[str, dict[type, str]] = {
    # What a message with one `oneof` holds, by class: written a second time, so that the tables in
    # wire/ are compared with something.
    "ConnectRequest": {
        link.Register: "register",
        link.Heartbeat: "heartbeat",
        program.Contribution: "contribution",
        link.Credit: "credit",
    },
    "ConnectResponse": {
        link.Registered: "registered",
        link.HeartbeatAck: "heartbeat_ack",
        program.Program: "program",
        program.Call: "call",
        link.Cancel: "cancel",
        link.Credit: "credit",
    },
    "WatchRunResponse": {services.TrainingRound: "round", services.TrainingRun: "run"},
    "DeployResponse": {services.DeployProgress: "progress", services.DeployedModel: "model"},
    "Instruction": {
        program.Run: "run",
        program.Append: "append",
        program.Batch: "batch",
        program.Repeat: "repeat",
        program.Return: "return_value",
        program.Drop: "drop",
    },
}
UNIONS = {
    "ConnectRequest": program.Contribution | link.FromNode,
    "ConnectResponse": link.ToNode,
    "WatchRunResponse": services.RunEvent,
    "DeployResponse": services.DeployEvent,
}

_INTS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}
_text = st.text(st.characters(codec="utf-8"), max_size=5)
_ranges = st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)).map(lambda t: range(min(t), max(t)))


@st.composite
def arrays(draw) -> np.ndarray:
    dtype = draw(st.sampled_from(["<f4", "<f8", "i1", "u1", "<i4", "<i8", "?", "<f2"]))
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype == "?":
        data = bytearray(b & 1 for b in data)
    # Any bits at all: NaNs with payloads, subnormals. They must arrive as they were.
    array = np.frombuffer(bytes(data), dtype).reshape(shape)
    return draw(st.sampled_from([array, np.asfortranarray(array), array[..., ::-1] if array.ndim else array]))


# Numbers their encoding does not change.
halves = st.lists(st.floats(width=16, allow_nan=False), max_size=4).map(
    lambda x: Encoded(np.array(x, np.float32), Encoding.FLOAT16)
) | st.lists(st.integers(0, 2**16 - 1), max_size=4).map(
    lambda x: Encoded(
        np.nan_to_num(np.array([n << 16 for n in x], np.uint32).view(np.float32)), Encoding.BFLOAT16
    )
)


def is_array(hint: Any) -> bool:
    return hint == Array or typing.get_origin(hint) is np.ndarray


def values(
    hint: Any, field: FieldDescriptor | None, message: Descriptor | None, depth: int = 2
) -> st.SearchStrategy:
    """Values of type `hint` that a field (or, for a message's own type, `message`) can carry."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return st.lists(values(args[0], field, message, depth), max_size=2).map(tuple)
    if origin is collections.abc.Mapping:
        if is_array(args[1]) or args[1] == Array | Encoded:
            return st.dictionaries(_text, values(args[1], None, None), max_size=2)
        entry = field.message_type.fields_by_name["value"]
        return st.dictionaries(_text, values(args[1], entry, entry.message_type, depth), max_size=2)
    if is_array(hint):
        return arrays()
    if hint == Array | Encoded:
        return arrays() | halves
    if hint is program.Stored or hint == program.Value:
        stored = st.builds(program.Stored, _text, st.none() | _ranges)
        return stored if hint is program.Stored else stored | arrays()
    if message is not None and message.name in ONEOFS:
        kinds = [
            (cls, message.fields_by_name[name].message_type) for cls, name in ONEOFS[message.name].items()
        ]
        flat = [k for k in kinds if depth > 0 or k[0] is not program.Repeat]
        return st.one_of([instances(cls, child, depth - 1) for cls, child in flat])
    if origin in (typing.Union, types.UnionType) and bytes in args:  # may be sent in pieces; arrives in one
        return values(bytes, field, message, depth)
    if origin in (typing.Union, types.UnionType) and type(None) in args:
        rest = [arg for arg in args if arg is not type(None)]
        return st.none() | values(typing.Union[tuple(rest)], field, message, depth)  # noqa: UP007
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(*_INTS[field.type])
    if hint is float:
        return st.floats(width=32 if field.type == FieldDescriptor.TYPE_FLOAT else 64, allow_nan=False)
    if hint is str:
        return _text
    if hint is bytes:
        return st.binary(max_size=20)
    if hint is range:
        return _ranges
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    assert dataclasses.is_dataclass(hint), hint
    return instances(hint, message, depth)


def instances(cls: type, message: Descriptor, depth: int = 2) -> st.SearchStrategy:
    hints = typing.get_type_hints(cls)
    parts = {}
    for f in dataclasses.fields(cls):
        field = message.fields_by_name[f.name]
        parts[f.name] = values(hints[f.name], field, field.message_type, depth)
    return st.builds(cls, **parts)


def of_codec(codec: Any) -> st.SearchStrategy:
    """Values a codec carries. The class is found in the codec's type argument or the table above."""
    message = codec._message.DESCRIPTOR
    if message.name in ONEOFS:
        return values(UNIONS.get(message.name), None, message)
    return instances(codec.cls, message)


def pairs() -> dict[type, Descriptor]:
    """Each dataclass that travels, and its message: found from the methods down."""
    found: dict[type, Descriptor] = {}

    def visit(hint: Any, message: Descriptor | None) -> None:
        args = typing.get_args(hint)
        if message is None or is_array(hint) or hint is range or hint in (Encoded, program.Stored):
            return
        if message.name in ONEOFS:
            for cls, name in ONEOFS[message.name].items():
                visit(cls, message.fields_by_name[name].message_type)
        elif typing.get_origin(hint) is collections.abc.Mapping and message.GetOptions().map_entry:
            visit(args[1], message.fields_by_name["value"].message_type)
        elif dataclasses.is_dataclass(hint):
            if hint in found:
                assert found[hint] is message, f"{hint} travels as {message.name} and {found[hint].name}"
                return
            found[hint] = message
            hints = typing.get_type_hints(hint)
            for f in dataclasses.fields(hint):
                assert f.name in message.fields_by_name, f"{hint.__name__}.{f.name} is not in {message.name}"
                visit(hints[f.name], message.fields_by_name[f.name].message_type)
        else:
            for arg in args:
                visit(arg, message)

    # Within a Call it is bytes.
    visit(program.PreparedProgram, program_pb2.PreparedProgram.DESCRIPTOR)
    for method in METHODS.values():
        for codec in (method.request, method.response):
            message = codec._message.DESCRIPTOR
            if message.name == "AppendDatasetResponse":
                continue  # AppendResponse's twin: compared in the tests
            cls = None if message.name in ONEOFS else codec.cls
            visit(cls, message)
    return found


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, arrays by dtype, shape and bytes; an Encoded equals what arrives of it."""
    if isinstance(a, Encoded):
        return same(a.array, b)
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and a.tobytes() == b.tobytes()
        )
    if type(a) is not type(b):
        return False
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b
