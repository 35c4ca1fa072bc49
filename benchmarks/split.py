"""Steps of models that train through the split, over three real nodes: issue 15's Show 6.

    python -m benchmarks split

What steps take from one commit to the next, by the seconds that all nodes were in graphs meanwhile, together:
parts wait for each other, and the pipeline hides it where it is full. Runs of the models and splits come in
turn, a few steps each, so that what else the machine does meets all of them. While several pieces are under
way, nodes of one machine wait for its processors within their graphs, which makes that sum larger: by layers,
where a piece keeps one node busy at a time, a step is given by the sum of pieces that go through alone, too.

`narrow` models are those of tests/split_training: a graph of theirs computes for 0.3 ms, on pieces of 4 texts
of 12 letters. Models of 256 channels have BERT-mini's sizes (4 layers, 4 heads) and pieces of 4 texts of 64
letters: `bert` is BERT's encoder, `causal` a decoder with rotary positions.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from onnx import ModelProto

from benchmarks.infer_models import EncoderSizes, model_file
from benchmarks.report import Figure, Report
from edge_attention import Client, FederatedModel, LossSpec, NewHead, OptimizerSpec, SplitJob
from edge_attention.core.tensors import Array
from edge_attention.graphs.builders.sequences import attention_sequences

__all__ = ["report"]

NODES = ("a", "b", "c")
KINDS, SPLITS = ("narrow bert", "narrow llama", "bert", "causal"), ("layers", "heads", "tokens")
BATCH, PIECES = 32, 8
"""More pieces than are under way at a time: the pipeline is full but for a step's first and last ones."""
TURNS, STEPS, FIRST = 3, 13, 3
"""Runs of each, steps of a run, and those of them that do not count: what is loaded the first time."""
BOUND = 1.3
LETTERS, LENGTH = 64, 64
MINI = EncoderSizes("bert-mini", 256, 4, 4, vocabulary=LETTERS, positions=LENGTH)


def report(quick: bool) -> Report:
    """`quick`: a run of each."""
    tests = Path(__file__).parents[1] / "tests"
    sys.path[:0] = [str(tests), str(tests / "e2e")]
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    alone: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        fleet = importlib.import_module("fleets").Fleet(Path(folder), state=True)
        try:
            fleet.nodes(*NODES)
            models = {kind: _model(kind, Path(folder)) for kind in KINDS}
            with fleet.client(timeout=600) as client:
                for turn in range(1 if quick else TURNS):
                    for kind, (model, samples) in models.items():
                        for split in SPLITS:
                            step, graphs = _measured(client, _job(model, samples, split, turn))
                            if split == "layers":
                                _, one = _measured(client, _job(model, samples, split, turn, pieces=1))
                                alone[kind].append(step / (PIECES * one))
                            ratios[kind, split].append(step / graphs)
                            seconds[kind, split].append(step)
                            print(
                                f"{kind} by {split}: {1e3 * step:.0f} ms a step, "
                                f"{step / graphs:.2f} of its segments' sum",
                                file=sys.stderr,
                                flush=True,
                            )
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
    figures += [
        Figure(f"{kind} by layers: a step, of its segments' sum, a piece at a time", median(found), "", BOUND)
        for kind, found in alone.items()
    ]
    details = {"ratios": {f"{kind} {split}": found for (kind, split), found in ratios.items()}}
    title = f"Training through the split: steps of {BATCH} samples in {PIECES} pieces, 3 nodes"
    return Report(title, tuple(figures), (), details)


def _measured(client: Client, job: SplitJob) -> tuple[float, float]:
    """Seconds of a step, from commit to commit, and of its segments: means over those that count."""
    ends: list[float] = []
    graphs: list[float] = []
    for one in client.train(job):
        ends.append(time.perf_counter())
        graphs.append(one.seconds["graphs"])
    counted = graphs[FIRST:]
    return (ends[-1] - ends[FIRST - 1]) / len(counted), sum(counted) / len(counted)


def _model(kind: str, folder: Path) -> tuple[FederatedModel, Mapping[str, Array]]:
    """What trains, and its samples: real text by letters."""
    one_machine: Any = importlib.import_module("one_machine")
    if kind.startswith("narrow "):
        name = kind.removeprefix("narrow ")
        data, loss, parameters, head = one_machine.model_of(name)
        return FederatedModel(data, loss, parameters=parameters or None, head=head), one_machine.samples(name)
    rows = one_machine.text_rows(96, LENGTH + 1)
    if kind == "causal":
        data = attention_sequences(LETTERS, LENGTH, 256, 4, 4, causal=True, rotary=True)
        return (
            FederatedModel(data, LossSpec("cross_entropy", "logits")),
            {"tokens": rows[:, :-1], "labels": rows[:, 1:]},
        )
    data = model_file(MINI, folder).read_bytes()
    output = ModelProto.FromString(data).graph.output[0].name
    head = NewHead(of=output, outputs=4, pool="mean")
    names = [value.name for value in ModelProto.FromString(data).graph.input]
    samples = {
        name: rows[:, :-1] if name == "input_ids" else np.ones((96, LENGTH), np.int64) for name in names
    }
    samples |= {"labels": (rows.sum(1) % 4).astype(np.int64)}
    return FederatedModel(data, LossSpec("cross_entropy"), parameters=["*"], head=head), samples


def _job(
    model: FederatedModel, samples: Mapping[str, Array], split: str, turn: int, pieces: int = PIECES
) -> SplitJob:
    """Of `pieces` pieces of one size."""
    return SplitJob(
        name=f"{split}-{turn}-{time.time_ns() % 1_000_000_000}",
        model=model,
        split=split,
        data=samples,
        optimizer=OptimizerSpec("adamw", {"lr": 1e-3}),
        rounds=STEPS,
        batch=BATCH // PIECES * pieces,
        micro_batches=pieces,
        nodes=NODES,
    )
