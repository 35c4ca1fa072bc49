"""A job that trains one model through a split of it over nodes, as a user writes it, in Python or TOML.

    job = SplitJob(
        name="reviews",
        model=FederatedModel("bert.onnx", LossSpec("cross_entropy", "logits")),
        split="layers",
        data="reviews.npz",
        optimizer=OptimizerSpec("adamw", {"lr": 1e-4}),
        schedule=ScheduleSpec("linear", {"warmup": 50}),
        rounds=500,
        batch=32,
        micro_batches=4,
    )

The same as a file for `edge_attention.read_job` is in docs/split_training.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_attention.core.arrays import as_numbers
from edge_attention.core.errors import DataLoss, InvalidArgument, InvalidTensor
from edge_attention.core.keywords import named_fields
from edge_attention.core.messages import training as jobs
from edge_attention.core.messages.inference import PLAN_FILE_BYTES
from edge_attention.core.messages.training import (
    OptimizerSpec,
    ScheduleSpec,
    SplitData,
    SplitGroup,
    StopSpec,
    StrategySpec,
)
from edge_attention.core.tensors import Array
from edge_attention.jobs import federated_checks as checks
from edge_attention.jobs.array_files import load_npz
from edge_attention.jobs.checks import require_whole
from edge_attention.jobs.columns import Columns, WhereMissing, prepared
from edge_attention.jobs.federated_job import FederatedModel, sent_model
from edge_attention.jobs.parameters import read_safetensors, write_safetensors
from edge_attention.jobs.values import said

__all__ = ["SplitJob", "is_plan_file"]

MAX_DATA = 1 << 30
"""Bytes of a job's own samples."""

Data = str | Path | Mapping[str, Array] | SplitData
"""An .npz or .safetensors file of arrays by the model's inputs, a row a sample; the arrays; or where on nodes
the samples are."""
MAX_GROUPS, MAX_LOCAL_STEPS = 64, 100_000


