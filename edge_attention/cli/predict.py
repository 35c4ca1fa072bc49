"""`edge-attention predict`: what a run's trained model says of rows that are here, or on the nodes."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from edge_attention.cli.array_files import output_option, read_inputs, write_outputs
from edge_attention.cli.connection import connect
from edge_attention.cli.output import print_json, print_table, say
from edge_attention.cli.table_rows import RowFiles
from edge_attention.cli.versions import best_option, chosen_version, version_option
from edge_attention.client.predictions import Prediction, outputs_told, predicted
from edge_attention.client.runs import TrainedModel
from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.core.messages.training import RowsRead
from edge_attention.core.tensors import Array
from edge_attention.failing import json_option
from edge_attention.graphs.reading import read_graph
from edge_attention.jobs.job_file import read_job
from edge_attention.jobs.row_reads import reads_of, require_same

_EPILOG = """
\b
Examples:
  edge-attention predict digits --input x=pixels.npy --output said.npz
  edge-attention predict loans --rows new.csv
  edge-attention predict patients --rows a=labs.csv --rows b=scans.csv
  edge-attention predict patients --id P17 --id P18
  edge-attention predict patients --ids today.txt --best --json
  edge-attention predict patients --input a/x=labs.npy --input b/x=images.npy
"""
SHOWN = 20
"""Samples of which a person is shown what is said."""
WIDTH = 8
"""Numbers of one output that are shown of a sample."""


@click.command(epilog=_EPILOG)
@click.argument("run")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="INPUT=FILE.npy|FILE.npz",
    help="Rows, which stay here: of an input, of a fusion run NODE/INPUT; or an .npz of arrays by input.",
)
@click.option(
    "--rows",
    "files",
    multiple=True,
    metavar="[NODE=]FILE",
    help="Rows, which stay here, as a file of a table: .csv, .npz or .parquet, read as a node does, with "
    "the columns that the run was trained by. Of a fusion run one a node, NODE=FILE; rows are matched by "
    "their ids.",
)
@click.option(
    "--job",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The file that the run was trained by, to be held against it: a run knows by itself which columns "
    "of --rows are which input.",
)
@click.option(
    "--id", "ids", multiple=True, metavar="ID", help="Of a fusion run: a sample whose rows are on the nodes."
)
@click.option(
    "--ids",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A text file of ids, one a line.",
)
@version_option
@best_option
@output_option
@json_option
@click.pass_obj
def predict(
    address: str,
    run: str,
    inputs: tuple[str, ...],
    files: tuple[str, ...],
    job: Path | None,
    ids: tuple[str, ...],
    file: Path | None,
    version: int | None,
    best: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Ask the model that RUN has trained: its outputs for rows, a row a sample.

    Rows given here stay here: the model comes, and is run. Samples of a fusion run that are on the nodes are
    named by their ids: the nodes work on their rows as in training.
    """
    chosen = chosen_version(version, best)
    if "" in ids:
        raise click.BadParameter("an id is not empty", param_hint="--id")
    named = (*ids, *_ids_of(file))
    if [bool(inputs), bool(files), bool(named)].count(True) != 1:
        raise click.UsageError("give rows with --input or --rows, or samples with --id or --ids; one of them")
    if job is not None and not files:
        raise click.UsageError("--job says how --rows are read; give --rows, too")
    rows = read_inputs(inputs, output)
    here = None if job is None else reads_of(read_job(job))
    with connect(address) as client:
        found = client.run(run)
        if files:
            model = found.trained(chosen)
            table = RowFiles(files, _reads(found.id, model, job, here))
            graph = read_graph(model.onnx, "the trained model")
            needs = outputs_told(graph.data).values()
            spare = [name for name in graph.inputs if any(name not in each for each in needs)]
            answer = Prediction(predicted(model.onnx, table.arrays(graph.inputs, spare)), model.version)
            named = table.ids
        else:
            answer = found.predict(rows or named, chosen)
    if output is not None:
        write_outputs(output, answer)
    if as_json:
        print_json(
            {
                "run": found.id,
                "version": answer.version,
                "outputs": str(output) if output is not None else dict(answer),
                "ids": named,
                "mass": answer.mass,
                "absent": answer.absent,
            }
        )
        return
    _print(found.id, answer, named, output)


def _reads(
    run: str, model: TrainedModel, job: Path | None, here: tuple[RowsRead, ...] | None
) -> tuple[RowsRead, ...]:
    """How rows are read: as the run says. `here`: as the file `job` does."""
    if here is None:
        if model.reads:
            return model.reads
        raise FailedPrecondition(
            f"the aggregator is of an earlier release, and does not say how run {run} reads columns; give "
            "--job, the file that it was trained by"
        )
    if model.reads:
        require_same(here, model.reads, str(job), run)
        return model.reads
    say(
        f"{job} was not held against run {run}: the aggregator is of an earlier release, and does not say "
        "how the run reads columns",
        err=True,
    )
    return here


def _ids_of(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    try:
        lines = file.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise InvalidArgument(f"--ids {file} is no text in UTF-8; write an id a line") from None
    except OSError as error:
        raise InvalidArgument(f"--ids {file} cannot be read: {error.strerror}") from None
    if not (found := tuple(line.strip() for line in lines if line.strip())):
        raise InvalidArgument(f"--ids {file} holds no ids; write one a line")
    return found


def _print(run: str, answer: Prediction, ids: tuple[str, ...], output: Path | None) -> None:
    count = max((len(array) for array in answer.values()), default=0)
    say(f"run {run}, version {answer.version}: {count:,} samples")
    for node, share in answer.mass.items():
        lacks = f", lacks {answer.absent[node]:,} of the samples" if node in answer.absent else ""
        say(f"  {node}: {share:.1%} of the attention{lacks}")
    if output is not None:
        say(f"wrote {', '.join(answer)} to {output}")
        return
    names = list(answer)
    print_table(
        ("sample", *names),
        (
            (ids[i] if ids else i, *(_said(answer[name], i) for name in names))
            for i in range(min(count, SHOWN))
        ),
    )
    if count > SHOWN:
        say(f"and {count - SHOWN:,} more; --output FILE.npz has all")


def _said(array: Array, row: int) -> str:
    if row >= len(array):
        return "-"
    numbers = np.asarray(array[row]).reshape(-1)
    shown = " ".join(f"{number:.4g}" for number in numbers[:WIDTH].tolist())
    return shown + (f" ... of {numbers.size:,}" if numbers.size > WIDTH else "")
