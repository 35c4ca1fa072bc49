"""One request to a deployment, counted from its beginning to its end: whichever door it came by."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from aggregator.bounds.budget import Lease
from aggregator.inference.activity import InferenceActivity
from aggregator.inference.deployed import Deployed
from aggregator.inference.deployments import Deployments
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.model_answer import ModelAnswer
from aggregator.inference.protocol.statistics import InferenceCounts
from edge_attention.core.errors import EdgeAttentionError, InvalidArgument
from edge_attention.core.messages.inference import InferReport, ModelTensor
from edge_attention.core.tensors import Array, DataType

__all__ = ["ModelAsker"]

_ROUNDED = "what passes between parts is rounded to float16, as it was deployed with halves"


class ModelAsker:
    """Asks deployments, and has what becomes of it counted."""

    def __init__(
        self,
        deployments: Deployments,
        metrics: InferenceMetrics,
        activity: InferenceActivity,
        counts: InferenceCounts,
    ) -> None:
        self.deployments = deployments
        self.metrics = metrics
        self.activity = activity
        self.counts = counts

    def begin(self, deployed: Deployed | None = None) -> Asking:
        """A request begins; enter what this gives around all of it. Without `deployed` it is not known yet
        which model it is for: say it with `Asking.to`."""
        asking = Asking(self)
        if deployed is not None:
            asking.to(deployed)
        return asking


class Asking:
    """A request under way. A context manager: an error that leaves it is counted as the request's."""

    def __init__(self, asker: ModelAsker) -> None:
        self._asker = asker
        self._begun = time.monotonic()
        self._answered = False
        self.deployed: Deployed | None = None

    def to(self, deployed: Deployed) -> None:
        """It is for this one. Raises FailedPrecondition if that takes no requests."""
        deployed.life.begin()
        self.deployed = deployed

    async def answer(
        self,
        feeds: Mapping[str, Array],
        outputs: tuple[str, ...],
        seconds: float,
        caller: str,
        room: Lease,
        *,
        most: int,
        partial: bool = False,
        priority: int = 0,
        rows: int = 1,
    ) -> tuple[InferReport, Mapping[str, Array]]:
        """The outputs that are wanted, and what they stand on.

        Args:
            room: the caller's; it grows by them.
            most: bytes of them.
            priority: as of Deployments.infer.
            rows: of the batch, for the counts.

        Raises:
            EdgeAttentionError: as Deployments.infer.
            InvalidArgument: the answer has more than `most` bytes.
            Overloaded: there is no room for it.
        """
        deployed = self.deployed
        assert deployed is not None, "asked before it was known whom"
        answer = await self._asker.deployments.infer(
            deployed, feeds, seconds, caller, partial=partial, priority=priority
        )
        results = {name: answer.results[name] for name in outputs if name in answer.results}
        report = _report(deployed, answer, results, time.monotonic() - self._begun, most)
        room.grow(sum(array.nbytes for array in results.values()))
        self._asker.metrics.answered(deployed.name, report)
        self._asker.activity.answered(deployed.name, feeds, report)
        self._asker.counts.answered(deployed.name, deployed.version, rows, report)
        self._answered = True
        return report, results

    def __enter__(self) -> Asking:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._begun
        if isinstance(error, EdgeAttentionError) and not self._answered:
            self._asker.metrics.failed()
            if self.deployed is not None:
                self._asker.activity.failed(self.deployed.name, seconds, error)
        if self.deployed is not None:
            if not self._answered:
                self._asker.counts.failed(self.deployed.name, self.deployed.version, seconds)
            self._asker.deployments.ended(self.deployed, self._answered)


def _report(
    deployed: Deployed, answer: ModelAnswer, results: Mapping[str, Array], seconds: float, most: int
) -> InferReport:
    size = sum(array.nbytes for array in results.values())
    if size > most:
        raise InvalidArgument(
            f"bound infer-bytes: the answer has {size:,} bytes, and one has {most:,} at most: ask for fewer "
            "outputs, or send fewer rows"
        )
    parts = {name.removeprefix("part "): s for name, s in answer.seconds.items() if name.startswith("part ")}
    stages = {name: s for name, s in answer.seconds.items() if not name.startswith("part ")}
    ready = max(seconds - stages.get("all", 0.0) - stages.get("queue", 0.0), 0.0)
    rounded = deployed.request.halves and len(parts) > 1
    return InferReport(
        deployed.version,
        answer.exact and not rounded,
        answer.coverage,
        answer.lacking or (_ROUNDED if rounded else ""),
        {**stages, "ready": ready, "all": seconds},
        parts,
        bytes_down=sum(answer.sent.values()),
        bytes_up=sum(answer.received.values()),
        again=answer.moves,
        outputs=tuple(
            ModelTensor(name, DataType.of(array.dtype, name), tuple(map(str, array.shape)))
            for name, array in results.items()
        ),
        rows=answer.rows,
    )
