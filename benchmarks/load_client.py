"""One who asks by the clock: `python -m benchmarks.load_client FOLDER`, a process apart from what it asks.

`FOLDER/load.json` is a Load, `FOLDER/request` a request as it travels, `FOLDER/expected` the elements of its
answer. Requests come by the clock, whether earlier ones were answered or not, over one connection, and each
answer is compared. What became of them is JSON on stdout (`Loaded`). It reads and writes no messages, as its
own time would be taken from those whom it asks.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import numpy as np

METHOD = "/inference.GRPCInferenceService/ModelInfer"
ERROR = 1e-5
"""Of the largest element, as everywhere."""


@dataclass(frozen=True)
class Load:
    """`rate`: requests a second, for so many `seconds`, each with a `deadline`."""

    port: int
    rate: float
    seconds: float
    deadline: float


@dataclass
class Loaded:
    """What became of them.

    Attributes:
        seconds: of each that was answered, from when it was due; in the order in which they ended.
        failed: what others ended with -> how many.
        late: seconds behind the clock at which the last one was sent, at most.
    """

    seconds: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    late: float = 0.0


async def _load(load: Load, request: bytes, expected: bytes) -> Loaded:
    told, failed = Loaded(), Counter[str]()
    wanted = np.frombuffer(expected, np.float32)
    most = ERROR * float(np.abs(wanted).max())

    async with grpc.aio.insecure_channel(f"127.0.0.1:{load.port}") as channel:
        call = channel.unary_unary(METHOD)

        async def ask(due: float) -> None:
            try:
                data: bytes = await call(request, timeout=load.deadline)
            except grpc.aio.AioRpcError as error:
                failed[f"{error.code().name}: {(error.details() or '')[:160]}"] += 1
                return
            told.seconds.append(time.monotonic() - due)
            # Raw contents are an answer's last field.
            if not data.endswith(expected):
                given = np.frombuffer(data[-len(expected) :], np.float32)
                if given.shape != wanted.shape or not float(np.abs(given - wanted).max()) <= most:
                    failed["another answer than the model's"] += 1

        tasks: set[asyncio.Task[None]] = set()
        began = time.monotonic()
        for number in range(int(load.rate * load.seconds)):
            due = began + number / load.rate
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            told.late = max(told.late, time.monotonic() - due)
            task = asyncio.create_task(ask(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)
    told.failed = dict(failed.most_common())
    return told


def main(folder: Path) -> None:
    load = Load(**json.loads((folder / "load.json").read_text()))
    request, expected = (folder / "request").read_bytes(), (folder / "expected").read_bytes()
    print(json.dumps(asdict(asyncio.run(_load(load, request, expected)))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
