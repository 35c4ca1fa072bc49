"""Who carries a node's tasks out: threads of its own, or what nodes of one process share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

from edge_attention import box
from edge_attention.core.messages.box import Box
from edge_attention.core.messages.program import Program
from edge_node.short import Short

__all__ = ["Crew", "Hands", "Job", "Threads"]

WORKERS = 4
LOADERS = 4
"""Threads that load graphs and freeze programs."""

Job = Callable[[], Callable[[], None]]
"""Carries a task out; what it returns has the answer leave, and may be called later, from any thread."""


class Crew(Protocol):
    """Takes jobs that are to be done in turn, not on the loop's thread."""

    def put(self, job: Job, waiting: int) -> None:
        """Have it done. `waiting`: tasks of the node that are not over, this one among them."""

    def close(self) -> None:
        """What was put is still done; nothing else comes."""


class Shortness(Protocol):
    """What is known of kinds of programs; see `Short`."""

    def may(self, kind: Hashable | None, now: float) -> bool: ...

    def took(self, kind: Hashable | None, seconds: float, now: float, on_loop: bool) -> None: ...


class Threads:
    """Up to `most` threads, begun as there is work. No executor: its futures would lie on an answer's way."""

    def __init__(self, most: int = WORKERS) -> None:
        self._most = most
        self._count = 0
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()

    def put(self, job: Job, waiting: int) -> None:
        if self._count < min(self._most, waiting):
            self._count += 1
            threading.Thread(target=self._serve, name=f"task_{self._count}", daemon=True).start()
        self._jobs.put(job)

    def close(self) -> None:
        for _ in range(self._count):
            self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()()
            del job  # nor what it made is kept while the next one is waited for


def _loaders() -> Executor:
    return ThreadPoolExecutor(LOADERS, thread_name_prefix="load")


@dataclass(frozen=True)
class Hands:
    """What a node's link works with.

    Attributes:
        crew: does what is not short.
        loaders: load graphs and freeze programs.
        short: says which kinds of programs run on the loop's thread.
        kind: what programs take as long as this one, given its graphs by digest; None: as `kind_of` says, and
            nothing of private data.
        clock: by which a program is short.
        reports: whether the node's metrics go up with its heartbeats.
        machine: the box, given the provider that was asked for.
    """

    crew: Crew = field(default_factory=Threads)
    loaders: Executor = field(default_factory=_loaders)
    short: Shortness = field(default_factory=Short)
    kind: Callable[[Program, Mapping[str, Any]], Hashable | None] | None = None
    clock: Callable[[], float] = time.monotonic
    reports: bool = True
    machine: Callable[[str | None], Box] = box.describe
