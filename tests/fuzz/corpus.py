"""The corpus: calls as they were recorded, and what messages are made of."""

from __future__ import annotations

import base64
import json
import lzma
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from protos.edge_attention.v1 import attention_pb2, fleet_pb2, link_pb2, training_pb2, trust_pb2

FOLDER = Path(__file__).parent / "corpus"
RECORDED = FOLDER / "recorded.jsonl.xz"
FOUND = FOLDER / "found"

METHODS: dict[str, tuple[type[Message], type[Message]]] = {
    f"/{service.full_name}/{method.name}": (
        GetMessageClass(method.input_type),
        GetMessageClass(method.output_type),
    )
    for module in (attention_pb2, fleet_pb2, link_pb2, training_pb2, trust_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Path -> the classes of its request and its response, from the generated descriptors."""

CONNECT = "/edge_attention.v1.EdgeLinkService/Connect"
LINK_PATHS = tuple(path for path in METHODS if "EdgeLinkService" in path)
TRUST_PATHS = tuple(path for path in METHODS if "TrustService" in path)
CLIENT_PATHS = tuple(path for path in METHODS if path not in LINK_PATHS + TRUST_PATHS)


@dataclass
class RecordedCall:
    """The messages of one call, in order."""

    path: str
    requests: list[bytes] = field(default_factory=list)
    responses: list[bytes] = field(default_factory=list)


@dataclass
class Corpus:
    """calls: by path. files: what was downloaded, by digest. parts: messages of each type, wherever."""

    calls: dict[str, list[RecordedCall]]
    files: dict[str, bytes]
    parts: dict[str, list[Message]] = field(default_factory=lambda: defaultdict(list))
    texts: list[str] = field(default_factory=list)

    def index(self) -> Corpus:
        texts = set[str]()
        for path, calls in self.calls.items():
            for call in calls:
                for cls, messages in zip(METHODS[path], (call.requests, call.responses), strict=True):
                    for data in messages:
                        try:
                            parsed = cls.FromString(data)
                        except DecodeError:
                            continue
                        for part in nested(parsed):
                            self.parts[part.DESCRIPTOR.full_name].append(part)
                            texts.update(
                                value
                                for f, value in part.ListFields()
                                if f.type == FieldDescriptor.TYPE_STRING and isinstance(value, str)
                            )
        self.texts = sorted(texts)
        return self


def nested(message: Any) -> Iterator[Any]:
    """The message and all messages in it."""
    yield message
    for f, value in message.ListFields():
        if f.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        if f.message_type.GetOptions().map_entry:
            if f.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_MESSAGE:
                for item in value.values():
                    yield from nested(item)
        elif is_repeated(f):
            for item in value:
                yield from nested(item)
        else:
            yield from nested(value)


def is_repeated(f: Any) -> bool:
    return bool(f.is_repeated) if hasattr(f, "is_repeated") else f.label == FieldDescriptor.LABEL_REPEATED


def load() -> Corpus:
    calls: dict[str, list[RecordedCall]] = defaultdict(list)
    files: dict[str, bytes] = {}
    for line in lzma.decompress(RECORDED.read_bytes()).decode().splitlines():
        item = json.loads(line)
        if "digest" in item:
            files[item["digest"]] = base64.b64decode(item["data"])
            continue
        both = ([base64.b64decode(data) for data in item[key]] for key in ("requests", "responses"))
        calls[item["path"]].append(RecordedCall(item["path"], *both))
    return Corpus(dict(calls), files).index()


def save(calls: list[RecordedCall], files: dict[str, bytes]) -> int:
    """Write the corpus; its size in bytes."""

    def text(messages: list[bytes]) -> list[str]:
        return [base64.b64encode(data).decode() for data in messages]

    lines = [
        json.dumps({"path": call.path, "requests": text(call.requests), "responses": text(call.responses)})
        for call in calls
    ]
    lines += [
        json.dumps({"digest": digest, "data": base64.b64encode(data).decode()})
        for digest, data in sorted(files.items())
    ]
    data = lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)
    RECORDED.write_bytes(data)
    return len(data)
