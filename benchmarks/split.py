"""Steps of models that train through the split, over three real nodes: issue 15's Show 6.

    python -m benchmarks split

What a step takes, with its commit, by the seconds that all nodes were in graphs, together: parts wait for
each other, and the pipeline hides it where it is full. Runs of the models and splits come in turn, a few
steps each, so that what else the machine does meets all of them. Models and samples are those of
tests/split_training.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from benchmarks.report import Figure, Report
from edge_attention import FederatedModel, OptimizerSpec, SplitJob

__all__ = ["report"]

NODES = ("a", "b", "c")
KINDS, SPLITS = ("bert", "llama"), ("layers", "heads", "tokens")
BATCH, PIECES = 32, 8
"""More pieces than are under way at a time: the pipeline is full but for a step's first and last ones."""
TURNS, STEPS, FIRST = 5, 10, 3
"""Runs of each, steps of a run, and those of them that do not count: what is loaded the first time."""
BOUND = 1.3


def report(quick: bool) -> Report:
    """`quick`: a run of each."""
    tests = Path(__file__).parents[1] / "tests"
    sys.path[:0] = [str(tests), str(tests / "e2e")]
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        fleet = importlib.import_module("fleets").Fleet(Path(folder), state=True)
        try:
            fleet.nodes(*NODES)
            with fleet.client(timeout=600) as client:
                for turn in range(1 if quick else TURNS):
                    for kind in KINDS:
                        for split in SPLITS:
                            for one in list(client.train(_job(kind, split, turn)))[FIRST:]:
                                took = one.seconds["all"]
                                ratios[kind, split].append(took / one.seconds["graphs"])
                                seconds[kind, split].append(took)
        finally:
            fleet.stop()
    figures = [
        figure
        for (kind, split), found in ratios.items()
        for figure in (
            Figure(f"{kind} by {split}: a step, of its segments' sum", median(found), "", BOUND),
            Figure(f"{kind} by {split}: a step", 1e3 * median(seconds[kind, split]), "ms"),
        )
    ]
    details = {"ratios": {f"{kind} {split}": found for (kind, split), found in ratios.items()}}
    title = f"Training through the split: steps of {BATCH} samples in {PIECES} pieces, 3 nodes"
    return Report(title, tuple(figures), (), details)


def _job(kind: str, split: str, turn: int) -> SplitJob:
    one_machine = importlib.import_module("one_machine")
    data, loss, parameters, head = one_machine.model_of(kind)
    return SplitJob(
        name=f"{kind}-{split}-{turn}-{time.time_ns() % 1_000_000}",
        model=FederatedModel(data, loss, parameters=parameters or None, head=head),
        split=split,
        data=one_machine.samples(kind),
        optimizer=OptimizerSpec("adamw", {"lr": 1e-3}),
        rounds=STEPS,
        batch=BATCH,
        micro_batches=PIECES,
        nodes=NODES,
    )
