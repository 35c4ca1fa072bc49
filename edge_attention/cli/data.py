"""`edge-attention data`: what a node would make of files, before any node has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from edge_attention.cli.output import print_json, say
from edge_attention.core.losses import CrossEntropy, loss_of
from edge_attention.core.messages.federated import LossSpec
from edge_attention.core.messages.table import TableSpec
from edge_attention.failing import json_option
from edge_attention.jobs.columns import prepared
from edge_attention.jobs.federated_job import FederatedJob, FederatedModel
from edge_attention.jobs.job import Encoder, FusionJob, Head
from edge_attention.jobs.job_file import read_job
from edge_attention.jobs.split_job import SplitJob
from edge_attention.tables.check import check_file, differences, lines_of
from edge_attention.tables.fit import InputFit, fit


@click.group(epilog="Example: edge-attention data check north.csv south.csv")
def data() -> None:
    """Look at files of tables as a node would."""


@data.command(
    epilog="A FILE may have options, as `--data` of edge-node takes them: 'rows.csv?id=who&separator=tab'. "
    "Exit code 1: a file would be refused, or does not fit the job.\n\n"
    "Example: edge-attention data check north.csv south.csv --job job.toml"
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--job",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Say whether each file fits this job; of a fusion job, its part --part.",
)
@click.option("--part", help="Of a fusion job: the node whose dataset the files are.")
@json_option
def check(files: tuple[str, ...], job: Path | None, part: str | None, as_json: bool) -> int:
    """Print what a node would make of each FILE: columns, types, what is set aside and why.

    No aggregator is asked, and no value is printed: figures are counts, and rounded means of many rows.
    """
    if part is not None and job is None:
        raise click.UsageError("--part is a part of a job; give --job, too")
    wanted, whole = None, frozenset[str]()
    if job is not None:
        said = read_job(job)
        wanted = list(_wanted(said, part))
        whole = _whole(said)
    checks, fits = [], []
    for file in files:
        checked, table = check_file(file)
        checks.append(checked)
        found: list[InputFit] = []
        for inputs, spec in wanted or ():
            found += [] if table is None else fit(table, inputs, spec, whole)
        fits.append(found)
    different = differences(checks)
    if as_json:
        print_json({"files": checks, "differences": different, **({} if wanted is None else {"job": fits})})
    else:
        for checked, found in zip(checks, fits, strict=True):
            say(*lines_of(checked))
            for one in found:
                say(f"  input {one.name}: {', '.join(one.columns) or 'nothing'}")
                for why in one.refused:
                    say(f"    refused: {why}")
            if left_out := max((one.left_out for one in found), default=0):
                say(f"  {left_out:,} of {checked.rows:,} rows lack a value and are left out")
        if len(checks) > 1:
            say(
                "between the files:",
                *(f"  {line}" for line in different or ["the same columns, in one order"]),
            )
    bad = any(one.refused for one in checks) or any(one.refused for found in fits for one in found)
    return 1 if bad else 0


def _whole(job: FederatedJob | FusionJob | SplitJob) -> frozenset[str]:
    """Inputs that take whole numbers, as far as the job file says."""
    model = None if isinstance(job, FusionJob) else job.model
    loss = model.loss if isinstance(model, FederatedModel) else None
    if not isinstance(loss, LossSpec) or loss_of(loss).name != CrossEntropy.name:
        return frozenset()
    return frozenset({loss.labels or "labels"})


def _wanted(
    job: FederatedJob | FusionJob | SplitJob, part: str | None
) -> Iterator[tuple[dict[str, str], TableSpec]]:
    """What the job reads of a dataset: inputs, and what is said of columns."""
    if not isinstance(job, FusionJob):
        model = job.model
        inputs = model.inputs if isinstance(model, FederatedModel) else {}
        yield prepared(inputs, job.columns, job.missing_values, "model.inputs")
        return
    every: list[Encoder | Head] = [*job.encoders, job.head]
    parts = [one for one in every if one.node == part]
    if not parts:
        have = ", ".join(dict.fromkeys(one.node for one in every))
        raise click.UsageError(f"a fusion job's parts have datasets of their own: --part is one of {have}")
    for one in parts:
        yield prepared(one.inputs, one.columns, one.missing_values, "inputs")
