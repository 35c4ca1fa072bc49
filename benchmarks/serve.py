"""Many clients at once: how many requests a second three boxes answer, by three times one box.

Boxes are node processes in control groups of a share of a core each, so that two cores stand for three of
them, the aggregator and the clients; for that one must be root. One box has the whole model; then all three
have it, and then each has a third of its layers, with enough requests under way that all of them compute.
Each request runs by itself: what is compared is boxes, and not batches.

The share: three of 0.4 are 1.2 of two cores, and the aggregator with its clients takes 0.2 (measured), so the
boxes have what they are given; more would have them wait for each other, and of less everything is slower by
as much. What a call costs a box beside its graphs is slowed with it, so the ratio does not depend on it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.infer_models import MINILM, feeds_of, model_file
from benchmarks.report import Figure, Report
from benchmarks.serve_fleet import ServeFleet, serve_fleet
from edge_attention.client.models import AsyncServedModel
from edge_attention.core.tensors import Array

CLIENTS, SHARE = 16, 0.4
LENGTHS = (128, 256)
"""Tokens of a request: a call costs a box the same at both, its graphs twice as much."""
SCALING_BOUND = 0.9
"""Of three times one box: at least."""
NODES = ("a", "b", "c")


def report(quick: bool) -> Report:
    """Requests a second, one box, replicas and layers in turns; with `quick` fewer turns, shorter."""
    if os.geteuid():
        return Report("Many clients at once", (), ("boxes that are a share of a core need root",))
    with tempfile.TemporaryDirectory() as folder:
        rates = asyncio.run(_measured(Path(folder), 1 if quick else 3, 10.0 if quick else 20.0))
    figures: list[Figure] = []
    for length in LENGTHS:
        one = max(rates[length, "one"])
        figures.append(Figure(f"{length} tokens: one box", one, "requests/s"))
        for name, what in (("replicas", "3 replicas"), ("layers", "3 boxes by layers")):
            best = max(rates[length, name])
            figures.append(Figure(f"{length} tokens: {what}", best, "requests/s"))
            # A bound is an upper one: three times one box by what was answered.
            lost = 3 * one / best
            figures.append(
                Figure(f"{length} tokens: 3 times one box by {what}", lost, "times", 1 / SCALING_BOUND)
            )
    details = {"rates": {f"{length} {name}": found for (length, name), found in rates.items()}}
    return Report(f"{CLIENTS} clients at once, MiniLM", tuple(figures), (), details)


async def _measured(folder: Path, turns: int, seconds: float) -> dict[tuple[int, str], list[float]]:
    path = model_file(MINILM, folder)
    plans = {"one": ("replicate", NODES[:1]), "replicas": ("replicate", NODES), "layers": ("layers", NODES)}
    rates: dict[tuple[int, str], list[float]] = defaultdict(list)
    async with serve_fleet(folder, dict.fromkeys(NODES, SHARE)) as fleet:
        for length in LENGTHS:
            feeds = feeds_of(path, 1, length)
            models = {
                name: await _deployed(fleet, path, f"{name}-{length}", plan, nodes, length)
                for name, (plan, nodes) in plans.items()
            }
            for _ in range(turns):
                for name, model in models.items():
                    rates[length, name].append(await _rate(model, feeds, seconds))
    return rates


async def _deployed(
    fleet: ServeFleet, path: Path, name: str, plan: str, nodes: tuple[str, ...], length: int
) -> AsyncServedModel:
    sizes = {"batch": 1, "sequence": length}
    return await fleet.client.deploy(path, name, plan=plan, nodes=nodes, dimensions=sizes, max_batch=1)


async def _rate(model: AsyncServedModel, feeds: dict[str, Array], seconds: float) -> float:
    """Requests a second that CLIENTS at once are answered, once all of them have been."""
    ends: list[float] = []
    until = time.monotonic() + seconds

    async def ask() -> None:
        while time.monotonic() < until:
            await model.infer(feeds, deadline=60.0)
            ends.append(time.monotonic())

    await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    ends.sort()
    steady = [end for end in ends if ends[CLIENTS] < end <= until]
    return (len(steady) - 1) / (steady[-1] - steady[0])
