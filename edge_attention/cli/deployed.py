"""`edge-attention deploy`, `models`, `infer` and `undeploy`: whole models over the fleet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from edge_attention.cli.array_files import output_option, read_inputs, write_outputs
from edge_attention.cli.connection import connect
from edge_attention.cli.deployed_shown import asked_by, print_model
from edge_attention.cli.output import (
    print_json,
    print_table,
    require_rich,
    say,
    size,
)
from edge_attention.client.models import MAX_DEADLINE, ModelResult
from edge_attention.client.sync import Client
from edge_attention.core.errors import EdgeAttentionError, NotFound
from edge_attention.core.messages.inference import (
    MAX_BATCH,
    MAX_QUEUE_DELAY,
    DeployedModel,
    DeploymentState,
    DeployProgress,
)
from edge_attention.core.printable import shown
from edge_attention.failing import json_option
from edge_attention.options import sizes_said

NOT_EXACT = 3
LEFT_SECONDS = 10.0
"""So long it is waited, after Ctrl-C, for what becomes of a deployment."""
_file = click.Path(exists=True, dir_okay=False, path_type=Path)

_DEPLOY_EPILOG = """
\b
Plans:
  auto       what is predicted to be fastest, one box included
  replicate  each node has all of the model, any ONNX file; requests go to different nodes
  layers     each node has some layers, one after the other: for models larger than a box
  heads      each node has some attention heads and some of each feed-forward layer
  tokens     each node has some tokens; tokens:gather, tokens:switch, tokens:merge say how they meet
  batch      each node has some rows of the batch
  FILE       a plan said in full: JSON, or an ONNX file with sharding annotations

\b
Examples:
  edge-attention deploy minilm.onnx --name minilm
  edge-attention deploy minilm.onnx --name minilm --plan tokens --dimensions sequence=128
  edge-attention deploy large.onnx --name large --plan layers --nodes a,b,c --replicas 1
  edge-attention deploy encoder_model.onnx --decoder decoder_model_merged.onnx --name t5 --tokenizer .
  edge-attention plan minilm.onnx --boxes boxes.toml     what it would take, without a fleet
