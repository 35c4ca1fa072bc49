"""What a run has trained, to be used: which version, its model as one ONNX file, what it says of samples."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aggregator.fleet.columns import ALL, FLOATS, TableView
from aggregator.store.state import RunRow
from aggregator.training.active import Job
from aggregator.training.federated.export import ExportRequest, export
from aggregator.training.federated.plan import FederatedPlan
from aggregator.training.fusion.export import FusionExport, request_of, write_model
from aggregator.training.fusion.plan import FusionPlan
from aggregator.training.fusion.predict import predict
from aggregator.training.services import Services
from aggregator.training.split.plan import SplitPlan
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.table import (
    ColumnRead,
    ColumnSpec,
    InputColumns,
    MissingRule,
    MissingValues,
)
from edge_attention.core.messages.training import (
    FederatedJob,
    FusionJob,
    PredictResponse,
    RowsRead,
    SplitJob,
    TrainingRun,
)

__all__ = ["WrittenModel", "best_version", "chosen_version", "predicted", "written_model"]


@dataclass(frozen=True)
class WrittenModel:
    """A trained model as an ONNX file at `path`. `reads`: how rows of tables become its inputs."""

    version: int
    path: Path
    reads: tuple[RowsRead, ...]


def best_version(info: TrainingRun) -> int:
    """Of the run's versions that were evaluated the one with the lowest loss.

    Raises:
        FailedPrecondition: none was.
    """
    if info.best_version is None:
        raise FailedPrecondition(
            f"of run {info.id} no version was evaluated, so none is the best: give its job a holdout, or "
            "choose a version by its number"
        )
    return info.best_version


def chosen_version(info: TrainingRun, row: RunRow, version: int | None, best: bool) -> int:
    """The version that is asked for: the latest where nothing else is.

    Raises:
        FailedPrecondition: there is none yet.
    """
    if row.version is None:
        raise FailedPrecondition(f"run {info.id} has no version yet; it waits for {info.waiting or 'nodes'}")
    if best:
        return best_version(info)
    return row.version if version is None else version


async def written_model(
    row: RunRow, job: Job, version: int, services: Services, folder: Path
) -> WrittenModel:
    """The model with a version's parameters as an ONNX file in `folder`.

    Raises:
        FailedPrecondition: the run trains a step graph.
        EdgeAttentionError: it cannot be written.
    """
    if isinstance(job, FusionJob):
        path = await write_model(await _fusion_request(row, job, version, services), folder)
    else:
        path = await _written(row, job, version, services, folder)
    zeroth = await asyncio.to_thread(services.state.record, row.id, 0)
    return WrittenModel(version, path, tuple(_named(reads, zeroth or {}) for reads in _reads(job)))


def _reads(job: Job) -> tuple[RowsRead, ...]:
    """How the job, as it is kept with the run, reads rows."""
    if isinstance(job, FusionJob):
        encoders = (RowsRead(each.node, each.inputs, each.table) for each in job.encoders)
        return (*encoders, RowsRead("", job.head.inputs, job.head.table))
    return (RowsRead("", job.model.inputs, job.table),)


def _named(reads: RowsRead, zeroth: Mapping[str, Any]) -> RowsRead:
    """With what was found on the nodes as the run began: the names of the columns in the place of `*`, and
    the means that stand for what is missing.

    `zeroth`: its record 0, which has a view of all inputs (federated), or several: a part's by its node, and
    where the model is cut each input's.
    """
    several = zeroth.get("views") or next((one.get("views") for one in zeroth.get("groups", ())), None) or {}
    lists, columns = dict(reads.table.inputs), dict(reads.table.columns)
    for name in dict.fromkeys((*reads.inputs, *lists)):
        view = zeroth.get("view") or several.get(reads.node) or several.get(name)
        said = lists[name].columns if name in lists else (reads.inputs[name],)
        if ALL in said and view and name in view["tensors"]:
            found = TableView.from_json(view).tensors[name].columns
            lists[name] = InputColumns(tuple(map(_text, found)))
    if whole := zeroth.get("view") or several.get(reads.node):  # a cut model's have no means
        for text, mean in _means(TableView.from_json(whole)).items():
            rule = MissingValues(MissingRule.CONSTANT, mean)
            columns[text] = replace(columns.get(text, ColumnSpec()), missing=rule)
    return replace(reads, table=replace(reads.table, inputs=lists, columns=columns))


def _means(view: TableView) -> dict[str, float]:
    """The means by which `view` reads what columns lack; not of a column that an input reads as whole
    numbers, too: there none stands for what is missing."""
    meant = {_text(one) for one in view.means}
    reads = [
        (_text(one), one.constant, each.data_type) for each in view.tensors.values() for one in each.columns
    ]
    whole = {text for text, _, data_type in reads if data_type not in FLOATS}
    return {
        text: constant
        for text, constant, _ in reads
        if text in meant and text not in whole and constant is not None
    }


def _text(column: ColumnRead) -> str:
    """The column as a job names it."""
    return f"{column.dataset}:{column.name}" if column.dataset else column.name


async def _written(
    row: RunRow, job: FederatedJob | SplitJob, version: int, services: Services, folder: Path
) -> Path:
    if job.model.gradients:
        raise FailedPrecondition(
            f"run {row.id} trains a step graph, which is none to serve; take its parameters instead"
        )
    # Files are verified before they are used.
    parameters, _ = await asyncio.to_thread(services.parameters.open, row.id, version)
    graph = await asyncio.to_thread(services.state.blob_path, job.model.graph)
    plan: FederatedPlan | SplitPlan
    if isinstance(job, SplitJob):
        plan = SplitPlan.from_json(row.job["split_plan"])
    else:
        plan = FederatedPlan.from_json(row.job["plan"])
    spec = job.model
    sizes = plan.model.dimensions if plan.model is not None else {}
    request = ExportRequest(
        plan.names, spec.loss.output or ("loss" if spec.loss.name == "output" else ""), spec.head, sizes
    )
    out = folder / "model.onnx"
    await export(graph, parameters.path, request, out)
    return out


async def _fusion_request(row: RunRow, job: FusionJob, version: int, services: Services) -> FusionExport:
    plan = _fusion_plan(row, job)
    parameters, _ = await asyncio.to_thread(services.parameters.open, row.id, version)
    digests = {job.head.graph, *(part.forward.digest for part in plan.parts)}
    paths = {digest: await asyncio.to_thread(services.state.blob_path, digest) for digest in digests}
    return request_of(plan, parameters.path, paths)


def _fusion_plan(row: RunRow, job: FusionJob) -> FusionPlan:
    if "fusion_plan" not in row.job:
        raise FailedPrecondition(
            f"run {row.id} is of an earlier release, and its plan is not kept; resume it, or take its "
            "parameters"
        )
    return FusionPlan.from_json(row.job["fusion_plan"], job)


async def predicted(
    row: RunRow, job: Job, version: int, ids: tuple[str, ...], services: Services, folder: Path
) -> PredictResponse:
    """What the model of a fusion run says of samples by their ids; see fusion/predict.py.

    Raises:
        FailedPrecondition: it is no fusion run.
    """
    if not isinstance(job, FusionJob):
        raise FailedPrecondition(
            f"run {row.id} is no fusion run: its model takes all inputs of a sample at once; give it rows "
            "(run.predict({input: array})), or export it and run it on the box that has them"
        )
    request = await _fusion_request(row, job, version, services)
    zeroth = await asyncio.to_thread(services.state.record, row.id, 0)
    loaded = await asyncio.to_thread(services.parameters.load, row.id, version)
    return await predict(
        row.id,
        _fusion_plan(row, job),
        (zeroth or {}).get("views", {}),
        loaded.parameters,
        version,
        bytes.fromhex(row.job["identity_key"]),
        ids,
        request,
        services,
        folder,
    )
