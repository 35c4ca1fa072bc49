"""Compiles converters between our dataclasses and generated messages, once for each pair.

A field of a dataclass and of its message have the same name. The dataclass's type hint says how the
field converts:

    int float str bool bytes   the scalar
    X | None                   absent on the wire
    tuple[X, ...]              repeated
    Mapping[str, X]            map
    Mapping[str, Array]        repeated Tensor, by name
    Array                      Tensor, checked (wire/tensors.py)
    range                      Range
    Enum                       enum, `ENCODING_RAW` for Encoding.RAW
    a dataclass                its message
    a union of dataclasses     a message with one `oneof`, its field chosen by the class

A field that is absent, of those whose absence shows on the wire, takes the dataclass's default.
Decoding refuses what the types cannot hold with an error of the catalogue; it never raises another.

A message with a field `checksum` is sent with one over all of it, and one that arrives with a wrong one is
`Damaged`: nothing in it is looked at (wire/checksum.py).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import operator
import re
import threading
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, EncodeError, Message

from edge_attention.core.errors import (
    Damaged,
    EdgeAttentionError,
    InvalidArgument,
    InvalidTensor,
    MessageTooLarge,
)
from edge_attention.core.tensors import Array, Encoded
from edge_attention.wire import checksum
from edge_attention.wire.parts import Counter, Malformed
from edge_attention.wire.tensors import decode_range, decode_tensor, encode_range, encode_tensor

T = TypeVar("T")

MESSAGE_LIMIT = 4 * 1024 * 1024
"""Bytes of the largest message either side accepts. Larger things travel in chunks."""

PARTS = 1 << 22
"""What a message may be made of, as decoding takes time for it: each message in a list of it counts
_MESSAGE_PARTS, each text and number 1. Of two bytes each there would be two million, and the event loop held
a minute.
"""
_MESSAGE_PARTS = 16
FIELDS = 1 << 16
"""Fields of a message that a peer sends to a daemon, those of the messages in it included: more are not read
at all. The most that is sent, by a node that registers with 16,384 sequences, is 50,000."""
_FEW_BYTES = 64 * 1024
"""A message of no more bytes needs no counting before it is read."""


class Codec(Generic[T]):
    """Converts `T` to bytes and back. `variants` maps a class to its field, where `T` is a union.

    `limit`: bytes of it at most. `parts`: see PARTS; few where it is a stranger who sends it. `fields`: see
    FIELDS; None: any number.
    `sealed`: what comes without a checksum is refused, too. So it is where both ends are ours: damage to the
    checksum's own tag must not switch it off.

    Example: `Codec(Program, program_pb2.Program).decode(codec.encode(program))`.
    """

    def __init__(
        self,
        cls: Any,
        message: type[Message],
        variants: Mapping[type, str] | None = None,
        *,
        sealed: bool = False,
        limit: int = MESSAGE_LIMIT,
        parts: int = PARTS,
        fields: int | None = None,
    ) -> None:
        self.cls = cls
        self._limit = limit
        self._parts = parts
        self._most_fields = fields
        self._counter = Counter(message.DESCRIPTOR)
        self._message = message
        self.message_name: str = message.DESCRIPTOR.name
        self._checked = checksum.FIELD in message.DESCRIPTOR.fields_by_name
        if sealed and not self._checked:
            raise TypeError(f"{message.DESCRIPTOR.full_name} has no field `{checksum.FIELD}`")
        self.sealed = sealed
        self._what = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", message.DESCRIPTOR.name).lower()
        self._variants = variants

    @cached_property
    def _converters(self) -> tuple[Fill, Read]:
        """Made when the first message is: a process has a use for a few of all there are."""
        return _union(self._variants) if self._variants else _special.get(self.cls) or _dataclass(self.cls)

    def encode(self, value: T) -> bytes:
        """The wire bytes of `value`.

        Raises:
            MessageTooLarge: past its limit; the other side would refuse it with less to say.
            InvalidArgument: a number past its field's range, text that is no UTF-8, a value of another type.
        """
        message = self._message()
        try:
            self._converters[0](message, value)
            data: bytes = message.SerializeToString()
            if self._checked:
                data = checksum.seal(data)
        except (AttributeError, TypeError, ValueError) as error:
            raise InvalidArgument(f"the {self._what} cannot be sent: {error}") from error
        except EncodeError:  # past protobuf's own 2 GiB
            raise self._too_large(message.ByteSize()) from None
        if len(data) > self._limit:
            raise self._too_large(len(data))
        return data

    def _too_large(self, size: int) -> MessageTooLarge:
        return MessageTooLarge(
            f"the {self._what} has {size:,} bytes; {'a message' if self._limit == MESSAGE_LIMIT else 'one'} "
            f"has at most {self._limit:,}: split it in several calls"
        )

    def decode(self, data: bytes, sealed: bool | None = None) -> T:
        """The value `data` stands for. `sealed`: as the codec's own, for this message.

        Raises:
            Damaged: the checksum is wrong, or there is none where there must be one.
            InvalidArgument: if the bytes are not such a message, or a field does not fit.
            MessageTooLarge: past its limit, or of too many parts.
        """
        if len(data) > self._limit:
            raise self._too_large(len(data))
        whole = not self._checked or checksum.intact(data)
        if not whole and (self.sealed if sealed is None else sealed):
            raise self._damaged(data)
        try:
            if self._most_fields is not None and len(data) > _FEW_BYTES:
                self._count(data, self._most_fields)
            message = self._message.FromString(data)
        except (DecodeError, Malformed):
            raise InvalidArgument(f"these {len(data):,} bytes are not a {self._what}") from None
        if not whole and message.HasField(checksum.FIELD):
            raise self._damaged(data)
        _decoding.left = self._parts
        try:
            return typing.cast(T, self._converters[1](message))
        except Damaged as error:
            if not (whole and self._checked):
                raise
            # As it was sent, so to send it again is no use.
            raise InvalidTensor(f"{error.message} (but the message's own checksum is right)") from None
        except EdgeAttentionError:
            raise
        except Exception as error:
            raise InvalidArgument(f"the {self._what} cannot be read: {type(error).__name__}") from error

    def _count(self, data: bytes, most: int) -> None:
        """Raises MessageTooLarge, Malformed."""
        if not self._counter.passes(data, most):
            raise MessageTooLarge(
                f"the {self._what} has too many parts: over {most:,} fields (FIELDS); split it in several"
            )

    def _damaged(self, data: bytes) -> Damaged:
        why = "has no checksum, or it" if checksum.lacking(data) else "has a wrong checksum: it"
        article = "an" if self._what[0] in "aeiou" else "a"
        return Damaged(
            f"{article} {self._what} of {len(data):,} bytes {why} was damaged on the way; send it again"
        )


_decoding = threading.local()
"""`left`: parts that the message which this thread decodes may still have."""


def _counted(found: Any, each: int) -> Any:
    """`found`, a list or a map of a message, once its parts are counted."""
    _decoding.left -= each * len(found)
    if _decoding.left < 0:
        raise MessageTooLarge(
            "the message has too many parts: lists of more messages or texts than are read in one (PARTS); "
            "split it in several calls"
        )
    return found


def require_readable(found: Any) -> None:
    """Raises MessageTooLarge if `found`, messages of one that is being read, are more than it may have."""
    if _MESSAGE_PARTS * len(found) > _decoding.left:
        _counted(found, _MESSAGE_PARTS)


Fill = Callable[[Any, Any], None]
Read = Callable[[Any], Any]


def _dataclass(cls: type) -> tuple[Fill, Read]:
    hints = typing.get_type_hints(cls)
    fields = []
    for f in dataclasses.fields(cls):
        put, get = _named.get((cls, f.name)) or _field(f.name, hints[f.name])
        if f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        else:
            default = None if f.default is dataclasses.MISSING else f.default
        # What decodes to nothing where nothing was sent needs no default.
        fields.append((f.name, put, _or_default(f.name, get, default) if default else get))

    def fill(message: Any, value: Any) -> None:
        for name, put, _ in fields:
            put(message, getattr(value, name))

    getters = [get for _, _, get in fields]

    def read(message: Any) -> Any:
        return cls(*[get(message) for get in getters])

    return fill, read


def _or_default(name: str, get: Read, default: Any) -> Read:
    def read(message: Any) -> Any:
        shows = message.DESCRIPTOR.fields_by_name[name].has_presence
        return default if shows and not message.HasField(name) else get(message)

    return read


def _union(variants: Mapping[type, str]) -> tuple[Fill, Read]:
    codecs: dict[str, tuple[Fill, Read]] = {}

    def codec(name: str, cls: type) -> tuple[Fill, Read]:
        # Compiled at first use: an Instruction holds a Repeat, which holds Instructions.
        if name not in codecs:
            codecs[name] = _dataclass(cls)
        return codecs[name]

    classes = {name: cls for cls, name in variants.items()}

    def fill(message: Any, value: Any) -> None:
        name = variants[type(value)]
        part = getattr(message, name)
        part.SetInParent()
        codec(name, type(value))[0](part, value)

    oneof = ""

    def read(message: Any) -> Any:
        nonlocal oneof
        if not oneof:
            oneof = message.DESCRIPTOR.oneofs[0].name
        name = message.WhichOneof(oneof)
        if name is None:
            raise InvalidArgument(f"a {message.DESCRIPTOR.name} is empty or of an unknown kind")
        return codec(name, classes[name])[1](getattr(message, name))

    return fill, read


def _field(name: str, hint: Any) -> tuple[Fill, Read]:
    """The pair that puts a value of type `hint` into a message's field `name` and gets it out."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union) and type(None) in args:
        rest = [arg for arg in args if arg is not type(None)]
        put, get = _field(name, rest[0] if len(rest) == 1 else typing.Union[tuple(rest)])  # noqa: UP007

        def put_optional(message: Any, value: Any) -> None:
            if value is not None:
                put(message, value)

        return put_optional, lambda message: get(message) if message.HasField(name) else None
    if hint in (int, float, str, bool, bytes):
        return (lambda message, value: setattr(message, name, value)), operator.attrgetter(name)
    if isinstance(hint, type) and issubclass(hint, Enum):
        to_wire, from_wire = _enum(hint)
        return (
            lambda message, value: setattr(message, name, to_wire(value)),
            lambda message: from_wire(getattr(message, name)),
        )
    if origin is tuple:
        return repeated(name, args[0])
    if origin is collections.abc.Mapping:
        return _mapping(name, args[1])
    fill, read = _message(hint)

    def put_message(message: Any, value: Any) -> None:
        part = getattr(message, name)
        part.SetInParent()
        fill(part, value)

    if read is decode_tensor:
        return put_message, lambda message: decode_tensor(getattr(message, name), name)
    return put_message, lambda message: read(getattr(message, name))


