"""A process that works on what somebody sent and is kept for the next question: callers take turns.

    process = KeptProcess(BOUND, "aggregator.some.module", path, what="the tokenizer")
    ids = await process.ask(["encode", text])

The module runs `serve(hello)`: it says that it is ready, or what is wrong, then answers question by question.
Both sides send frames: four bytes of length, little-endian, and JSON. It is started when it is asked and ends
by itself when it was not for a while; one that has ended (by its bounds, by its work) is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from aggregator.bounds.bounds import ProcessBound
from aggregator.bounds.callers_in_turn import CallersInTurn
from aggregator.engine import apart
from edge_attention.core.errors import DeadlineExceeded, EdgeAttentionError, InvalidArgument, Unavailable
from edge_attention.core.printable import shown

__all__ = ["FRAME_BYTES", "KeptProcess", "serve"]

FRAME_BYTES = 64 * 1024 * 1024
IDLE_SECONDS = 300.0
"""Without being asked; then the process ends until it is."""
LEFT_SECONDS = 1.0
"""A question that nobody waits for any more is let come to its end so long: to start the process anew would
take the others longer. Then the process ends with it."""
_WORDS = 500
"""Characters of what it says is wrong."""
_NO_MEMORY = {"lacks": "memory"}
"""Said in place of an answer by a process that ends as it was refused memory."""


class KeptProcess:
    """`python -m module arguments` within `bound`, whose seconds by the clock are of one answer.

    `what` it is begins each message.
    """

    def __init__(
        self,
        bound: ProcessBound,
        module: str,
        *arguments: str,
        what: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._bound = bound
        self._command = module, *arguments
        self._what = what
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._turns = CallersInTurn()
        self._left: set[asyncio.Task[Any]] = set()
        """Questions that nobody waits for any more."""
        self._idle: asyncio.TimerHandle | None = None

    async def ask(self, question: Any, seconds: float = math.inf) -> Any:
        """The answer to `question`; both are what JSON can say. The answer's form is the caller's to check.
        Whose turn it is goes by for whom this is asked.

        `seconds`: the caller waits no longer, for its turn and the answer.

        Raises:
            InvalidArgument: it says that it cannot, and why; or it took longer or more memory than it may.
            Unavailable: it ends whenever it is asked.
            DeadlineExceeded: others' questions, or this one, took all of `seconds`.
        """
        try:
            async with asyncio.timeout(seconds if seconds < math.inf else None) as clock:
                return await self._in_turn(question)
        except TimeoutError:
            if not clock.expired():
                raise
            raise DeadlineExceeded(
                f"{self._what} had not answered after {max(seconds, 0.0):.3g} s: others may ask it, too; try "
                "again, or with a longer deadline"
            ) from None

    async def _in_turn(self, question: Any) -> Any:
        caller = _asker()
        await self._turns.enter(caller)
        work = asyncio.create_task(self._answer(question))
        work.add_done_callback(lambda _: self._turns.leave(caller))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self._leave(work)
            raise

    def _leave(self, work: asyncio.Task[Any]) -> None:
        """Nobody waits for it any more: it has LEFT_SECONDS."""
        ending = asyncio.get_running_loop().call_later(LEFT_SECONDS, work.cancel)
        self._left.add(work)

        def ended(_: object) -> None:
            ending.cancel()
            self._left.discard(work)
            if not work.cancelled():
                work.exception()  # nobody is to be told

        work.add_done_callback(ended)

    async def _answer(self, question: Any) -> Any:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._rest)
        try:
            async with asyncio.timeout(self._bound.seconds):
                return await self._asked(question)
        except TimeoutError:
            await self._end()
            raise InvalidArgument(
                f"bound {self._bound.name}-seconds: {self._what} took more than "
                f"{self._bound.seconds:g} s to answer; send less, or deploy the model with other files"
            ) from None
        except EdgeAttentionError:
            raise
        except BaseException:  # left, or no memory for the answer
            await self._end()  # what it answers would be taken for the next one's answer
            raise

    async def close(self) -> None:
        """End the process. Who asks again starts it again."""
        for work in self._left:
            work.cancel()
        async with self._turns.turn(_asker()):
            if self._idle is not None:
                self._idle.cancel()
            await self._end()

    async def _asked(self, question: Any) -> Any:
        lacked = False
        # One that has used up its seconds of processors, or its memory, has ended: the next one answers.
        for _ in range(2):
            process = await self._running()
            answer = await _answered(process, json.dumps(question).encode())
            lacked = answer == _NO_MEMORY
            if answer is not None and not lacked:
                return self._said(answer)
            await self._end()
        if lacked:  # by one that had answered nothing before: it is the question
            raise InvalidArgument(
                f"bound {self._bound.name}-memory: {self._what} takes more than {self._bound.memory:,} bytes "
                "of memory to answer; send less, or deploy the model with other files"
            )
        raise Unavailable(f"{self._what} ends whenever it is asked; the aggregator's log says more")

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        module, *arguments = self._command
        process = await apart.start(self._bound, module, *arguments, environment=self._environment)
        self._process = process
        hello = await _answered(process, None)
        if hello is None or "error" in hello:
            await self._end()
            self._said(hello or {"error": "it takes too much memory, or too long"})
        return process

    def _said(self, answer: dict[str, Any]) -> Any:
        if "answer" not in answer:
            raise InvalidArgument(
                f"{self._what}: {shown(str(answer.get('error', 'it says nothing')))[:_WORDS]}"
            )
        return answer["answer"]

    def _rest(self) -> None:
        if self._process is not None and self._process.returncode is None and not self._turns.busy:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()


def _asker() -> str:
    """At whose cost the question is."""
    # Here: the process itself, which only serves, is to load no gRPC.
    from aggregator.trust.acting import acting_for

    return acting_for()


async def _answered(process: asyncio.subprocess.Process, question: bytes | None) -> dict[str, Any] | None:
    """What it says, to `question` where there is one; None: it has ended, or says what is no frame."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if question is not None:
            process.stdin.write(struct.pack("<I", len(question)) + question)
            await process.stdin.drain()
        (size,) = struct.unpack("<I", await process.stdout.readexactly(4))
        answer = json.loads(await process.stdout.readexactly(size)) if size <= FRAME_BYTES else None
    except (OSError, ValueError, RecursionError, asyncio.IncompleteReadError):
        return None
    return answer if isinstance(answer, dict) else None


def serve(hello: Callable[[], Callable[[Any], Any]]) -> int:
    """In the process: make ready by `hello`, which gives what answers a question, and answer until the end.

    What either raises is said in place of an answer.
    """
    out, sys.stdout = sys.stdout.buffer, sys.stderr  # nothing else may write there
    try:
        answer = hello()
    except BaseException as error:  # a library's panic is none of Exception
        lacking = "it takes more memory than it may have" if isinstance(error, MemoryError) else str(error)
        _write(out, {"error": lacking[:_WORDS]})
        return 0
    _write(out, {"answer": None})
    while (question := _read(sys.stdin.buffer)) is not None:
        try:
            said = {"answer": answer(question[0])}
        except MemoryError:
            _write(out, _NO_MEMORY)
            raise
        except BaseException as error:
            said = {"error": str(error)[:_WORDS]}
        _write(out, said)
    return 0


def _read(file: BinaryIO) -> tuple[Any] | None:
    """The next question; None at the end."""
    head = file.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack("<I", head)
    return (json.loads(file.read(size)),) if size <= FRAME_BYTES else None


def _write(file: BinaryIO, value: Any) -> None:
    data = json.dumps(value).encode()
    file.write(struct.pack("<I", len(data)) + data)
    file.flush()
