"""`make fuzz`: messages of real sessions, changed, against real processes.

    python -m tests.fuzz [--messages 20000] [--seed 0] [--target NAME ...] [--replay FILE] [--keep DIR]

After every batch the victim lives, answers a good call exactly, holds no more memory and descriptors than it
may, and has logged no traceback. What fails is narrowed down to one input, printed, and kept in
tests/fuzz/corpus/found, whose inputs are all sent first. Ends with 0 if nothing failed. A seed says which
inputs are sent, in which order.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.corpus import FOUND, Corpus
from tests.fuzz.enrolment import Enrolment
from tests.fuzz.http import Http
from tests.fuzz.link import Link
from tests.fuzz.node import EdgeNode
from tests.fuzz.targets import Input, Services, Target

TARGETS: dict[str, type[Target]] = {one.name: one for one in (Services, Link, EdgeNode, Http, Enrolment)}
BATCH = 500
"""Inputs between two checks."""

FEW = 8
"""So many inputs that do it together are kept in the repository; more were not narrowed down."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--target", action="append", choices=sorted(TARGETS), help="only this one; repeatable"
    )
    parser.add_argument(
        "--replay", type=Path, help="send what a file of tests/fuzz/corpus/found says, and nothing else"
    )
    parser.add_argument("--keep", type=Path, help="leave the victims' files in this folder")
    options = parser.parse_args()
    known = corpus.load()
    names = options.target or list(TARGETS)
    print(f"seed {options.seed}, {options.messages:,} messages", flush=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        run = Run(known, options.keep or Path(folder))
        if options.replay:
            lines = options.replay.read_text().splitlines()
            return asyncio.run(run.replay([Input.of(line) for line in lines if line]))
        shares = sum(TARGETS[name].share for name in names)
        failed = 0
        for name in names:
            count = round(options.messages * TARGETS[name].share / shares)
            failed += not asyncio.run(run.fuzz(TARGETS[name], count, options.seed))
    print(f"{len(names) - failed} passed, {failed} failed")
    return int(bool(failed))


class Run:
    def __init__(self, known: Corpus, folder: Path) -> None:
        self._corpus, self._folder = known, folder
        self._started = 0

    async def _victim(self, cls: type[Target]) -> Target:
        self._started += 1
        folder = self._folder / f"{cls.name}-{self._started}"
        folder.mkdir(parents=True)
        target = cls(folder, self._corpus)
        await target.start()
        return target

    async def fuzz(self, cls: type[Target], count: int, seed: int) -> bool:
        """Whether nothing failed."""
        rng = random.Random(f"{cls.name} {seed}")
        target = await self._victim(cls)
        began = time.monotonic()
        kept = [one for _, one in found(cls.name)]
        try:
            if wrong := await target.check():
                print(f"{cls.name}: not well at the beginning: {wrong}")
                return False
            sent = 0
            while sent < count or kept:
                batch = kept or [target.make(rng) for _ in range(min(BATCH, count - sent))]
                sent += 0 if kept else len(batch)
                kept = []
                await self._send(target, batch)
                if wrong := await target.check():
                    print(
                        f"{cls.name}: after {sent:,} messages of seed {seed}:", *wrong, sep="\n  ", flush=True
                    )
                    await target.stop()
                    await self._narrow(cls, batch)
                    return False
        finally:
            heard = target.heard()
            figures = target.figures() if all(child.running for child in target.children) else ""
            await target.stop()
        seconds = time.monotonic() - began
        print(f"{cls.name:10} {count:6,} messages in {seconds:5.0f} s; {figures}")
        print(f"           answered: {heard}", flush=True)
        return True

    async def _send(self, target: Target, batch: Sequence[Input]) -> None:
        """So many at a time as the target takes, in order."""
        left = iter(batch)

        async def worker() -> None:
            for one in left:
                if not all(child.running for child in target.children):
                    return
                await target.send(one)

        await asyncio.gather(*(worker() for _ in range(target.together)))

    async def _narrow(self, cls: type[Target], batch: Sequence[Input]) -> None:
        """Find out which of them it was, on fresh victims; keep it, or all of them."""
        culprits = list(batch)
        while len(culprits) > 1:
            for half in (culprits[: len(culprits) // 2], culprits[len(culprits) // 2 :]):
                if await self._fails(cls, half):
                    culprits = half
                    break
            else:
                break
        text = "\n".join(one.text() for one in culprits)
        print(f"{len(culprits)} inputs do it:\n{text[:4000]}")
        where = FOUND if len(culprits) <= FEW else Path(tempfile.gettempdir())
        where.mkdir(parents=True, exist_ok=True)
        file = where / f"{cls.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
        file.write_text(text + "\n")
        print(f"kept: python -m tests.fuzz --replay {file}", flush=True)

    async def _fails(self, cls: type[Target], inputs: Sequence[Input]) -> list[str]:
        target = await self._victim(cls)
        try:
            await target.check()
            await self._send(target, inputs)
            return await target.check()
        finally:
            await target.stop()

    async def replay(self, inputs: Sequence[Input]) -> int:
        wrong = await self._fails(TARGETS[inputs[0].target], inputs)
        print(*(wrong or ["nothing is wrong"]), sep="\n")
        return int(bool(wrong))


def found(name: str) -> list[tuple[Path, Input]]:
    """What was found before, at this target."""
    return [
        (file, Input.of(line))
        for file in sorted(FOUND.glob(f"{name}-*.jsonl"))
        for line in file.read_text().splitlines()
        if line
    ]


if __name__ == "__main__":
    sys.exit(main())
