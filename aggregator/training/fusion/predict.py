"""What a fusion run's model says of samples whose rows are on the nodes, by their ids.

each node   rows -> encoder -> keys, values -> (out, lse)      by the run's own graphs and releases
here        ids -> rows, by keyed hashes; partials merged; the head over what comes of it, apart
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aggregator.fleet.columns import TableView
from aggregator.training.fusion.alignment import HASH_BYTES, Alignment
from aggregator.training.fusion.export import FusionExport, answer_of
from aggregator.training.fusion.plan import FusionPlan, view_of
from aggregator.training.fusion.recipe import FusionRounds, FusionSamples
from aggregator.training.gap_reads import PRESENCE
from aggregator.training.readiness import whole_rows
from aggregator.training.services import Services
from edge_attention.core.errors import InvalidTensor, NotFound, Unavailable
from edge_attention.core.messages.training import MissingSamples, PredictResponse
from edge_attention.core.partial import mass
from edge_attention.core.printable import shown
from edge_attention.core.tensors import Array, Int64

__all__ = ["predict"]

PATIENCE_SECONDS = 60.0
"""How long a prediction waits for a node, and for what it computes."""
MAX_SHOWN = 8
"""Ids that a message names."""


async def predict(
    run: str,
    plan: FusionPlan,
    views: Mapping[str, Mapping[str, object]],
    parameters: Mapping[str, Array],
    version: int,
    key: bytes,
    ids: Sequence[str],
    request: FusionExport,
    services: Services,
    folder: Path,
) -> PredictResponse:
    """The outputs of the head that need no labels, a row for each of `ids`, in their order.

    `views`: how the run reads datasets, as its record 0 has it; `key`: of the hashes of its ids; `folder`:
    for what is written meanwhile.

    Raises:
        Unavailable: a node with tokens is not here, or went away.
        NotFound: an id is on no node; or on not all of them, and the run leaves such samples out.
        InvalidTensor: a dataset has an id twice.
        InvalidGraph: the head says nothing without labels.
        ResourceExhausted: it says too much.
    """
    nodes = tuple(dict.fromkeys(part.node for part in plan.encoders))
    if away := [node for node in nodes if not services.membership.live(node)]:
        raise Unavailable(f"node {', '.join(away)}, which has rows of the samples, is not here; start it")
    scope = f"{run}-asked-{secrets.token_hex(3)}"
    rounds = FusionRounds(scope, plan, services.trips, PATIENCE_SECONDS, key, lambda sentence: None)
    known = {}
    for part in plan.parts:
        if part.prefix in views:
            known[part.prefix] = TableView.from_json(views[part.prefix])
        else:  # of a run that an earlier release began
            datasets = services.membership.require_live(part.node).register.datasets
            known[part.prefix] = view_of(plan, part, datasets)
    rounds.use(known)
    try:
        hashes = await rounds.identities(plan.encoders)
        told = await rounds.told(PRESENCE, plan.encoders)
        # Of a million rows it takes a second.
        samples = await asyncio.to_thread(_matched, plan, hashes, told, key, ids)
        merged, lses = await rounds.fused(samples, parameters, version)
    finally:
        for node in nodes:
            rounds.forget_on(node)
    outputs = await answer_of(request, merged.out, folder)
    masses = {e.node: float(mass(lses[e.node], merged.lse).mean()) for e in plan.encoders}
    absent = {e.node: n for e in plan.encoders if (n := int((samples.rows(e)[1] == 0).sum()))}
    return PredictResponse(version, outputs, masses, absent)


def _matched(
    plan: FusionPlan,
    hashes: Mapping[str, Array],
    told: Mapping[str, Mapping[str, Array]],
    key: bytes,
    ids: Sequence[str],
) -> FusionSamples:
    """Where the samples' rows are. Blocks.

    `hashes`: of the ids of every source's rows; `told`: of parts that leave rows out, which are whole.
    """
    wanted = [hmac.digest(key, id.encode(), "sha256")[:HASH_BYTES] for id in ids]
    rows: dict[str, Int64] = {}
    ranks: dict[str, Int64] = {}
    for part in plan.encoders:
        own = hashes[part.source]
        places = {row.tobytes(): i for i, row in enumerate(own)}
        if len(places) != len(own):
            raise InvalidTensor(f"{part.source}: two rows have the same id")
        found = [places.get(digest, -1) for digest in wanted]
        if part.prefix in told:
            whole = whole_rows(part, told[part.prefix]["complete"], len(own))
            ranks[part.prefix] = np.cumsum(whole, dtype=np.int64) - 1
            found = [row if row >= 0 and whole[row] else -1 for row in found]
        rows[part.source] = np.array(found, np.int64)
    _require(plan, rows, ids)
    complete = int(np.logical_and.reduce([each >= 0 for each in rows.values()]).sum())
    alignment = Alignment(rows, complete, len(ids) - complete, "", ranks)
    return FusionSamples(np.arange(len(ids)), alignment)


def _require(plan: FusionPlan, rows: Mapping[str, Int64], ids: Sequence[str]) -> None:
    """Refuse ids that no node has, and where the run left them out those that one lacks."""
    nowhere = np.logical_and.reduce([each < 0 for each in rows.values()])
    if nowhere.any():
        raise NotFound(
            f"{_named(ids, nowhere)}: no node has a row of {'it' if nowhere.sum() == 1 else 'them'}. Ids are "
            "compared as text; where nodes were started with --id-key nobody but them can find an id"
        )
    if plan.job.missing is MissingSamples.ATTEND:
        return
    for source, each in rows.items():
        if (lacking := each < 0).any():
            raise NotFound(
                f"{_named(ids, lacking)}: {source} has no row, or none that is whole, and the model was "
                "trained on samples that all nodes have (missing = 'leave_out')"
            )


def _named(ids: Sequence[str], which: Array) -> str:
    names = [shown(ids[i][:80]) for i in np.flatnonzero(which).tolist()]
    more = f" and {len(names) - MAX_SHOWN:,} more" if len(names) > MAX_SHOWN else ""
    return f"id {', '.join(map(repr, names[:MAX_SHOWN]))}{more}"
