"""A federated job as a TOML file, whose format is in docs/client.md. Keys are called as the fields are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from edge_attention.core.losses import OPTIONS
from edge_attention.core.messages.training import (
    ConsensusSpec,
    EncodingSpec,
    LocalSpec,
    LossSpec,
    NewHead,
    OptimizerSpec,
    PushSpec,
    ScheduleSpec,
    SelectionSpec,
    StopSpec,
    StrategySpec,
)
from edge_attention.jobs.array_files import load_npz
from edge_attention.jobs.column_tables import columns_of
from edge_attention.jobs.federated_job import FederatedJob, FederatedModel
from edge_attention.jobs.toml_table import TomlTable, names_of

__all__ = ["federated_job", "model_of", "named_of", "stop_of"]

Named = TypeVar("Named", OptimizerSpec, StrategySpec, EncodingSpec, ScheduleSpec)


def federated_job(path: Path, content: dict[str, Any]) -> FederatedJob:
    """The job of `content`, read from the file at `path`; see `job_file.read_job`."""
    table = TomlTable(path, "", content, names_of(FederatedJob))
    return FederatedJob(
        name=table.take("name", str, path.stem),
        model=model_of(TomlTable(path, "model", table.take("model", dict), names_of(FederatedModel))),
        dataset=table.take("dataset", str),
        strategy=named_of(table, "strategy", StrategySpec),
        local=_local(TomlTable(path, "local", table.take("local", dict), names_of(LocalSpec))),
        rounds=table.take("rounds", int),
        nodes=table.strings("nodes"),
        combine=named_of(table, "combine", StrategySpec, StrategySpec("mean")),
        seed=table.take("seed", int, 0),
        weighting=table.take("weighting", str, "samples"),
        selection=_selection(table.table("selection", names_of(SelectionSpec))),
        update=named_of(table, "update", EncodingSpec, EncodingSpec()),
        push=_push(table.table("push", names_of(PushSpec))),
        consensus=_consensus(table.table("consensus", names_of(ConsensusSpec))),
        holdout=table.number("holdout", 0.0),
        evaluate_every=table.take("evaluate_every", int, 0),
        patience_seconds=table.optional_number("patience_seconds"),
        stop=stop_of(table.table("stop", names_of(StopSpec))),
        keep_versions=table.take("keep_versions", int, 10),
        **columns_of(table),
    )


def named_of(table: TomlTable, key: str, spec: type[Named], default: Named | None = None) -> Named:
    """What `key` chooses: a table of its name and options, or the name alone."""
    if default is not None and not table.has(key):
        return default
    if table.is_text(key):
        return spec(table.take(key, str))
    inner = TomlTable(table.file, table.name(key), table.take(key, dict), None)
    return spec(inner.take("name", str), inner.numbers())


def model_of(table: TomlTable, train: tuple[str, ...] | None = None) -> FederatedModel:
    """The model of its table. `train`: its parameters, where the table does not say them."""
    return FederatedModel(
        file=table.path("file"),
        loss=_loss(table),
        inputs=table.columns("inputs"),
        parameters=table.strings("parameters") if table.has("parameters") else train,
        initial=table.path("initial") if table.has("initial") else None,
        gradients=table.texts("gradients", "an output"),
        metrics=table.strings("metrics"),
        dimensions=table.sizes("dimensions"),
        head=_head(table.table("head", names_of(NewHead))) if table.has("head") else None,
    )


def _head(table: TomlTable) -> NewHead:
    return NewHead(
        of=table.take("of", str, ""),
        outputs=table.take("outputs", int),
        hidden=table.take("hidden", int, 0),
        pool=table.take("pool", str, ""),
        mask=table.take("mask", str, ""),
    )


def _loss(table: TomlTable) -> str | LossSpec:
    if table.is_text("loss") or not table.has("loss"):
        return table.take("loss", str, "output")
    inner = table.table("loss", {*(names_of(LossSpec) - {"options"}), *OPTIONS})
    return LossSpec(
        inner.take("name", str),
        inner.take("output", str, ""),
        inner.take("labels", str, ""),
        class_weights=inner.list_of_numbers("class_weights"),
        positive_weights=inner.list_of_numbers("positive_weights"),
        weights=inner.take("weights", str, ""),
        options=inner.numbers(),
    )


def _local(table: TomlTable) -> LocalSpec:
    return LocalSpec(
        optimizer=named_of(table, "optimizer", OptimizerSpec),
        batch=table.take("batch", int),
        steps=table.take("steps", int, 0),
        epochs=table.number("epochs", 0.0),
        clip=table.number("clip", 0.0),
        schedule=named_of(table, "schedule", ScheduleSpec, ScheduleSpec()),
        clip_gradients=table.number("clip_gradients", 0.0),
    )


def _selection(table: TomlTable) -> SelectionSpec:
    return SelectionSpec(
        fraction=table.number("fraction", 1.0),
        minimum=table.take("minimum", int, 1),
        quorum=table.number("quorum", 1.0),
        deadline_seconds=table.optional_number("deadline_seconds"),
        adaptive=table.optional_number("adaptive"),
    )


def _push(table: TomlTable) -> PushSpec:
    return PushSpec(
        table.take("difference", bool, False), named_of(table, "encoding", EncodingSpec, EncodingSpec())
    )


def _consensus(table: TomlTable) -> ConsensusSpec:
    return ConsensusSpec(
        attention=table.take("attention", str, ""),
        probe=load_npz(table.path("probe")) if table.has("probe") else {},
        attention_weight=table.number("attention_weight", 0.0),
        parameter_weight=table.number("parameter_weight", 0.0),
    )


def stop_of(table: TomlTable) -> StopSpec:
    """When a run ends before its last round."""
    return StopSpec(
        table.optional_number("loss"),
        table.table("metrics", None).numbers(),
        table.optional_number("seconds"),
        table.take("patience", int, 0),
        table.number("min_delta", 0.0),
    )
