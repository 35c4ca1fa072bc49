"""What every step shares: lines that say how far it is, commands with a deadline, waits that say for what."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
STARTED = time.monotonic()


class Failed(Exception):
    """A step did not do what it must; the text says which, and what was seen instead."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f}s] {text}", flush=True)


def run(
    command: Sequence[str | Path],
    *,
    deadline: float = 120,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    check: bool = True,
) -> str:
    """What `command` printed, both streams together. Fails with its last lines, or after `deadline` s."""
    words = [str(word) for word in command]
    line = shlex.join(words)
    try:
        done = subprocess.run(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            input=stdin,
            text=True,
            errors="replace",
            timeout=deadline,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        raise Failed(
            f"`{line}` had not ended after {deadline:.0f} s; its last lines:\n{tail(said)}"
        ) from None
    if check and done.returncode:
        raise Failed(f"`{line}` ended with {done.returncode}; its last lines:\n{tail(done.stdout)}")
    return done.stdout


def tail(text: str, lines: int = 40) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines()[-lines:])


def wait_for(what: str, ask: Callable[[], T | None], seconds: float, every: float = 0.5) -> T:
    """The first answer of `ask` that is not None or False. `what` completes "waited for"."""
    began = time.monotonic()
    said, last = began, ""
    while True:
        try:
            answer = ask()
        except (Failed, OSError, ValueError, KeyError) as error:
            answer, last = None, f"; last: {str(error).splitlines()[0] if str(error) else repr(error)}"
        if answer is not None and answer is not False:
            return answer
        now = time.monotonic()
        if now - began > seconds:
            raise Failed(f"waited {seconds:.0f} s for {what}, in vain{last}")
        if now - said > 15:
            say(f"  still waiting for {what}, {now - began:.0f} of at most {seconds:.0f} s{last}")
            said = now
        time.sleep(every)


def complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
