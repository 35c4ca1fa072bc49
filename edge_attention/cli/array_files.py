"""Arrays that commands are given as files, and leave in one."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Array
from edge_attention.jobs.array_files import load_npy, load_npz

__all__ = ["output_option", "read_inputs", "write_outputs"]


def _npz(_: click.Context, __: click.Parameter, file: Path | None) -> Path | None:
    if file is not None and file.suffix != ".npz":
        raise click.BadParameter(f"{str(file)!r} is to be an .npz file; give it a name that ends so")
    return file


output_option: Callable[[Any], Any] = click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_npz,
    metavar="FILE.npz",
    help="Write the arrays of the answer to this file.",
)


def read_inputs(inputs: Iterable[str], output: Path | None = None) -> dict[str, Array]:
    """The arrays of `--input INPUT=FILE.npy` and `--input FILE.npz`, by input.

    `output`: the file that will have the answer.

    Raises:
        click.BadParameter: one is written otherwise.
        click.BadParameter: an input is given twice, or its file is that of the answer.
        InvalidArgument: a file cannot be read.
    """
    found: dict[str, Array] = {}
    for text in inputs:
        name, equals, file = text.partition("=")
        if not equals and text.endswith(".npz"):
            more = load_npz(Path(text))
        elif name and file:
            more = {name: load_npy(Path(file))}
            text = file
        else:
            raise click.BadParameter(f"{text!r} is neither INPUT=FILE.npy nor FILE.npz", param_hint="--input")
        for twice in sorted(found.keys() & more.keys())[:1]:
            raise click.BadParameter(f"{twice!r} is given twice; give it once", param_hint="--input")
        found |= more
        if output is not None and output.exists() and output.samefile(text):
            raise click.BadParameter(
                f"{str(output)!r} has an input; give the answer another name", param_hint="--output"
            )
    return found


def write_outputs(output: Path, answer: Mapping[str, Array]) -> None:
    """Write an answer's arrays to an .npz file, by name.

    Raises:
        InvalidArgument: it cannot be written.
    """
    try:
        # savez has words of its own that no output may be called
        with zipfile.ZipFile(output, "w") as archive:
            for name, array in answer.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
    except OSError as error:
        raise InvalidArgument(f"--output {output} cannot be written: {error.strerror}") from None
