"""Jobs as TOML files, whose format is in docs/client.md. Keys are called as the fields are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.keywords import hint
from edge_attention.core.messages.training import MissingSamples, OptimizerSpec, ScheduleSpec, StopSpec
from edge_attention.core.tensors import Array
from edge_attention.jobs import values
from edge_attention.jobs.array_files import load_npy
from edge_attention.jobs.column_tables import columns_of
from edge_attention.jobs.federated_job import FederatedJob
from edge_attention.jobs.federated_job_file import federated_job, named_of, stop_of
from edge_attention.jobs.job import Encoder, FusionJob, Head, QueriesSpec
from edge_attention.jobs.split_job import SplitJob
from edge_attention.jobs.split_job_file import split_job
from edge_attention.jobs.toml_table import TomlTable, names_of, read_toml

__all__ = ["read_job"]

KINDS = ("fusion", "federated", "split")
TELLING = frozenset({"kind", "split", "strategy", "encoders", "head", "queries"})
"""Keys of which a job has one or more."""


def read_job(path: str | Path) -> FusionJob | FederatedJob | SplitJob:
    """The job of a TOML file, of the kind its key `kind` says; without it, `split` makes it one through the
    split, and `strategy` a federated one.

    Paths in the file are relative to it.

    Raises:
        InvalidArgument: naming the file and the key that is unknown, missing or of a wrong type.
    """
    path = values.path(path, "path")
    content = read_toml(path)
    likely = next(
        (k for k, key in (("split", "split"), ("federated", "strategy")) if key in content), "fusion"
    )
    if not content.keys() & TELLING:
        near = next((f"; it has {key!r}{found}" for key in content if (found := hint(key, TELLING))), "")
        raise InvalidArgument(
            f"{path} is no job: it has neither encoders (a job by fusion), nor strategy (a federated one), "
            f"nor split{near}; docs/client.md has the format of each"
        )
    kind = content.pop("kind", likely)
    if kind not in KINDS:
        raise InvalidArgument(f"{path}: kind is {kind!r}; it must be {' or '.join(map(repr, KINDS))}")
    if kind == "split":
        return split_job(path, content)
    return federated_job(path, content) if kind == "federated" else _fusion_job(path, content)


def _fusion_job(path: Path, content: dict[str, Any]) -> FusionJob:
    table = TomlTable(path, "", content, names_of(FusionJob))
    encoders = tuple(
        Encoder(**_part(TomlTable(path, "encoders", part, names_of(Encoder))))
        for part in table.take("encoders", list)
    )
    head_table = TomlTable(path, "head", table.take("head", dict), names_of(Head))
    metrics = head_table.strings("metrics")
    missing = table.take("missing", str, MissingSamples.LEAVE_OUT.value)
    if missing not in {member.value for member in MissingSamples}:
        raise InvalidArgument(f"{path}: missing is {missing!r}; it must be 'leave_out' or 'attend'")
    given = table.take("queries", dict)
    queries = TomlTable(
        path, "queries", given, {"file"} if "file" in given else names_of(QueriesSpec) | {"file"}
    )
    return FusionJob(
        name=table.take("name", str, path.stem),
        encoders=encoders,
        head=Head(**_part(head_table), metrics=metrics),
        queries=_queries(queries),
        optimizer=named_of(table, "optimizer", OptimizerSpec),
        rounds=table.take("rounds", int),
        batch=table.take("batch", int),
        seed=table.take("seed", int, 0),
        scale=table.optional_number("scale"),
        missing=MissingSamples(missing),
        holdout=table.number("holdout", 0.0),
        evaluate_every=table.take("evaluate_every", int, 0),
        patience_seconds=table.optional_number("patience_seconds"),
        schedule=named_of(table, "schedule", ScheduleSpec, ScheduleSpec()),
        clip=table.number("clip", 0.0),
        stop=stop_of(table.table("stop", names_of(StopSpec))),
    )


def _part(table: TomlTable) -> dict[str, Any]:
    if not table.has("inputs"):
        table.take("inputs", dict)  # says that it is missing
    return {
        "inputs": table.columns("inputs"),
        "node": table.take("node", str),
        "dataset": table.take("dataset", str),
        "model": table.path("model"),
        "trainable": table.strings("trainable") if table.has("trainable") else None,
        "dimensions": table.sizes("dimensions"),
        **columns_of(table),
    }


def _queries(table: TomlTable) -> Array | QueriesSpec:
    if table.has("file"):
        return load_npy(table.path("file"))
    sizes = {key: table.take(key, int) for key in ("count", "heads", "dim")}
    return QueriesSpec(**sizes, seed=table.take("seed", int, 0))