def repeated(name: str, hint: Any) -> tuple[Fill, Read]:
    """The pair for a repeated field of elements of type `hint`."""
    if hint in (int, float, str, bool, bytes):
        return (
            lambda message, value: getattr(message, name).extend(value),
            lambda message: tuple(_counted(getattr(message, name), 1)),
        )
    fill, read = _message(hint)

    def put(message: Any, value: Any) -> None:
        field = getattr(message, name)
        for item in value:
            fill(field.add(), item)

    return put, lambda message: tuple(read(item) for item in _counted(getattr(message, name), _MESSAGE_PARTS))


def _sorted(field: Any, parts: int) -> list[tuple[Any, Any]]:
    """The pairs of a map, which protobuf gives in another order each time, in one that can be printed."""
    return sorted(_counted(field, parts).items(), key=operator.itemgetter(0))


def _is_array(hint: Any) -> bool:
    return hint is Array or typing.get_origin(hint) is np.ndarray


def _mapping(name: str, hint: Any) -> tuple[Fill, Read]:
    if _is_array(hint) or hint == Array | Encoded:

        def put_tensors(message: Any, value: Any) -> None:
            field = getattr(message, name)
            for key, array in value.items():
                encode_tensor(array, field.add(), key)

        def get_tensors(message: Any) -> dict[str, Array]:
            found: dict[str, Array] = {}
            for tensor in _counted(getattr(message, name), _MESSAGE_PARTS):
                if tensor.name in found:
                    raise InvalidArgument(f"tensor {tensor.name!r} is in the message twice")
                found[tensor.name] = decode_tensor(tensor)
            return found

        return put_tensors, get_tensors
    if hint in (int, float, str):
        return (
            lambda message, value: getattr(message, name).update(value),
            lambda message: dict(_sorted(getattr(message, name), 2)),
        )
    fill, read = _message(hint)

    def put(message: Any, value: Any) -> None:
        field = getattr(message, name)
        for key, item in value.items():
            fill(field[key], item)

    return put, lambda message: {
        key: read(item) for key, item in _sorted(getattr(message, name), _MESSAGE_PARTS)
    }


