"""Our attention graphs in ONNX Runtime against PyTorch's scaled_dot_product_attention, one thread.

    python -m benchmarks.kernel [--json FILE] [--quick]

Float32, 12 heads of 64, our side computing lse as well. Each engine runs in its own process; the two
take turns, so that whatever else the machine does hits both, and a ratio is the median over rounds of
one turn's best time by the other's. Memory is what a process peaks at above its inputs in its
first call. Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.report import Figure, Report
from benchmarks.turns import Worker, median_ratio, serve

HEADS, DIM = 12, 64
TITLE = "The shard kernel by PyTorch's scaled_dot_product_attention, one thread"
ENGINES = ("ours", "sdpa", "flash")


@dataclass(frozen=True)
class Case:
    """So many queries over so many keys; `bound` is the ratio to SDPA not to exceed, `memory` in MB."""

    queries: int
    keys: int
    bound: float
    memory: float | None = None


CASES = (
    Case(1, 65_536, 1.05),
    Case(16, 16_384, 1.35),
    Case(128, 16_384, 1.05),
    Case(512, 16_384, 1.15, memory=120.0),
)


@dataclass(frozen=True)
class Row:
    """One line of the table; times are medians in milliseconds, memory is in MB."""

    queries: int
    keys: int
    graph: str
    ours_ms: float
    sdpa_ms: float
    flash_ms: float
    ratio: float
    ratio_flash: float
    bound: float
    ours_mb: float
    sdpa_mb: float
    memory_bound: float | None

    @property
    def met(self) -> bool:
        return self.ratio <= self.bound and (self.memory_bound is None or self.ours_mb < self.memory_bound)


def _ours(case: Case, graph: str | None, tile: int | None) -> Callable[[], object]:
    import onnxruntime as ort

    from edge_attention.graphs.attention import library

    tile = tile or library.TILE
    rng = np.random.default_rng(0)
    shape = (case.keys // tile, HEADS, tile, DIM)
    feeds = {
        "q": rng.standard_normal((case.queries, HEADS, DIM), np.float32),
        "keys": rng.standard_normal(shape, np.float32),
        "values": rng.standard_normal(shape, np.float32),
        "scale": np.array(DIM**-0.5, np.float32),
        "lo": np.zeros(case.queries, np.int64),
        "hi": np.full(case.queries, case.keys, np.int64),
    }
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = library.load(graph or library.forward_graph(case.queries, 1))
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["out", "lse"], feeds)


def _torch(case: Case, flash: bool) -> Callable[[], object]:
    import torch  # type: ignore[import-not-found, unused-ignore]

    torch.set_num_threads(1)
    torch.manual_seed(0)
    q = torch.randn(1, HEADS, case.queries, DIM)
    k, v = (torch.randn(1, HEADS, case.keys, DIM) for _ in range(2))
    # The second is the operator behind the first; called by name it also returns lse.
    sdpa = torch.nn.functional.scaled_dot_product_attention
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu if flash else sdpa

    def call() -> object:
        with torch.inference_mode():
            return attend(q, k, v)

    return call


def _memory(field: str) -> float:
    """VmRSS or VmHWM (the peak) of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def _work(engine: str, case: Case, graph: str | None, tile: int | None) -> None:
    """The body of a worker: for each line on stdin with a count, the best time of that many calls."""
    call = _ours(case, graph, tile) if engine == "ours" else _torch(case, engine == "flash")
    # 5 resets the peak to what is resident now: inputs and libraries.
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    call()
    memory = _memory("VmHWM") - before

    def turn(calls: int) -> float:
        best = float("inf")
        for _ in range(calls):
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
        return best * 1e3

    serve(turn, memory)


def measure(case: Case, rounds: int, calls: int, extra: list[str]) -> Row:
    """Time the engines in turn, `rounds` turns of `calls` calls each."""
    from edge_attention.graphs.attention import library

    flags = ["--queries", str(case.queries), "--keys", str(case.keys), *extra]
    workers = {engine: Worker("benchmarks.kernel", "--worker", engine, *flags) for engine in ENGINES}
    try:
        turns = [{name: worker.turn(calls) for name, worker in workers.items()} for _ in range(rounds)]
    finally:
        for worker in workers.values():
            worker.close()
    median = {name: statistics.median(turn[name] for turn in turns) for name in ENGINES}
    ours = [turn["ours"] for turn in turns]
    ratio = {name: median_ratio(ours, [turn[name] for turn in turns]) for name in ENGINES}
    return Row(
        case.queries,
        case.keys,
        library.forward_graph(case.queries, 1),
        median["ours"],
        median["sdpa"],
        median["flash"],
        ratio["sdpa"],
        ratio["flash"],
        case.bound,
        workers["ours"].first,
        workers["sdpa"].first,
        case.memory,
    )


def report(quick: bool) -> Report:
    """Every case's ratio and memory, for `python -m benchmarks`."""
    if importlib.util.find_spec("torch") is None:
        return Report(TITLE, (), ("PyTorch is not installed (pip install '.[bench]')",))
    figures, rows = [], []
    for case in CASES:
        row = measure(case, 5 if quick else 15, 3, [])
        rows.append(asdict(row) | {"met": row.met})
        what = f"{row.queries} queries, {row.keys:,} keys"
        figures.append(Figure(what, row.ratio, "times", row.bound))
        figures.append(Figure(f"{what}: ours", row.ours_ms, "ms"))
        if row.memory_bound is not None:
            figures.append(Figure(f"{what}: extra memory", row.ours_mb, "MB", row.memory_bound))
    return Report(TITLE, tuple(figures), details={"rows": rows})


def main() -> int:
    parser = argparse.ArgumentParser(description="Attention kernels: ours by PyTorch's, one thread.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--quick", action="store_true", help="a third of the rounds")
    parser.add_argument("--only", type=int, metavar="QUERIES", help="only the case with so many queries")
    parser.add_argument("--graph", help="run this graph instead of the one the library picks")
    parser.add_argument("--tile", type=int, help="tokens a tile, instead of the library's")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--queries", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keys", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        _work(args.worker, Case(args.queries, args.keys, 0.0), args.graph, args.tile)
        return 0

    extra = [x for name in ("graph", "tile") if (v := getattr(args, name)) for x in (f"--{name}", str(v))]
    print("queries   keys  ours ms  sdpa ms  flash ms  ratio  bound  (flash)  ours MB  sdpa MB  bound")
    rows = []
    for case in CASES:
        if args.only not in (None, case.queries):
            continue
        row = measure(case, 5 if args.quick else 15, 3, extra)
        rows.append(row)
        limit = "" if row.memory_bound is None else f"{row.memory_bound:6.0f}"
        print(
            f"{row.queries:7d} {row.keys:6d} {row.ours_ms:8.2f} {row.sdpa_ms:8.2f} {row.flash_ms:9.2f}"
            f" {row.ratio:6.2f} {row.bound:6.2f} {row.ratio_flash:8.2f} {row.ours_mb:8.1f} {row.sdpa_mb:8.1f}"
            f" {limit:>6} {'' if row.met else ' MISSED'}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(row) | {"met": row.met} for row in rows], indent=1) + "\n")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
