"""`edge-attention ensemble`: several deployed models answer one request, and their outputs meet."""

from __future__ import annotations

from pathlib import Path

import click

from edge_attention.cli.array_files import output_option, read_inputs, write_outputs
from edge_attention.cli.connection import connect
from edge_attention.cli.output import print_json, print_table, say
from edge_attention.client.ensembles import MAX_DEADLINE
from edge_attention.core.messages.ensembles import DeployedEnsemble, EnsembleTensor
from edge_attention.failing import json_option

__all__ = ["ensemble"]

NOT_EXACT = 3
_EXAMPLE = """
\b
Example of a FILE:
  how = "mean"              # or concatenate, attention
  seconds = 0.5             # members that have not answered by then are left out, and named
  [[member]]
  name = "camera"
  model = "vit"             # a deployed model
  inputs = { pixels = "image" }
  [[member]]
  name = "microphone"
  model = "whisper"
Then:
  edge-attention ensemble deploy both.toml --name both
docs/ensembles.md says what else there is.
"""


@click.group(epilog=_EXAMPLE)
def ensemble() -> None:
    """Have several deployed models answer one request together: one for images, one for sound, say."""


@ensemble.command(epilog=_EXAMPLE)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="What it is called; an ensemble that has it is replaced.")
@json_option
@click.pass_obj
def deploy(address: str, file: Path, name: str, as_json: bool) -> None:
    """Have the ensemble in FILE (TOML) serve. Its members are deployed models, and stay such."""
    with connect(address) as client:
        info = client.deploy_ensemble(file, name).info
    if as_json:
        print_json(info)
        return
    _print(info)
    inputs = " ".join(f"--input {one.name}={one.name}.npy" for one in info.inputs)
    say(f"ask it: edge-attention ensemble infer {name} {inputs}")


@ensemble.command("list", epilog="Example: edge-attention ensemble list")
@json_option
@click.pass_obj
def list_(address: str, as_json: bool) -> None:
    """List the ensembles: how their members' outputs meet, and who could not be asked now."""
    with connect(address) as client:
        found = client.ensembles()
    if as_json:
        print_json(found)
    elif not found:
        say("no ensembles; deploy one with: edge-attention ensemble deploy FILE.toml --name NAME")
    else:
        print_table(
            ("ensemble", "version", "how", "members", "lacking"),
            ((one.name, one.version, one.how, ", ".join(one.members), one.lacking or "-") for one in found),
        )


@ensemble.command(epilog="Example: edge-attention ensemble undeploy both")
@click.argument("name")
@json_option
@click.pass_obj
def undeploy(address: str, name: str, as_json: bool) -> None:
    """End the ensemble NAME. Its members stay deployed."""
    with connect(address) as client:
        ended = client.ensemble(name).undeploy()
    if as_json:
        print_json(ended)
    else:
        say(f"ended {ended.name}, version {ended.version}; its members stay: {', '.join(ended.members)}")


@ensemble.command(
    epilog="Example: edge-attention ensemble infer both --input image=image.npy --input sound=sound.npy"
)
@click.argument("name")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="INPUT=FILE.npy",
    help="An input and the file of its array; or FILE.npz, with an array of each input's name.",
)
@output_option
@click.option(
    "--deadline",
    type=click.FloatRange(0, MAX_DEADLINE, min_open=True),
    help="Seconds. By default 60; members have what the ensemble's file says.",
)
@json_option
@click.pass_context
def infer(
    ctx: click.Context,
    name: str,
    inputs: tuple[str, ...],
    output: Path | None,
    deadline: float | None,
    as_json: bool,
) -> None:
    """Ask the ensemble NAME. An answer that lacks a member says so, exit code 3."""
    with connect(ctx.obj) as client:
        answer = client.ensemble(name).infer(read_inputs(inputs, output), deadline=deadline)
    if output is not None:
        write_outputs(output, answer)
    if as_json:
        print_json(
            {
                "ensemble": name,
                "version": answer.version,
                "exact": answer.exact,
                "coverage": answer.coverage,
                "lacking": answer.lacking,
                "outputs": {
                    key: {"dtype": array.dtype.name, "shape": list(array.shape)}
                    for key, array in answer.items()
                },
            }
        )
    else:
        say(
            f"{'exact' if answer.exact else f'NOT EXACT: {answer.lacking}'}: {name}, version {answer.version}"
        )
        print_table(
            ("output", "dtype", "shape"),
            ((key, array.dtype.name, list(array.shape)) for key, array in answer.items()),
        )
    if not answer.exact:
        ctx.exit(NOT_EXACT)


def _print(info: DeployedEnsemble) -> None:
    say(f"ensemble {info.name}, version {info.version}: {info.how} of {', '.join(info.members)}")
    rows = [("input", one) for one in info.inputs] + [("output", one) for one in info.outputs]
    print_table(("", "name", "datatype", "shape"), (_row(kind, one) for kind, one in rows))
    if info.lacking:
        say(f"could not be asked now: {info.lacking}")


def _row(kind: str, one: EnsembleTensor) -> tuple[str, str, str, str]:
    return kind, one.name, one.datatype, str(["?" if size < 0 else size for size in one.shape])
