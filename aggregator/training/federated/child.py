"""Work in a process of its own: the memory it takes goes with it, and heartbeats do not wait for it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Mapping
from contextlib import suppress


async def run(
    module: str,
    *arguments: str,
    seconds: float,
    data: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> int:
    """The exit status of `python -m module`, which reads `data` and logs to this process's standard error.

    It does not outlive the call.

    Raises:
        TimeoutError: it took longer than `seconds`.
    """
    # What this process has freed and kept goes back first: for a while there are two of them. Other C
    # libraries than glibc have no such call.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments,
        stdin=asyncio.subprocess.PIPE, env=os.environ | (environment or {}),
    )  # fmt: skip
    try:
        async with asyncio.timeout(seconds):  # wait_for may forget a cancellation
            await process.communicate(data)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode
