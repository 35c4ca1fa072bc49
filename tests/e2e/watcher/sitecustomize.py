"""In a process that starts with this folder on its path: which steps of its event loop take too long.

`EDGE_LOOP_WATCH` names a folder. There a file for each process gets a line for each step that took more
than `EDGE_LOOP_STEP` seconds (0.02) of the loop's own thread: its time on a processor, so that a busy machine
counts for nothing. What the step waits for, a disk or a lock, does not count either. uvloop is not seen.
"""

import asyncio.events
import os
import time

_FOLDER = os.environ.get("EDGE_LOOP_WATCH")
_STEP = float(os.environ.get("EDGE_LOOP_STEP", "0.02"))


def _named(callback):
    task = getattr(callback, "__self__", None)
    if task is not None and hasattr(task, "get_coro"):
        coroutine = task.get_coro()
        frame = getattr(coroutine, "cr_frame", None)
        where = f":{frame.f_lineno}" if frame is not None else ""
        return f"{task.get_name()}: {getattr(coroutine, '__qualname__', coroutine)}{where}"
    return getattr(callback, "__qualname__", repr(callback))


if _FOLDER:
    _run = asyncio.events.Handle._run

    def _watched(handle):
        name = handle._callback
        before = time.thread_time()
        try:
            _run(handle)
        finally:
            if (took := time.thread_time() - before) > _STEP:
                with open(os.path.join(_FOLDER, str(os.getpid())), "a") as file:
                    file.write(f"{time.time():.3f} {1e3 * took:.1f} ms {_named(name)}\n")

    asyncio.events.Handle._run = _watched