@named_fields
@dataclass(frozen=True, eq=False)
class SplitJob:
    """Train one model that is cut over nodes, none of which needs to have room for all of it.

    Attributes:
        model: as of a federated job; `parameters` (or `train`) are what trains, as `["*.lora_*"]`.
        split: layers, heads, tokens or batch; of tokens also how attention is crossed (tokens:gather,
            tokens:switch, tokens:merge); or the path of a plan's file (docs/plans.md).
        data: the samples.
        optimizer: a name of core/optimizers.py, or one with options; the aggregator's.
        schedule: a name of core/learning_rates.py, or one with options.
        rounds: steps of the optimizer, each of `batch` samples.
        nodes: that hold the parts, in their order; empty: those that are there when the run starts.
        micro_batches: pieces that a step's samples go through the parts in, several at a time.
        recompute: activations are computed again on the way back, instead of being kept.
        clip: above 0: the L2 norm of a step's gradient, over all parameters, is at most that.
        seed, holdout, evaluate_every, patience_seconds, stop, keep_versions: as of a federated job.
        columns, missing_values: as of a federated job, where the samples are on nodes.
        groups: of nodes that hold the whole model each and train it on their own data: the names of each, or
            how many groups of equal size `nodes` make, in their order. `data` is then a list, one a group, or
            the datasets that each group's own nodes have.
        local_steps: that a group takes in a round, of `batch` samples each, with an optimizer that begins
            anew; then what groups have come to is folded.
        strategy: how, as of a federated job: a name of core/strategies, or one with options.
    """

    name: str
    model: FederatedModel
    split: str | Path
    data: Data | Sequence[Data]
    optimizer: str | OptimizerSpec
    rounds: int
    batch: int
    schedule: str | ScheduleSpec = "constant"
    nodes: tuple[str, ...] = ()
    micro_batches: int = 1
    recompute: bool = False
    clip: float = 0.0
    seed: int = 0
    holdout: float = 0.0
    evaluate_every: int = 0
    patience_seconds: float | None = None
    stop: StopSpec = field(default_factory=StopSpec)
    keep_versions: int = 10
    columns: Columns = field(default_factory=dict)
    missing_values: WhereMissing | None = None
    groups: int | Sequence[Sequence[str]] = ()
    local_steps: int = 1
    strategy: str | StrategySpec = "fedavg"

    def prepare(self) -> tuple[jobs.SplitJob, dict[str, bytes]]:
        """The job as it travels, and its files by SHA-256.

        Raises:
            InvalidArgument, InvalidGraph, InvalidTensor: what cannot be such a job, whatever the fleet.
        """
        files: dict[str, bytes] = {}

        def digest(data: bytes) -> str:
            name = hashlib.sha256(data).hexdigest()
            files[name] = data
            return name

        inputs, table = prepared(
            self.model.inputs if isinstance(self.model, FederatedModel) else {},
            self.columns,
            self.missing_values,
            "model.inputs",
        )
        split, plan = _split(self.split)
        nodes = checks.texts(self.nodes, "nodes")
        members = _groups(self.groups, nodes)
        data, own = _data_of(self.data, len(members), digest)
        batch = require_whole(self.batch, "batch", 1, 65_536)
        pieces = require_whole(self.micro_batches, "micro_batches", 1, 1024)
        if batch % pieces:
            raise InvalidArgument(
                f"batch is {batch} and micro_batches {pieces}: a batch is cut into so many equal pieces"
            )
        return jobs.SplitJob(
            name=checks.text(self.name, "name"),
            model=sent_model(self.model, inputs, digest),
            split=split,
            plan=plan,
            data=data,
            optimizer=checks.named(self.optimizer, "optimizer", OptimizerSpec),
            schedule=checks.named(self.schedule, "schedule", ScheduleSpec),
            rounds=require_whole(self.rounds, "rounds", 1, 10_000_000),
            batch=batch,
            nodes=() if members else nodes,
            micro_batches=pieces,
            recompute=checks.switch(self.recompute, "recompute"),
            clip=checks.number(self.clip, "clip"),
            seed=require_whole(self.seed, "seed"),
            holdout=checks.share_below_one(self.holdout, "holdout"),
            evaluate_every=require_whole(self.evaluate_every, "evaluate_every"),
            patience_seconds=checks.optional(self.patience_seconds, "patience_seconds"),
            stop=checks.stop(self.stop),
            keep_versions=require_whole(self.keep_versions, "keep_versions", 1),
            table=table,
            groups=tuple(SplitGroup(names, file) for names, file in zip(members, own, strict=True)),
            local_steps=require_whole(self.local_steps, "local_steps", 1, MAX_LOCAL_STEPS),
            strategy=checks.named(self.strategy, "strategy", StrategySpec),
        ), files


def is_plan_file(split: str) -> bool:
    """Whether it is the path of a plan's file, and no word: a word has no dot and no separator in it."""
    return "." in split or os.sep in split


def _split(given: Any) -> tuple[str, bytes]:
    """A word, or what a plan's file holds."""
    if isinstance(given, str) and not is_plan_file(given):
        return checks.text(given, "split"), b""
    file = checks.path(given, "split")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InvalidArgument(
            f"split is {said(given)}: it is layers, heads, tokens or batch, or a plan's file, and that file "
            f"cannot be read: {error.strerror}"
        ) from None
    if not 0 < len(data) <= PLAN_FILE_BYTES:
        raise InvalidArgument(
            f"the plan {str(given)!r} has {len(data):,} bytes; one has 1 to {PLAN_FILE_BYTES:,} "
            "(PLAN_FILE_BYTES)"
        )
    return "", data


