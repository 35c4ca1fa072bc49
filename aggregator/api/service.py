"""The client services that are of no recipe: the fleet, and tensors in bulk."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from aggregator.bounds.bounds import DOWNLOADS, UPLOAD_BYTES, UPLOAD_IDLE_SECONDS, UPLOADS
from aggregator.bounds.budget import Budgets
from aggregator.bounds.turns import Turns
from aggregator.engine.bulk import Bulk
from aggregator.engine.endings import to_the_end
from aggregator.engine.listed import listed
from aggregator.engine.recipe import Recipe
from aggregator.engine.waiting import each_within
from aggregator.fleet.membership import Membership
from aggregator.trust.callers import caller_of
from aggregator.trust.endpoint import AuditLine, Endpoint
from aggregator.trust.revocations import RevokedNodes
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages import fleet
from edge_attention.core.messages.link import Chunk, DownloadRequest, UploadChunk, Uploaded
from edge_attention.wire import services

FORGOTTEN = AuditLine("node_forgotten", lambda q, r: {"node": q.node, "even_alone": q.even_alone})

FEW = 5
"""Things that a refusal names; of more the rest are counted."""

PART = 64
"""Bytes of what a node says of itself that take as long to list as another node."""


class Api:
    """Serves fleet and bulk; each recipe serves its own (as attention/service.py)."""

    def __init__(
        self,
        membership: Membership,
        bulk: Bulk,
        revoked: RevokedNodes = dict,
        budgets: Budgets | None = None,
        turns: Turns | None = None,
        recipes: Sequence[Recipe] = (),
    ) -> None:
        self._recipes = recipes
        self._membership = membership
        self._bulk = bulk
        self._revoked = revoked
        self._budgets = budgets or Budgets()
        self._turns = turns or Turns()

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(services.LIST_NODES, self.list_nodes, "viewer"),
            Endpoint(services.FORGET_NODE, self.forget_node, "operator", FORGOTTEN),
            Endpoint(services.BULK_UPLOAD, self.upload, "user"),
            Endpoint(services.BULK_DOWNLOAD, self.download, "user"),
        )

    async def list_nodes(self, request: fleet.ListNodesRequest, call: Any) -> fleet.ListNodesResponse | bytes:
        revoked, members = self._revoked(), self._membership.members()

        def make() -> fleet.ListNodesResponse:
            nodes = self._membership.nodes(time.monotonic(), members)
            return fleet.ListNodesResponse(
                tuple(replace(node, revoked_at=revoked.get(node.name)) for node in nodes)
            )

        # What a node says of itself may be long.
        count = len(members) + sum(member.described for member in members) // PART
        return await listed(services.LIST_NODES, call, count, make, self._turns)

    async def forget_node(self, request: fleet.ForgetNodeRequest, call: Any) -> fleet.ForgetNodeResponse:
        name = request.node
        self._membership.require_forgettable(name)
        lost = [what for recipe in self._recipes if recipe.only_on for what in recipe.only_on(name)]
        if lost and not request.even_alone:
            raise FailedPrecondition(
                f"no other node than {name!r} has {_some(lost)}: start it again, or trim, drop or undeploy "
                "what nobody needs; to forget it all the same (--even-alone), and go on without these"
            )
        self._membership.forget(name)
        await to_the_end(self._forgotten(name), counts=True)
        return fleet.ForgetNodeResponse(tuple(lost))

    async def _forgotten(self, name: str) -> None:
        for recipe in self._recipes:
            if recipe.forget is not None:
                await recipe.forget(name)

    async def upload(self, chunks: AsyncIterator[UploadChunk], call: Any) -> Uploaded:
        caller, sender = caller_of(call), f"client {call.peer()} {id(chunks)}"
        with self._budgets.take(UPLOADS, caller), self._budgets.take(UPLOAD_BYTES, caller, 0) as room:
            try:
                coming = each_within(chunks, UPLOAD_IDLE_SECONDS, "an upload's next chunk")
                return await self._bulk.upload(sender, coming, keep=True, room=room)
            finally:
                # A connection of a client's is one try; it does not come back to finish a part.
                self._bulk.forget(sender)

    async def download(self, request: DownloadRequest, call: Any) -> AsyncIterator[Chunk]:
        with self._budgets.take(DOWNLOADS, caller_of(call)):
            async for chunk in self._bulk.download(request):
                yield chunk
                del chunk


def _some(found: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(found) - FEW:,} more" if len(found) > FEW else ""
    return f"{', '.join(found[:FEW])}{more}"
