"""A job through the split as a TOML file, whose format is in docs/split_training.md. Keys are called as the
fields are; `steps` may stand for `rounds`, and `train` for `model.parameters`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.training import (
    OptimizerSpec,
    ScheduleSpec,
    SplitData,
    StopSpec,
    StrategySpec,
)
from edge_attention.jobs.column_tables import columns_of
from edge_attention.jobs.federated_job import FederatedModel
from edge_attention.jobs.federated_job_file import model_of, named_of, stop_of
from edge_attention.jobs.split_job import Data, SplitJob, is_plan_file
from edge_attention.jobs.toml_table import TomlTable, names_of

__all__ = ["split_job"]

_SAME = {"steps": "rounds", "train": "model.parameters"}


def split_job(path: Path, content: dict[str, Any]) -> SplitJob:
    """The job of `content`, read from the file at `path`; see `job_file.read_job`."""
    table = TomlTable(path, "", content, names_of(SplitJob) | _SAME.keys())
    model = TomlTable(path, "model", table.take("model", dict), names_of(FederatedModel))
    for key, other in _SAME.items():
        if table.has(key) and (model.has("parameters") if key == "train" else table.has(other)):
            raise InvalidArgument(f"{path}: {key} is the same as {other}; give one of both")
    train = table.strings("train") if table.has("train") else None
    return SplitJob(
        name=table.take("name", str, path.stem),
        model=model_of(model, train),
        split=_split(table, path),
        data=_data(table, path),
        optimizer=named_of(table, "optimizer", OptimizerSpec),
        schedule=named_of(table, "schedule", ScheduleSpec, ScheduleSpec()),
        rounds=table.take("steps" if table.has("steps") else "rounds", int),
        batch=table.take("batch", int),
        nodes=table.strings("nodes"),
        micro_batches=table.take("micro_batches", int, 1),
        recompute=table.take("recompute", bool, False),
        clip=table.number("clip", 0.0),
        seed=table.take("seed", int, 0),
        holdout=table.number("holdout", 0.0),
        evaluate_every=table.take("evaluate_every", int, 0),
        patience_seconds=table.optional_number("patience_seconds"),
        stop=stop_of(table.table("stop", names_of(StopSpec))),
        keep_versions=table.take("keep_versions", int, 10),
        groups=_groups(table),
        local_steps=table.take("local_steps", int, 1),
        strategy=named_of(table, "strategy", StrategySpec, StrategySpec("fedavg")),
        **columns_of(table),
    )


def _split(table: TomlTable, path: Path) -> str | Path:
    """A word, or a plan's file relative to the job's."""
    given = table.take("split", str)
    return path.parent / given if is_plan_file(given) else given


def _groups(table: TomlTable) -> int | list[list[str]]:
    """How many, or the nodes of each."""
    if table.is_whole("groups"):
        return table.take("groups", int)
    return table.take("groups", list, [])


def _data(table: TomlTable, path: Path) -> Data | list[Data]:
    if table.is_list("data"):
        return [path.parent / file for file in table.strings("data")]
    if table.is_text("data"):
        return path.parent / table.take("data", str)
    inner = table.table("data", {"inputs", "labels", "passes"})
    return SplitData("", inner.take("inputs", str), inner.take("labels", str), inner.strings("passes"))
