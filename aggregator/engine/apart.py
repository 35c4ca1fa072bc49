"""Work on what users bring, in a process of its own: what it takes goes with it, and what it ends is itself.

    python -m aggregator.engine.apart BOUNDS MODULE ARGUMENTS...

The aggregator starts it so (`run`); there it takes its bounds upon itself before anything else, and goes on
as `python -m MODULE ARGUMENTS...` would.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import logging
import os
import resource
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from aggregator.bounds.bounds import ProcessBound
from aggregator.store.folder import FULL
from edge_attention.core.errors import (
    DiskFull,
    GraphDied,
    Internal,
    InvalidGraph,
    OutOfMemory,
    ResourceExhausted,
)
from edge_attention.options import OneLine
from edge_attention.priority import give_way

__all__ = ["run", "start"]

_NO_MEMORY = 75
"""Exit status of work that was refused memory."""
_NO_ROOM = 74
"""Exit status of work whose files found no room on the disk."""
_BADNESS = "700"
"""Where the system's memory is short, this process is ended before the aggregator."""
_NICENESS = 5
"""Calls of others come first. Somebody waits for this, too: at 10 a busy machine gave it a fortieth."""
_ANSWERING = 3
"""Of a process that is kept: a call waits for what it answers, which is a moment's work."""
_MORE = {
    errno.EMFILE: "let it open more files (ulimit -n, LimitNOFILE=)",
    errno.ENFILE: "let its machine open more files (fs.file-max)",
    errno.EAGAIN: "let it have more processes (ulimit -u, TasksMax=)",
}
"""What to do where the system refuses a process."""
_GRACE_SECONDS = 5
_PR_SET_PDEATHSIG = 1


async def run(
    bound: ProcessBound,
    what: str,
    module: str,
    *arguments: str,
    data: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> int:
    """The exit status of `python -m module`, which reads `data` and logs to this process's standard error.

    It does not outlive the call, nor this process. `what` it does begins each message.

    Raises:
        InvalidGraph: it took more time than `bound` gives it, by the clock or of processors.
        OutOfMemory: it took more memory.
        DiskFull: what it wrote found no room.
        ResourceExhausted: the system lets no process begin.
        GraphDied: it was ended by a signal: a fault in code that worked on the model, or no memory anywhere.
    """
    # What this process has freed and kept goes back first: for a while there are two of them. Other C
    # libraries than glibc have no such call.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with tempfile.TemporaryFile() as given:  # a pipe that is being connected does not end when cancelled
        given.write(data)
        given.seek(0)
        process = await _started(bound, module, arguments, environment, given, None)
    try:
        async with asyncio.timeout(bound.seconds):  # wait_for may forget a cancellation
            await process.wait()
    except TimeoutError:
        raise InvalidGraph(
            f"bound {bound.name}-seconds: {what} took more than {bound.seconds:.0f} s; bring a smaller model"
        ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    status = process.returncode
    assert status is not None
    if status == _NO_MEMORY:
        raise OutOfMemory(
            f"bound {bound.name}-memory: {what} takes more than {bound.memory:,} bytes of memory; bring a "
            "smaller model"
        )
    if status == _NO_ROOM:
        raise DiskFull(f"{what}: the disk of the state folder is full; free space there")
    if status == -signal.SIGXCPU:
        raise InvalidGraph(
            f"bound {bound.name}-processor-seconds: {what} takes more than {bound.processor_seconds:,} s of "
            "processors; bring a smaller model"
        )
    if status < 0:
        raise GraphDied(
            f"{what}: the process that did it was ended (signal {-status}, {signal.strsignal(-status)}); "
            "mend the model, or give the aggregator more memory"
        )
    return status


async def start(
    bound: ProcessBound, module: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """`python -m module` with pipes for its standard input and output, which the caller ends.

    It has `bound`'s memory and seconds of processors; those by the clock are the caller's to count.
    """
    pipe = asyncio.subprocess.PIPE
    return await _started(bound, module, arguments, environment, pipe, pipe, _ANSWERING)


async def _started(
    bound: ProcessBound,
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None,
    given: Any,
    said: int | None,
    niceness: int = _NICENESS,
) -> asyncio.subprocess.Process:
    bounds = json.dumps([os.getpid(), bound.memory, bound.processor_seconds, niceness])
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aggregator.engine.apart", bounds, module, *arguments,
            stdin=given, stdout=said, env=os.environ | (environment or {}), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ResourceExhausted(
            f"the aggregator cannot start a process for it: {error.strerror}; "
            f"{_MORE.get(error.errno or 0, 'free memory on its machine')}"
        ) from error


def failed(what: str, status: int) -> Internal:
    """The error for an exit status that says nothing of the model."""
    return Internal(f"{what} ended with {status}; the aggregator's log says more")


def _bind(parent: int, memory: int, processor_seconds: int, niceness: int) -> None:
    """Take the bounds upon this process. What a system does not know is left out."""
    with contextlib.suppress(OSError, AttributeError):  # Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it ended before that
            os._exit(1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_BADNESS)
    give_way(niceness)
    for which, soft, hard in (
        (resource.RLIMIT_DATA, memory, memory),
        (resource.RLIMIT_CPU, processor_seconds, processor_seconds + _GRACE_SECONDS),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        most = resource.getrlimit(which)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(which, (soft, hard))


def main(bounds: str, module: str, *arguments: str) -> int:
    _bind(*json.loads(bounds))
    # Its standard error is the aggregator's, and models have names that are somebody's words.
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except MemoryError:
        return _NO_MEMORY
    except Exception as error:
        if _lacks_room(error):
            return _NO_ROOM
        logging.getLogger(module).exception("%s failed", module)
        return 1
    return 0


def _lacks_room(error: BaseException | None) -> bool:
    """Whether it, or what it came of, is that a disk has no room."""
    if error is None:
        return False
    if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in FULL):
        return True
    return _lacks_room(error.__cause__ or error.__context__)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
