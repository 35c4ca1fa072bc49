"""Real graphs, changed on the wire: bits, fields left out, doubled, moved, numbers and names made extreme."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

from google.protobuf.message import DecodeError
from onnx import ModelProto

from edge_attention.core.messages.federated import LossSpec
from edge_attention.graphs import builders
from edge_attention.graphs.attention import library
from edge_attention.graphs.models.model import gradient_graph, load_model
from hostile import files, wire
from hostile.extremes import INTEGERS, feeds_of
from hostile.files import Hostile

DATA = Path(__file__).resolve().parents[1] / "graphs" / "data"

_NAMES = (
    b"",
    b"x",
    b"location",
    b"n" * 2000,
    b"\x1b[2J\n",
    b"\xff\xfe",
    b"com.microsoft",
    b"EPContext",
    b"StringConcat",
    b"Loop",
    b"Cast",
    b"../../etc/hostname",
)


@cache
def real() -> dict[str, bytes]:
    """Graphs of the library, of exporters and builders, a gradient, and small ones with loops and calls."""
    found = {name: library.load(name) for name in library.names()}
    found |= {path.stem: path.read_bytes() for path in sorted(DATA.glob("*.onnx"))}
    sequences = builders.attention_sequences(11, 4, 8, 2, 1, causal=True)
    found["sequences"] = sequences
    found["rows"] = builders.attention_rows(5, 3, dim=8)
    loaded = load_model(sequences, loss=LossSpec("cross_entropy", "logits"))
    found["gradient"] = gradient_graph(loaded, 2).SerializeToString()
    inner = files.function("G", [files.node("Neg", ["a"], ["b"])])
    outer = files.function("F", [files.node("G", ["a"], ["b"], domain="local")])
    for name, made in (
        ("linear", files.linear()),
        ("looped", files.looped()),
        ("functions", files.called(inner, outer)),
    ):
        found[name] = made.SerializeToString()
    return found


def changed(data: bytes, rng: Random, times: int) -> bytes:
    """The file with some changes, on the wire or, last, in its bytes."""
    parts = wire.parse(data)
    for _ in range(times):
        _change(rng, parts)
    overlong = rng.choice((0.0, 0.0, 0.1, 1.0))
    out = bytearray(wire.encode(parts, rng, overlong))
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        at = rng.randrange(len(out) + 1)
        how = rng.randrange(4)
        if how == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            out[at:at] = rng.randbytes(rng.randint(1, 8))
        elif how == 2:
            del out[at : at + rng.randint(1, 8)]
        else:
            start = rng.randrange(len(out) + 1)
            out[at:at] = out[start : start + rng.randint(1, 64)]
    return bytes(out)


def _change(rng: Random, parts: list[wire.Part]) -> None:
    """One change somewhere in a message."""
    while True:
        inner = [part.value for part in parts if isinstance(part.value, list) and part.value]
        if not inner or rng.random() < 0.25:
            break
        parts = rng.choice(inner)
    if not parts:
        return
    at = rng.randrange(len(parts))
    part = parts[at]
    how = rng.randrange(9)
    if how == 0:
        del parts[at]
    elif how == 1:
        parts.insert(rng.randrange(len(parts) + 1), part)
    elif how == 2:
        other = rng.randrange(len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    elif how == 3:
        parts.insert(at, wire.Part(rng.choice((15, 16, 99, 1 << 28)), wire.VARINT, 1))
    elif how == 4 and isinstance(part.value, list) and part.value:
        cut = rng.randrange(len(part.value))
        parts.append(wire.Part(part.number, part.wire, part.value[cut:]))
        part.value = part.value[:cut]
    elif how == 5:
        part.number = rng.randint(1, 26)
    elif part.wire == wire.VARINT:
        part.value = rng.choice((*INTEGERS, part.value ^ 1, rng.randrange(32))) & (1 << 64) - 1
    elif part.wire == wire.BYTES and isinstance(part.value, bytes):
        if how == 6 or not part.value:
            part.value = rng.choice(_NAMES)
        else:
            spot = rng.randrange(len(part.value))
            part.value = part.value[:spot] + rng.randbytes(1) + part.value[spot + rng.randrange(3) :]
    elif part.wire in (wire.FIXED32, wire.FIXED64):
        part.value = rng.randbytes(len(part.value))


def graphs(seed: int) -> Iterator[Hostile]:
    """Without end."""
    rng = Random(f"mutation {seed}")
    names = sorted(real())
    turn = 0
    while True:
        for name in names:
            data = changed(real()[name], rng, rng.choice((0, 1, 1, 2, 5)))
            feeds, outputs = {}, ()
            try:
                made = ModelProto.FromString(data)
                feeds = feeds_of(rng, made, rng.choice((0, 1, 2, 4)))
                # A name that is no UTF-8 is bytes: nobody can ask for it.
                feeds = {name: array for name, array in feeds.items() if isinstance(name, str)}
                outputs = tuple(value.name for value in made.graph.output if isinstance(value.name, str))
            except (DecodeError, UnicodeDecodeError):
                pass
            yield Hostile(f"{name}, changed, turn {turn}", data, feeds, outputs)
        turn += 1