def _message(hint: Any) -> tuple[Fill, Read]:
    if _is_array(hint) or hint == Array | Encoded:
        return (lambda message, value: encode_tensor(value, message, message.name)), decode_tensor
    if hint is range:
        return (lambda message, value: encode_range(value, message)), decode_range
    if hint in _special:
        return _special[hint]
    if dataclasses.is_dataclass(hint):
        return _dataclass(typing.cast(type, hint))
    raise TypeError(f"no converter for {hint}")


_special: dict[Any, tuple[Fill, Read]] = {}
_named: dict[tuple[type, str], tuple[Fill, Read]] = {}


def named_field(cls: type, name: str, put: Fill, get: Read) -> None:
    """Say how the field `name` of `cls` is put into its message and got out of it."""
    _named[cls, name] = (put, get)


def special(hint: Any, fill: Fill, read: Read) -> None:
    """Say how `hint` converts, where the rules above do not."""
    _special[hint] = (fill, read)


def union(hint: Any, variants: Mapping[type, str]) -> None:
    """Say that the union `hint` travels as a message with a `oneof`."""
    _special[hint] = _union(variants)


def _enum(cls: type[Enum]) -> tuple[Callable[[Any], int], Callable[[int], Any]]:
    numbers = {member: number for number, member in enumerate(cls, start=1)}
    members = {number: member for member, number in numbers.items()}
    first = next(iter(cls))

    def from_wire(number: int) -> Any:
        # 0 is "not said": the first member is the default, as the .proto files document.
        if number and number not in members:
            raise InvalidArgument(f"{cls.__name__} has no value {number}")
        return members.get(number, first)

    return numbers.__getitem__, from_wire
