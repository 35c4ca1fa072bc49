"""AttentionService's calls about contexts that are there: trim, export, repair."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

from aggregator.attention.upkeep import Upkeep
from aggregator.bounds.bounds import APPENDS, EXPORTS
from aggregator.bounds.budget import Budgets
from aggregator.trust.callers import caller_of
from aggregator.trust.endpoint import AuditLine, Endpoint
from edge_attention.core.messages import attention
from edge_attention.wire import services

TRIMMED = AuditLine(
    "context_trimmed", lambda q, r: {"context": q.context, "start": q.tokens.start, "stop": q.tokens.stop}
)
EXPORTED = AuditLine("context_exported", lambda q, r: {"context": q.context})
REPAIRED = AuditLine("context_repaired", lambda q, r: {"context": q.context, "copied": r.copied if r else 0})

REPAIR_SECONDS = 3600.0
"""What a repair has of a caller who says nothing of it, or more."""
_OF_IT = 0.9
"""The part of what a caller has that copies are begun in: the answer needs some, too."""


class UpkeepApi:
    def __init__(self, upkeep: Upkeep, budgets: Budgets | None = None) -> None:
        self._upkeep = upkeep
        self._budgets = budgets or Budgets()

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(services.TRIM_CONTEXT, self.trim, "operator", TRIMMED),
            Endpoint(services.EXPORT_CONTEXT, self.export, "user", EXPORTED),
            Endpoint(services.REPAIR_CONTEXT, self.repair, "operator", REPAIRED),
        )

    async def trim(self, request: attention.TrimContextRequest, call: Any) -> attention.TrimContextResponse:
        with self._budgets.take(APPENDS, caller_of(call)):
            return await self._upkeep.trim(request.context, request.tokens)

    async def export(
        self, request: attention.ExportContextRequest, call: Any
    ) -> AsyncIterator[attention.ContextPiece]:
        with self._budgets.take(EXPORTS, caller_of(call)):
            async for piece in self._upkeep.export(request.context):
                yield piece

    async def repair(
        self, request: attention.RepairContextRequest, call: Any
    ) -> attention.RepairContextResponse:
        left = call.time_remaining()
        seconds = min(math.inf if left is None else float(left), REPAIR_SECONDS)
        with self._budgets.take(APPENDS, caller_of(call)):
            return await self._upkeep.repair(request.context, _OF_IT * seconds)