"""


@click.command(epilog=_DEPLOY_EPILOG)
@click.argument("model", type=_file)
@click.option(
    "--name", required=True, help="What it is called. A model of that name serves until this one does."
)
@click.option("--plan", default="auto", help="A word or a file, as below.")
@click.option(
    "--nodes",
    metavar="A,B,...",
    help="Nodes that parts are planned for; by default all that are here. One that goes is replaced by any.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 64),
    help="Nodes that hold each part. By default one; of a model that is not cut, all.",
)
@click.option(
    "--dimensions",
    "sizes",
    multiple=True,
    metavar="NAME=SIZE",
    help="Size of a dimension that the model leaves open, of the requests it is made ready for. By default 1 "
    "for the first of an input, 128 for the others; requests may have other sizes.",
)
@click.option(
    "--tokenizer",
    metavar="FILE|bytes",
    help="Of a decoder that is asked for text: a tokenizer.json, or its folder, with special tokens and a "
    "chat template beside it; or bytes, where a token is a byte of UTF-8.",
)
@click.option(
    "--decoder",
    "decoders",
    multiple=True,
    type=_file,
    help="Where MODEL is an encoder: its decoder's file, a merged one; or twice, without and with a past.",
)
@click.option("--halves", is_flag=True, help="Activations pass in float16: half the bytes, not exact.")
@click.option(
    "--max-batch",
    type=click.IntRange(1, MAX_BATCH),
    help="Rows of requests that run together at most, where the model's rows do not meet. By default "
    "those that wait while others run, up to 16, of a model that is not cut.",
)
@click.option(
    "--max-queue-delay",
    type=click.FloatRange(0, 1000 * MAX_QUEUE_DELAY),
    metavar="MILLISECONDS",
    help="So long a request waits for others to run with, while others are under way; alone it never waits.",
)
@json_option
@click.pass_obj
def deploy(
    address: str,
    model: Path,
    name: str,
    plan: str,
    nodes: str | None,
    replicas: int | None,
    sizes: tuple[str, ...],
    tokenizer: str | None,
    decoders: tuple[Path, ...],
    halves: bool,
    max_batch: int | None,
    max_queue_delay: float | None,
    as_json: bool,
) -> None:
    """Cut the ONNX file MODEL into parts, bring them to nodes, and have it answer as one.

    The answer is the whole model's, to rounding, whatever the plan. Ctrl-C undoes what is not serving yet.
    With --json: one JSON object a word of progress, then the model.
    """
    dimensions = sizes_said(sizes)
    if nodes is not None and not nodes.strip(" ,"):
        raise click.BadParameter("it names none; leave it out for all that are here", param_hint="--nodes")
    with connect(address) as client, _progress(as_json) as told:
        before = max((one.version for one in client.models() if one.name == name), default=0)
        try:
            deployed = client.deploy(
                model,
                name,
                plan=plan,
                nodes=[part.strip() for part in (nodes or "").split(",") if part.strip()],
                replicas=replicas,
                dimensions=dimensions,
                halves=halves,
                max_batch=max_batch,
                max_queue_delay=max_queue_delay / 1000 if max_queue_delay else None,
                tokenizer=tokenizer,
                decoder=decoders,
                progress=told,
            )
        except KeyboardInterrupt:
            say("", f"interrupted: {_left(client, name, before)}", err=True)
            raise click.exceptions.Exit(130) from None
    if as_json:
        print_json(deployed.info, indent=None)
        return
    print_model(deployed.info)
    say(f"ask it: {asked_by(deployed.info, tokenizer is not None)}")


def _left(client: Client, name: str, before: int) -> str:
    """What became of the version that was being deployed, which may just have begun to serve.

    `before`: the last version that there was.
    """
    look = f"look with: edge-attention models {name}"
    until = time.monotonic() + LEFT_SECONDS
    try:
        while True:
            newer = [one for one in client.models() if one.name == name and one.version > before]
            if not newer:
                return f"nothing of this version of {name} stays"
            last = max(newer, key=lambda one: one.version)
            if last.state in (DeploymentState.SERVING, DeploymentState.WAITING):
                return (
                    f"version {last.version} of {name} serves already; take it back with: "
                    f"edge-attention undeploy {name}"
                )
            if time.monotonic() > until:
                return f"version {last.version} of {name} is {last.state.value}; {look}"
            time.sleep(0.2)
    except EdgeAttentionError as error:
        return f"what became of it cannot be said ({error.message}); {look}"


@click.command(epilog="Example: edge-attention models minilm")
@click.argument("name", required=False)
@json_option
@click.pass_obj
def models(address: str, name: str | None, as_json: bool) -> None:
    """List the deployed models; or show NAME: its plan, who holds what, what it was made ready for."""
    with connect(address) as client:
        found = [_of_name(client, name)] if name is not None else client.models()
    if as_json:
        print_json(found[0] if name is not None else found)
    elif name is not None:
        print_model(found[0])
    elif not found:
        say("no models; deploy one with: edge-attention deploy model.onnx --name NAME")
    else:
        print_table(
            ("model", "version", "state", "plan", "size", "parts", "nodes", "requests", "failed", "detail"),
            (
                (
                    m.name,
                    m.version,
                    m.state.value,
                    m.plan,
                    size(m.bytes),
                    len(m.parts),
                    ", ".join(dict.fromkeys(node for part in m.parts for node in part.holders)) or "-",
                    m.requests,
                    m.failed,
                    m.detail or "-",
                )
                for m in found
            ),
        )


def _of_name(client: Client, name: str) -> DeployedModel:
    """The version of that name that takes requests; where there is none, the one that is on its way."""
    try:
        return client.model(name).info
    except NotFound:
        early = (DeploymentState.PLANNING, DeploymentState.DELIVERING)
        found = [one for one in client.models() if one.name == name and one.state in early]
        if not found:
            raise
        return max(found, key=lambda one: one.version)


@click.command(
    epilog="\b\nExamples:\n  edge-attention infer minilm --input input_ids=ids.npy --input "
    "attention_mask=mask.npy --output answer.npz\n  edge-attention infer minilm --input inputs.npz "
    "--deadline 2"
)
@click.argument("name")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="INPUT=FILE.npy",
    help="An input of the model and the file of its array; or FILE.npz, with an array of each input's name.",
)
@output_option
@click.option(
    "--deadline",
    type=click.FloatRange(0, MAX_DEADLINE, min_open=True),
    help="Seconds; then it ends with an error that says what was waited for. By default 60.",
)
@click.option(
    "--priority",
    type=click.IntRange(1, 16),
    default=8,
    show_default=True,
    help="Among requests of the model that wait: 1 goes first.",
)
@click.option(
    "--partial",
    is_flag=True,
    help="An answer that lacks parts will do at the deadline; it says so, exit code 3.",
)
@json_option
@click.pass_obj
def infer(
    address: str,
    name: str,
    inputs: tuple[str, ...],
    output: Path | None,
    deadline: float | None,
    priority: int,
    partial: bool,
    as_json: bool,
) -> None:
    """Ask the deployed model NAME: its outputs, what they stand on, and where the time went."""
    arrays = read_inputs(inputs, output)
    with connect(address) as client:
        answer = client.model(name).infer(arrays, deadline=deadline, partial=partial, priority=priority)
    if output is not None:
        write_outputs(output, answer)
    if as_json:
        print_json(_summary(name, answer))
    else:
        _print_answer(name, answer, output)
    if not answer.exact and partial:
        raise click.exceptions.Exit(NOT_EXACT)


@click.command(epilog="Example: edge-attention undeploy minilm")
@click.argument("name")
@json_option
@click.pass_obj
def undeploy(address: str, name: str, as_json: bool) -> None:
    """End the deployment NAME: requests under way end, then nodes and the aggregator forget its weights."""
    with connect(address) as client:
        ended = client.model(name).undeploy()
    if as_json:
        print_json(ended)
    elif ended.state is DeploymentState.GONE:
        say(f"undeployed {name}, version {ended.version}: {ended.requests:,} requests answered")
    else:
        say(f"{name} takes no more requests; it goes when the {ended.in_flight} under way have ended")


@contextlib.contextmanager
def _progress(as_json: bool) -> Iterator[Callable[[DeployProgress], None]]:
    """What is called with how far a deployment is: bars for a person, an object a line for a program."""
    if as_json:
        yield lambda progress: print_json(progress, indent=None)
        return
    require_rich()
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    console = Console(highlight=False, markup=False, stderr=True)
    tasks: dict[tuple[str, str], Any] = {}
    said: set[str] = set()
    with Progress(*columns, console=console, transient=True) as bar:

        def told(progress: DeployProgress) -> None:
            if not progress.total:
                if progress.text and progress.text not in said:
                    said.add(progress.text)
                    bar.console.print(shown(f"{progress.stage}: {progress.text}"), soft_wrap=True)
                return
            key = progress.stage, progress.node
            if key not in tasks:
                to = "to " if progress.stage == "delivering" else ""
                tasks[key] = bar.add_task(
                    shown(f"{progress.stage} {to}{progress.node}"), total=progress.total
                )
            bar.update(tasks[key], completed=progress.done, total=progress.total)

        yield told


def _summary(name: str, answer: ModelResult) -> dict[str, Any]:
    return {
        "model": name,
        "version": answer.version,
        "exact": answer.exact,
        "coverage": answer.coverage,
        "lacking": answer.lacking,
        "outputs": {
            key: {"dtype": array.dtype.name, "shape": list(array.shape)} for key, array in answer.items()
        },
        "seconds": answer.seconds,
        "part_seconds": answer.part_seconds,
        "bytes_down": answer.bytes_down,
        "bytes_up": answer.bytes_up,
        "again": answer.again,
    }


def _print_answer(name: str, answer: ModelResult, output: Path | None) -> None:
    how = "exact" if answer.exact else f"NOT EXACT: {answer.lacking or f'{answer.coverage:.1%} of the model'}"
    say(f"{how}: {name}, version {answer.version}")
    print_table(
        ("output", "dtype", "shape", "smallest", "largest"),
        (
            (
                key,
                array.dtype.name,
                list(array.shape),
                array.min().item() if array.size else "-",
                array.max().item() if array.size else "-",
            )
            for key, array in answer.items()
        ),
    )
    stages = ", ".join(
        f"{stage} {1000 * s:.1f}" for stage, s in answer.seconds.items() if stage not in ("client", "all")
    )
    whole, there = 1000 * answer.seconds["client"], 1000 * answer.seconds.get("all", 0.0)
    say(f"milliseconds: {whole:.1f} in all, {there:.1f} of them at the aggregator: {stages}")
    if answer.part_seconds:
        parts = ", ".join(f"part {part} {1000 * s:.1f}" for part, s in answer.part_seconds.items())
        say(f"in graphs, milliseconds: {parts}")
    say(f"activations: {size(answer.bytes_down)} to nodes, {size(answer.bytes_up)} from nodes")
    if answer.again:
        say(f"{answer.again} segments were done again, as their node was gone")
    if output is not None:
        say(f"wrote {output}")
