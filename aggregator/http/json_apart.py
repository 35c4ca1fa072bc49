"""Reads the JSON of a request to a model: what is long in a process of its own, as parsing holds the event
loop.

    python -m aggregator.http.json_apart FOLDER WHAT        (by aggregator/engine/apart.py)

`FOLDER/request.json` is read. Left there: `said.json`, what it says without the `data` of its inputs, and of
each a file of its elements; or `error.json`, an error of the catalogue.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.bounds.bounds import JSON_PROCESS
from aggregator.bounds.budget import Lease
from aggregator.bounds.callers_in_turn import CallersInTurn
from aggregator.engine import apart, scratch
from aggregator.http.infer_body import objects, tensor_head
from aggregator.http.json_tensors import array_of_json, strict_json
from edge_attention.core import errors
from edge_attention.core.errors import (
    EdgeAttentionError,
    GraphDied,
    InvalidArgument,
    InvalidGraph,
    MessageTooLarge,
    OutOfMemory,
)
from edge_attention.core.tensors import Array

__all__ = ["JSON_BYTES", "JSON_PROCESSES", "SaidInJson", "read_json"]

JSON_BYTES = 64 * 1024 * 1024
"""Of JSON in one request; tensors as binary data are no part of it."""
INLINE_BYTES = 128 * 1024
"""Parsed here: a few milliseconds."""
JSON_PROCESSES = 4
"""That read at a time, of all callers, who take turns; each may take JSON_PROCESS."""
WHAT = "reading the JSON of a request"


@dataclass(frozen=True)
class SaidInJson:
    """What JSON says. `arrays`: the data of inputs that was read already, by their places; bytes are raw."""

    said: Any
    arrays: Mapping[int, Array | bytes] = field(default_factory=dict)


async def read_json(
    text: memoryview, what: str, lease: Lease, state: Path, processes: CallersInTurn, caller: str
) -> SaidInJson:
    """Parse it.

    Args:
        what: it is; begins each message.
        lease: the caller's; grows by what it takes.
        state: the state folder, to work in.
        processes: JSON_PROCESSES of it; who comes when they are at work waits.
        caller: whose turn it is then.

    Raises:
        InvalidArgument, InvalidTensor: it is none, or says what an input cannot be.
        MessageTooLarge: there is too much of it; binary data may be more.
    """
    if len(text) <= INLINE_BYTES:
        return SaidInJson(strict_json(text, what))
    if len(text) > JSON_BYTES:
        raise MessageTooLarge(
            f"bound json-bytes: the JSON of a request has {len(text):,} bytes, and may have {JSON_BYTES:,}; "
            "send tensors as binary data"
        )
    lease.grow(4 * len(text))  # an element takes two characters or more, and up to 8 bytes
    async with processes.turn(caller), scratch.folder(state) as folder:
        await asyncio.to_thread((folder / "request.json").write_bytes, text)
        try:
            status = await apart.run(JSON_PROCESS, WHAT, "aggregator.http.json_apart", str(folder), what)
        except (InvalidGraph, OutOfMemory, GraphDied):
            raise MessageTooLarge(
                f"bound json: {WHAT} took more than {JSON_PROCESS.seconds:.0f} s or {JSON_PROCESS.memory:,} "
                "bytes; send tensors as binary data"
            ) from None
        return await asyncio.to_thread(_left, folder, status)


def _left(folder: Path, status: int) -> SaidInJson:
    failure = folder / "error.json"
    if failure.exists():
        told = json.loads(failure.read_text())
        raise errors.by_name(told["name"], told["message"])
    if status:
        raise apart.failed(WHAT, status)
    told = json.loads((folder / "said.json").read_text())
    found: dict[int, Array | bytes] = {}
    for number, shape in told["arrays"]:
        file = folder / f"{number}.npy"
        data = np.load(file, allow_pickle=False)
        found[number] = data.tobytes() if shape is None else data.reshape(shape)
    return SaidInJson(told["said"], found)


def main(folder: Path, what: str) -> int:
    try:
        said = strict_json((folder / "request.json").read_bytes(), what)
        arrays = list(_taken_out(said, folder))
        left = json.dumps({"said": said, "arrays": arrays})
        if len(left) > INLINE_BYTES:
            raise InvalidArgument(
                f"{what}: beside the data of inputs it has {len(left):,} bytes, which is too much"
            )
        (folder / "said.json").write_text(left)
    except EdgeAttentionError as error:
        told = {"name": type(error).__name__, "message": error.message}
        (folder / "error.json").write_text(json.dumps(told))
        return 1
    return 0


def _taken_out(said: Any, folder: Path) -> Iterator[tuple[int, tuple[int, ...] | None]]:
    """Which inputs had data, and their shapes; None for BYTES, which are left as the protocol's raw bytes."""
    if not isinstance(said, dict) or "inputs" not in said:
        return  # whoever asks says what it lacks
    for number, one in enumerate(objects(said["inputs"], "inputs")):
        if "data" not in one:
            continue
        name, datatype, shape = tensor_head(number, one)
        array = array_of_json(name, datatype, shape, one["data"])
        one["data"] = []
        if datatype == "BYTES":
            raw = b"".join(struct.pack("<I", len(text)) + text for text in array.reshape(-1))
            np.save(folder / f"{number}.npy", np.frombuffer(raw, np.uint8))
        else:
            np.save(folder / f"{number}.npy", array)
        yield number, None if datatype == "BYTES" else shape


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
