"""Many clients at once: how many requests a second three boxes answer, by three times one box.

Boxes are node processes in control groups of a share of a core each, so that two cores stand for three of
them, the aggregator and the clients; for that one must be root. One box has the whole model; then all three
have it, and then each has a third of its layers, with enough requests under way that all of them compute.
Each request runs by itself: what is compared is boxes, and not batches. A model of MiniLM's sizes is small
for a plan by layers: of a box's time for 128 tokens a tenth goes to taking and sending them. One of
BERT-base's sizes is nearer to what people cut.

The share: three of 0.4 are 1.2 of two cores, and the aggregator with its clients takes 0.2 (measured), so the
boxes have what they are given; more would have them wait for each other, and of less everything is slower by
as much. What a call costs a box beside its graphs is slowed with it, so the ratio does not depend on it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

from benchmarks.infer_models import BASE_OF_SIX, MINILM, EncoderSizes, feeds_of, model_file
from benchmarks.report import Figure, Report
from benchmarks.serve_fleet import ServeFleet, serve_fleet
from edge_attention.client.models import AsyncServedModel
from edge_attention.core.tensors import Array

CLIENTS, SHARE = 16, 0.4
SETTINGS = ((MINILM, 128), (MINILM, 256), (BASE_OF_SIX, 128))
"""A model and the tokens of a request. A call costs a box about the same in all; its graphs take twice as
long in the second as in the first, and four times as long in the third."""
SCALING_BOUND = 0.9
"""Of three times one box: at least."""
NODES = ("a", "b", "c")


def report(quick: bool) -> Report:
    """Requests a second, one box, replicas and layers in turns; with `quick` fewer turns, shorter."""
    if os.geteuid():
        return Report("Many clients at once", (), ("boxes that are a share of a core need root",))
    rates: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for sizes, length in SETTINGS:
            where = Path(folder, f"{sizes.width}-{length}")
            where.mkdir()
            rates[f"{sizes.name}, {length} tokens"] = asyncio.run(
                _measured(where, sizes, length, 1 if quick else 3, 15.0 if quick else 25.0)
            )
    figures: list[Figure] = []
    for setting, found in rates.items():
        one = max(found["one"])
        figures.append(Figure(f"{setting}: one box", one, "requests/s"))
        for name, what in (("replicas", "3 replicas"), ("layers", "3 boxes by layers")):
            best = max(found[name])
            figures.append(Figure(f"{setting}: {what}", best, "requests/s"))
            # A bound is an upper one: three times one box by what was answered.
            lost = 3 * one / best
            figures.append(Figure(f"{setting}: 3 times one box by {what}", lost, "times", 1 / SCALING_BOUND))
    return Report(f"{CLIENTS} clients at once", tuple(figures), (), {"rates": rates})


async def _measured(
    folder: Path, sizes: EncoderSizes, length: int, turns: int, seconds: float
) -> dict[str, list[float]]:
    path = model_file(sizes, folder)
    plans = {"one": ("replicate", NODES[:1]), "replicas": ("replicate", NODES), "layers": ("layers", NODES)}
    feeds = feeds_of(path, 1, length)
    rates: dict[str, list[float]] = {name: [] for name in plans}
    async with serve_fleet(folder, dict.fromkeys(NODES, SHARE)) as fleet:
        models = {
            name: await _deployed(fleet, path, name, plan, nodes, length)
            for name, (plan, nodes) in plans.items()
        }
        for _ in range(turns):
            for name, model in models.items():
                rates[name].append(await _rate(model, feeds, seconds))
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
