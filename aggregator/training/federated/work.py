"""One node's share of a round: bring it to the version, ask it, check what it returns.

The collectors decide who works when.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from aggregator.engine.endings import to_the_end
from aggregator.engine.spool import SpooledTensor
from aggregator.store.tensor_file import Spec, TensorFile, TensorFileWriter
from aggregator.training.federated.asker import Asker, Lacking, NodeAnswer
from aggregator.training.federated.fold import Folder
from aggregator.training.federated.programs import At, ProgramParts, Programs, control
from aggregator.training.federated.push import Push, lent, renamed
from aggregator.training.federated.samples import NodeSamples
from aggregator.training.federated.updates import Update, check, pieces
from aggregator.training.services import Services
from edge_attention.core.messages.program import Drop, Instruction
from edge_attention.core.tensors import Array

__all__ = ["Basis", "Work"]

FEW_ROWS, SMALL_UPDATE = 4096, 128 * 1024
"""Up to so many rows, of a dataset and of a round, and so many bytes, a thread costs more than to draw and to
check them on the loop."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Basis:
    """What nodes start from: a committed version, and the global attention weights it gives.

    `difference`: from the version before to this one, if it was committed as one.
    """

    number: int
    version: int
    parameters: TensorFile
    state: TensorFile | None
    alpha: Array | None = None
    difference: TensorFile | None = None


