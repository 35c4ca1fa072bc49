"""Reads each file in a process of its own and reports: how many load, why others do not, memory by size.

Fails below 95 in 100, or where a process takes over four times a file, 6 MB (pieces, buffers, and pages of
libraries that it is the first to touch), and a KiB a column.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import re
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.tables.reading import read_table
from tests.corpus.files import download, unpack

LEAST = 0.95
TIMES, SLACK, COLUMN = 4, 6 << 20, 1 << 10
SIZES = (1 << 14, 1 << 17, 1 << 20, 1 << 40)


@dataclass(frozen=True)
class Outcome:
    """`refused`: the message; empty: it loads. `peak`: bytes more than before. `seconds` of the processor."""

    path: Path
    refused: str
    peak: int
    seconds: float
    aside: int
    columns: int


def _peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) << 10  # type: ignore[index]


def _read(path: Path, say: Connection) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, begun = _peak(), time.process_time()
    refused, aside, columns = "", 0, 0
    try:
        table = read_table(path)
        aside, columns = len(table.set_aside), len(table.columns)
    except EdgeAttentionError as error:
        refused = error.message
    say.send((refused, _peak() - before, time.process_time() - begun, aside, columns))


def outcome(path: Path) -> Outcome:
    """`path` read in a process of its own; one that dies has not loaded it."""
    context = multiprocessing.get_context("fork")  # nothing here has threads; imports are paid for once
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_read, args=(path, theirs))
    child.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = ("the process died", 0, 0.0, 0, 0)
    child.join()
    return Outcome(path, *found)


def kind(message: str) -> str:
    """A reason without what is of one file: its name, numbers, names of columns."""
    words = re.sub(r"^[^ ]+\.csv[,:]? ?", "", message)
    words = re.sub(r"^line \d+:? ?", "", words)
    return re.sub(r"'[^']*'", "'...'", re.sub(r"\d[\d,]*", "N", words))[:100]


def room(one: Outcome) -> int:
    """Bytes that reading a file may take."""
    return TIMES * one.path.stat().st_size + SLACK + COLUMN * one.columns


def report(outcomes: list[Outcome], names: bool) -> bool:
    """Prints; whether all is well."""
    loaded = [one for one in outcomes if not one.refused]
    share = len(loaded) / len(outcomes)
    size = sum(one.path.stat().st_size for one in outcomes)
    speed = size / 1e6 / sum(one.seconds for one in outcomes)
    print(
        f"{len(loaded)} of {len(outcomes)} files load, {share:.1%}; {size / 1e6:.0f} MB at {speed:.1f} MB/s"
    )
    print(f"{sum(one.aside > 0 for one in loaded)} of them with columns set aside")
    for why, count in Counter(kind(one.refused) for one in outcomes if one.refused).most_common():
        print(f"  {count:4} refused: {why}")
    if names:
        for one in outcomes:
            if one.refused:
                print(f"    {one.path}: {one.refused}")
    least = 0
    for most in SIZES:
        some = [(one.peak, size) for one in outcomes if least <= (size := one.path.stat().st_size) < most]
        if some:
            times = max(peak / max(size, 1) for peak, size in some)
            upto = f"up to {most >> 10:,} KiB" if most < SIZES[-1] else "larger"
            megabytes = max(peak for peak, _ in some) / 1e6
            print(f"  {len(some):4} files {upto}: {megabytes:.1f} MB and {times:.1f} times the file at most")
        least = most
    large = [one for one in outcomes if one.peak > room(one)]
    for one in large:
        print(f"  too much memory: {one.path}: {one.peak:,} bytes")
    return share >= LEAST and not large


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path(".venv/corpus"), help="archives and files stay there"
    )
    parser.add_argument("--names", action="store_true", help="name each file that is refused")
    options = parser.parse_args()
    archives, files = options.folder / "archives", options.folder / "files"
    archives.mkdir(parents=True, exist_ok=True)
    download(archives)
    paths = unpack(archives, files)
    warm = options.folder / "warm.csv"
    # What is loaded once, for ids too, is no file's.
    warm.write_text("id,a,b,c\n" + "".join(f"{i % 8999},{i or ''},w{i % 9},{i}.5\n" for i in range(9_000)))
    with contextlib.suppress(EdgeAttentionError):
        read_table(warm)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return 0 if report([outcome(path) for path in paths], options.names) else 1


if __name__ == "__main__":
    sys.exit(main())
