"""A steady load on two replicas, one of which is restarted every minute: what fails, how late answers are.

    python -m benchmarks.serve_load --rate 200 --minutes 10

Requests come by the clock over the Open Inference Protocol, from a process of their own, whether earlier ones
were answered or not: MiniLM at 16 tokens, one row each. Every answer is compared with ONNX Runtime's. Nodes
have a thread each, and the machine's cores are shared by them, the aggregator and who asks. Prints what was
asked, what failed and with what, the median and the 99th percentile, rows a batch, what each process had of
a core, and the aggregator's memory over time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import grpc

from benchmarks.infer_models import MINILM, feeds_of, model_file, whole_session
from benchmarks.load_client import Load, Loaded
from benchmarks.serve_fleet import ServeFleet, serve_fleet
from edge_attention.core.datatypes import datatype_of
from edge_attention.core.messages.open_inference import (
    InferenceRequest,
    ModelStatisticsRequest,
    NamedTensor,
    RequestedOutput,
)
from edge_attention.core.tensors import Array, DataType
from edge_attention.wire.open_inference import MODEL_INFER, MODEL_STATISTICS

LENGTH, NODES = 16, ("a", "b")
NAME = "minilm"
DEADLINE = 10.0
LOOK_SECONDS = 10.0
"""Between two looks at memory."""


def told(loaded: Loaded, memory: list[int], rows: float, shares: dict[str, float]) -> str:
    """All of it, for a person."""
    order, failed = sorted(loaded.seconds) or [float("nan")], sum(loaded.failed.values())
    middle, late = statistics.median(order), order[int(0.99 * (len(order) - 1))]
    lines = [
        f"{len(loaded.seconds):,} requests answered, {failed} failed; asked {loaded.late:.3f} s late at most",
        f"ms: median {1e3 * middle:.1f}, 99th percentile {1e3 * late:.1f}, longest {1e3 * order[-1]:.1f}",
        f"rows a batch, mean: {rows:.2f}",
        "cores: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items()),
        f"memory of the aggregator, MB: {[size >> 20 for size in memory]}",
        *(f"  {count} {what}" for what, count in list(loaded.failed.items())[:5]),
    ]
    return "\n".join(lines)


def _resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


def _busy() -> float:
    """Seconds that all cores have worked, whatever at."""
    user, nice, system, _, _, irq, soft, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


async def _rows(port: int) -> float:
    """Rows that a run of the model had, in the mean."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            MODEL_STATISTICS.path,
            request_serializer=MODEL_STATISTICS.request.encode,
            response_deserializer=MODEL_STATISTICS.response.decode,
        )
        (found,) = (await call(ModelStatisticsRequest(NAME))).model_stats
    return float(found.inference_count / max(found.execution_count, 1))


async def _memory(found: list[int]) -> None:
    while True:
        found.append(_resident())
        await asyncio.sleep(LOOK_SECONDS)


async def _restarts(fleet: ServeFleet, every: float) -> None:
    while every:
        for name in NODES:
            await asyncio.sleep(every)
            await asyncio.to_thread(fleet.stop, name)
            fleet.start(name)


def _request(feeds: dict[str, Array], output: str) -> bytes:
    inputs = tuple(
        NamedTensor(name, datatype_of(DataType.of(array.dtype, name)).value, array.shape, array)
        for name, array in feeds.items()
    )
    return MODEL_INFER.request.encode(
        InferenceRequest(NAME, "", "", inputs=inputs, outputs=(RequestedOutput(output),))
    )


async def _asked(load: Load, folder: Path) -> tuple[Loaded, float]:
    """What became of the requests; processor seconds of who asked."""
    await asyncio.to_thread((folder / "load.json").write_text, json.dumps(asdict(load)))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.load_client", str(folder), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit("who asks has failed; its error is above")
    return Loaded(**json.loads(said)), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def _run(rate: float, seconds: float, every: float, folder: Path) -> str:
    path = model_file(MINILM, folder)
    feeds = feeds_of(path, 1, LENGTH)
    session = whole_session(path)
    output = session.get_outputs()[0].name
    (folder / "expected").write_bytes(session.run([output], feeds)[0].tobytes())
    (folder / "request").write_bytes(_request(feeds, output))
    del session
    async with serve_fleet(folder, dict.fromkeys(NODES, 1.0)) as fleet:
        await fleet.client.deploy(path, NAME, plan="replicate")
        memory: list[int] = []
        others = [asyncio.create_task(work) for work in (_memory(memory), _restarts(fleet, every))]
        try:
            # The first second or two load and learn.
            await _asked(Load(fleet.port, rate / 4, 2.0, DEADLINE), folder)
            began, used, busy = time.monotonic(), time.process_time(), _busy()
            loaded, theirs = await _asked(Load(fleet.port, rate, seconds, DEADLINE), folder)
            took, own, busy = time.monotonic() - began, time.process_time() - used, _busy() - busy
        finally:
            for task in others:
                task.cancel()
            rows = await _rows(fleet.port)
        shares = {"the aggregator": own / took, "who asks": theirs / took, "the machine": busy / took}
        return told(loaded, memory, rows, {**shares, "that it has": float(os.cpu_count() or 0)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between restarts; 0: none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(asyncio.run(_run(args.rate, 60 * args.minutes, args.every, Path(folder))))


if __name__ == "__main__":
    main()