class Work:
    """Has nodes work on rounds of one run, and remembers what they keep for the next."""

    def __init__(
        self,
        run: str,
        services: Services,
        asker: Asker,
        programs: Programs,
        folder: Folder,
        samples: Mapping[str, NodeSamples],
    ) -> None:
        self._run = run
        self._services = services
        self._asker = asker
        self._programs = programs
        self._folder = folder
        self._samples = samples
        self._wanted = programs.plan.specs(programs.encoding)
        self._keeps = programs.job.push.difference
        # Node -> the round whose residuals it goes on from, and those it may keep besides.
        self._residual: dict[str, int] = {}
        self._besides: dict[str, set[int]] = {}
        # Where parameters stay on nodes: node -> its session and the version it has; all it may keep, and
        # those that a task under way works with.
        self._has: dict[str, tuple[str, int]] = {}
        self._sent: dict[str, set[int]] = {}
        self._used: Counter[tuple[str, int]] = Counter()
        self._small: tuple[TensorFile, int, Push] | None = None
        """Parameters that no node has to fetch: of which version, by how many pushes a message is shared."""

    def took_part(self, node: str, number: int) -> None:
        """The update of `node` in that round counts: it goes on from that round's residuals."""
        # The one before stays until the next is returned: this round may be run again after a restart.
        self._besides[node] = {self._residual[node]} if node in self._residual else set()
        self._residual[node] = number

    async def update(
        self, node: str, basis: Basis, state: Callable[[bool], None], turn: int | None = None
    ) -> Update:
        """The node's checked update. `state(False)`: it is gone, `state(True)`: it is back.

        `turn`: whose rows it takes, where nodes do not go by rounds.

        Raises:
            InvalidTensor: it returned what no node should.
            Refused, DeadlineExceeded: it cannot, or stayed away.
        """
        samples = self._samples[node]
        number = basis.number if turn is None else turn
        few = max(samples.rows, samples.drawn) <= FEW_ROWS
        rows = samples.of_round(number) if few else await asyncio.to_thread(samples.of_round, number)
        residual, besides = self._residual.get(node), self._besides.setdefault(node, set())
        # Of rounds it was left out of, too: what it had of them by then is there.
        old = sorted(besides - {number, residual})
        besides.add(number)

        def program(at: At, forgotten: bool) -> ProgramParts:
            # One that has been restarted without --store has lost its residuals: they begin at zero again.
            kept = None if forgotten else residual
            return self._programs.train(
                number, rows, at, residual=kept, forgotten=old, alpha=basis.alpha, step=basis.version + 1
            )  # fmt: skip

        wanted = self._wanted
        if basis.alpha is not None:
            wanted = wanted | {"attention": (np.dtype(np.float32), basis.alpha.shape)}
        answer = await self.ask(node, basis, program, wanted, state, controls=True)
        besides.difference_update(old)
        weight = samples.job.local.batch if self._programs.strategy.gradients else samples.training
        size, on_disk = 0, False
        for tensor in answer.tensors.values():
            if isinstance(tensor, SpooledTensor):
                size += tensor.file_bytes
                on_disk = True
            else:
                size += int(tensor.nbytes)
        update = Update(node, weight, len(rows), answer.seconds, answer.tensors, size)
        checked = partial(
            check, update, self._programs.plan, self._programs.encoding, samples.job.local.batch
        )
        try:
            if size <= SMALL_UPDATE and not on_disk:
                checked()
            else:
                await asyncio.to_thread(checked)
        except BaseException:
            update.close()
            raise
        return update

    async def ask(
        self,
        node: str,
        basis: Basis,
        program: Callable[[At, bool], ProgramParts],
        wanted: Mapping[str, Spec],
        state: Callable[[bool], None],
        controls: bool = False,
    ) -> NodeAnswer:
        """The node's answer to `program(at, forgotten)`, of nothing but `wanted`: name -> (dtype, shape).

        `forgotten`: what it kept of rounds is lost.
        """
        # A node that has been restarted lacks its parameters first; with --store, nothing else.
        fresh = forgotten = False
        while True:
            async with self._pushed(node, basis, fresh, controls) as (push, before, at):
                instructions, tensors = program(at, forgotten)
                if before:
                    instructions = (*before, *instructions)
                try:
                    answer = await self._asker.ask(
                        node, basis.version, instructions, tensors, push, wanted, state
                    )
                except Lacking as error:
                    if forgotten:
                        raise
                    if fresh:
                        log.warning(
                            "run %s: node %s begins again without what it kept: %s",
                            self._run, node, error.message,
                        )  # fmt: skip
                    fresh, forgotten = True, fresh
                    continue
            if self._keeps and (member := self._services.membership.get(node)) is not None:
                self._has[node] = (member.session, basis.version)
            return answer

    @asynccontextmanager
    async def _pushed(
        self, node: str, basis: Basis, fresh: bool, controls: bool
    ) -> AsyncIterator[tuple[Push, tuple[Instruction, ...], At]]:
        """Whatever `node` needs to start from `basis`, lent meanwhile; instructions; where it then is."""
        bulk, count = self._services.bulk, len(self._programs.plan.names)
        controls = controls and self._programs.strategy.controls
        share = 2 if controls else 1
        at, before = self._at(basis.version), self._at(basis.version - 1)
        instructions: tuple[Instruction, ...] = ()
        with ExitStack() as stack:
            has = -1 if fresh else self._version_of(node)
            needed = {basis.version}
            push = Push()
            if has == basis.version - 1 and basis.difference is not None:
                names = {name: f"task/{name}" for name in basis.difference.specs}
                push = stack.enter_context(lent(bulk, basis.difference, names, share))
                instructions = (*self._programs.catch_up(before, at, lambda name: f"task/{name}"),)
                # It builds upon that again, should it be asked for this one again.
                needed.add(has)
            elif has != basis.version:
                push = self._whole(basis, at, share, stack)
            old: list[int] = []
            if self._keeps:
                sent = self._sent.setdefault(node, {basis.version - 1, basis.version - 2})  # of a life before
                old = sorted(v for v in sent - needed if not self._used[node, v])
                if old:
                    instructions += (Drop(tuple(f"job/{self._run}/p/{v}/" for v in old)),)
                sent |= needed
                stack.callback(self._used.subtract, {(node, v): 1 for v in needed})
                self._used.update({(node, v): 1 for v in needed})
            if controls:
                file = await self._controls(node, basis, stack)
                push += stack.enter_context(lent(bulk, file, renamed(count, "control", control), share))
            yield push, instructions, at
            if self._keeps:
                self._sent[node].difference_update(old)

    def _whole(self, basis: Basis, at: At, share: int, stack: ExitStack) -> Push:
        """All parameters of the version; small ones are the same mapping for every node of a round."""
        small = self._small
        if small is not None and small[0] is basis.parameters and small[1] == share:
            return small[2]
        names = renamed(len(self._programs.plan.names), "p", at)
        push = stack.enter_context(lent(self._services.bulk, basis.parameters, names, share))
        if not push.bulk:
            self._small = basis.parameters, share, push
        return push

    def _at(self, version: int) -> At:
        """Where a node has the parameters: with the task they are for, or for the next to build upon."""
        scope = f"job/{self._run}/p/{version}" if self._keeps else "task/p"
        return lambda index: f"{scope}/{index}"

    def _version_of(self, node: str) -> int:
        member = self._services.membership.get(node)
        session, version = self._has.get(node, ("", -1))
        return version if member is not None and member.session == session else -1

    async def _controls(self, node: str, basis: Basis, stack: ExitStack) -> TensorFile:
        """SCAFFOLD's c - c_i of one node, in a file of its own, which goes with `stack`."""
        plan = self._programs.plan
        path = self._services.parameters.folder(self._run) / f"control-{node}-{basis.number}.safetensors"
        specs = {f"control/{i}": (np.dtype(np.float32), shape) for i, shape in enumerate(plan.shapes)}
        stack.callback(path.unlink, missing_ok=True)

        def write() -> TensorFile:
            writer = TensorFileWriter(path, specs, {})
            try:
                for index, size in enumerate(plan.sizes):
                    for start, stop in pieces(size):
                        piece = self._folder.control(node, basis.state, index, start, stop)
                        writer.write_at(f"control/{index}", start, piece)
                return TensorFile(path, writer.finish(durable=False).digests)
            finally:
                writer.abort()

        return await to_the_end(asyncio.to_thread(write))
