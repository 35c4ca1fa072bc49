"""`make test-hostile`: graphs that mean no good, against real nodes whose operator allows no release.

    python -m tests.hostile [--graphs 2000] [--seed 0] [--strict] [--name PART]

Each graph is run on two nodes by an aggregator that lies, with its own feeds and with private ones, and is
sent by a user through a real aggregator. No daemon ends, no file is opened, no private number leaves as a
number or in a text; what is said of a failure is the same whatever the private numbers are; beside it a good
caller's attends stay exact. `--strict`: and, sent once more with nobody listening on the way, their 99th
percentile is at most twice the quiet one, which needs a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
# For the helpers that the tests share.
sys.path[:0] = [str(TESTS), str(TESTS / "e2e"), str(TESTS / "edge_node")]

import numpy as np  # noqa: E402

from tests.hostile import hostile_graphs  # noqa: E402
from tests.hostile.direct import Direct  # noqa: E402
from tests.hostile.public import Public  # noqa: E402
from tests.hostile.witness import Canary  # noqa: E402

QUIET = 20.0
"""Seconds the good caller has for itself: some 600 attends, so that its percentile means something."""

SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="", help="only graphs with this in their name")
    parser.add_argument(
        "--strict", action="store_true", help="a good caller's 99th percentile is held to its bound"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        box, direct, public, clocked = (
            Path(folder) / name for name in ("box", "direct", "public", "clocked")
        )
        for each in (box, direct, public, clocked):
            each.mkdir()
        canary = Canary(box)
        tried = graphs(options, canary.paths())
        wrong = [
            *asyncio.run(by_programs(direct, canary, tried)),
            *asyncio.run(by_calls(public, canary, tried)),
        ]
        if options.strict:
            wrong += asyncio.run(by_the_clock(clocked, canary, tried))
    counted = Counter(wrong)
    for text, count in list(counted.items())[:SHOWN]:
        print(f"WRONG{f', {count} times' if count > 1 else ''}: {text}")
    if len(counted) > SHOWN:
        print(f"and {len(counted) - SHOWN} more")
    print(f"{int(not wrong)} passed, {int(bool(wrong))} failed")
    return int(bool(wrong))


def graphs(options: argparse.Namespace, paths: tuple[str, ...]) -> list[Any]:
    """All of them, made before anything else is done: that takes this process's time."""
    began = time.monotonic()
    made = hostile_graphs(options.graphs, options.seed, paths=paths)
    kept = [one for one in made if options.name in one.name]
    print(f"{len(kept)} graphs of seed {options.seed}, made in {time.monotonic() - began:.0f} s", flush=True)
    return kept


def node_flags() -> list[str]:
    """A caller may fail as often as it likes: what is bounded is tried elsewhere."""
    said = subprocess.run(
        [sys.executable, "-c", "from edge_node.main import main; main()", "--help"],
        capture_output=True,
        text=True,
    ).stdout
    return ["--private-failures", "1000000"] if "--private-failures" in said else []


async def by_programs(folder: Path, canary: Canary, tried: list[Any]) -> list[str]:
    direct = Direct(folder, canary, node_flags())
    await direct.start()
    began, count = time.monotonic(), 0
    try:
        for graph in tried:
            count += 1
            await direct.attack(graph)
            if wrong := await direct.well():
                return [f"{graph.name}: {text}" for text in wrong]
            if count % 100 == 0:
                print(f"programs: {count} graphs, {time.monotonic() - began:.0f} s", flush=True)
    finally:
        await direct.stop()
    print(f"programs: {count} graphs in {time.monotonic() - began:.0f} s")
    print(f"  with their own feeds: {shown(direct.open.outcomes)}")
    print(f"  on private data: {shown(direct.private.outcomes)}", flush=True)
    return direct.open.wrong + direct.private.wrong


async def by_calls(folder: Path, canary: Canary, tried: list[Any]) -> list[str]:
    """What a user sends; all that passes is listened to."""
    public = Public(folder, canary, node_flags())
    await public.start()
    try:
        public.good.start()
        began = time.monotonic()
        await asyncio.to_thread(public.attack, tried)
        seconds = time.monotonic() - began
        attends = await asyncio.to_thread(public.good.stop)
        wrong = public.wrong + public.good.wrong + public.well()
    finally:
        await public.stop()
    print(f"calls: {len(tried)} graphs in {seconds:.0f} s: {shown(public.outcomes)}")
    print(f"  a good caller's {len(attends)} attends beside them are exact", flush=True)
    return wrong


async def by_the_clock(folder: Path, canary: Canary, tried: list[Any]) -> list[str]:
    """What a good caller beside them waits, with nobody listening: that took this machine's time, too."""
    public = Public(folder, canary, node_flags(), heard=False)
    await public.start()
    try:
        quiet = await asyncio.to_thread(public.good.quiet, QUIET)
        public.good.start()
        await asyncio.to_thread(public.attack, tried)
        beside = await asyncio.to_thread(public.good.stop)
        wrong = public.wrong + public.good.wrong + public.well()
    finally:
        await public.stop()
    p99 = [float(np.percentile(some, 99)) * 1000 for some in (quiet, beside or [float("inf")])]
    print(
        f"  beside {len(tried)} of them its 99th percentile of {len(beside)} attends is {p99[1]:.1f} ms, of "
        f"{len(quiet)} quiet ones {p99[0]:.1f} ms: {p99[1] / p99[0]:.2f} times",
        flush=True,
    )
    if p99[1] > 2 * p99[0]:
        wrong.append(
            f"a good caller's 99th percentile is {p99[1] / p99[0]:.2f} times the quiet one; at most 2"
        )
    return wrong


def shown(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in outcomes.most_common())


if __name__ == "__main__":
    sys.exit(main())