def _groups(given: Any, nodes: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The nodes of each group; none: no groups."""
    if isinstance(given, int) and not isinstance(given, bool):
        count = require_whole(given, "groups", 1, MAX_GROUPS)
        if not nodes or len(nodes) % count:
            raise InvalidArgument(
                f"groups is {count} and nodes names {len(nodes)}: they are cut into so many groups of equal "
                'size; name as many, or the groups, as groups = [["a", "b"], ["c", "d"]]'
            )
        size = len(nodes) // count
        return tuple(nodes[at : at + size] for at in range(0, len(nodes), size))
    if not isinstance(given, list | tuple):
        raise InvalidArgument(f"groups is {said(given)}; give a number, or a list of each group's nodes")
    if given and nodes:
        raise InvalidArgument("nodes and groups name nodes; give one of both")
    if len(given) > MAX_GROUPS:
        raise InvalidArgument(f"groups has {len(given)}; there are {MAX_GROUPS} at most (MAX_GROUPS)")
    found = tuple(checks.texts(names, f"groups, number {at},") for at, names in enumerate(given))
    for at, names in enumerate(found):
        if not names:
            raise InvalidArgument(f"groups, number {at}, names no node")
    named = [name for names in found for name in names]
    if twice := next((name for name in named if named.count(name) > 1), ""):
        raise InvalidArgument(f"groups names {twice!r} twice: a node is of one group")
    return found


def _data_of(given: Any, groups: int, digest: Callable[[bytes], str]) -> tuple[SplitData, tuple[str, ...]]:
    """Where the samples are, and the file of each group's own."""
    if not groups:
        return _data(given, digest), ()
    if isinstance(given, SplitData):
        return _data(given, digest), ("",) * groups
    if not isinstance(given, list | tuple) or len(given) != groups:
        raise InvalidArgument(
            f"data is {said(given)} and there are {groups} groups: give a list of one file a group, or the "
            "datasets that the groups' nodes have"
        )
    found = [_data(one, digest) for one in given]
    if any(one.on_nodes for one in found):
        raise InvalidArgument("data is a list, of a file a group; datasets on nodes are named once for all")
    return SplitData(), tuple(one.file for one in found)


def _data(given: Any, digest: Callable[[bytes], str]) -> SplitData:
    if isinstance(given, SplitData):
        if checks.optional_text(given.file, "data.file"):
            raise InvalidArgument(
                "data.file is a digest that a job gets when it is sent; give data as a path, or as arrays"
            )
        return replace(
            given,
            inputs=checks.text(given.inputs, "data.inputs"),
            labels=checks.text(given.labels, "data.labels"),
            passes=checks.texts(given.passes, "data.passes"),
        )
    if isinstance(given, Mapping):
        arrays = {
            checks.text(name, "a name in data"): as_numbers(a, f"data.{name}") for name, a in given.items()
        }
    else:
        arrays = _of_file(checks.path(given, "data"))
    for name, array in arrays.items():
        if not array.ndim or not len(array):
            raise InvalidTensor(f"data.{name} is {list(array.shape)}; give an array of a row a sample")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:8])
        raise InvalidTensor(
            f"the arrays of data have several numbers of rows ({shown}): give a row a sample in each"
        )
    if (size := sum(array.nbytes for array in arrays.values())) > MAX_DATA:
        raise InvalidArgument(
            f"data has {size:,} bytes; a job's own samples have at most {MAX_DATA:,} (MAX_DATA): leave them "
            "on nodes, or train on a part of them"
        )
    return SplitData(digest(write_safetensors(arrays)))


def _of_file(file: Path) -> dict[str, Array]:
    try:
        if file.suffix == ".safetensors":
            found = read_safetensors(file.read_bytes(), str(file))
        else:
            found = load_npz(file)
    except OSError as error:
        raise InvalidArgument(f"data: {file} cannot be read: {error.strerror}") from None
    except (DataLoss, InvalidArgument) as error:
        raise InvalidArgument(f"data: {error.message}") from None
    return {name: as_numbers(array, f"{file}: {name}") for name, array in found.items()}
