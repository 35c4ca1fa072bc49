"""`edge-attention parameters`: show or save the parameters of a run."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from edge_attention.cli.connection import connect
from edge_attention.cli.output import print_json, print_table, say
from edge_attention.cli.versions import best_option, chosen_version, version_option
from edge_attention.failing import json_option


@click.command(epilog="Example: edge-attention parameters patients --output patients.safetensors")
@click.argument("run")
@version_option
@best_option
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write them as a safetensors file."
)
@json_option
@click.pass_obj
def parameters(
    address: str, run: str, version: int | None, best: bool, output: Path | None, as_json: bool
) -> None:
    """Show or export the parameters of RUN, an id or a name."""
    with connect(address) as client:
        found = client.run(run)
        chosen = chosen_version(version, best)
        if output:
            written = found.save_parameters(output, chosen)
            shown = {"run": found.id, "version": written, "file": str(output)}
            print_json(shown) if as_json else say(f"wrote version {written} of run {found.id} to {output}")
            return
        arrays = found.parameters(chosen)
    rows = [
        (name, array.dtype.name, list(array.shape), float(np.linalg.norm(array.astype(np.float64))))
        for name, array in arrays.items()
    ]
    if as_json:
        keys = ("name", "dtype", "shape", "norm")
        print_json(
            {
                "run": arrays.run,
                "version": arrays.version,
                "parameters": [dict(zip(keys, row, strict=True)) for row in rows],
            }
        )
        return
    count = sum(array.size for array in arrays.values())
    say(f"run {arrays.run}, version {arrays.version}: {len(rows)} tensors, {count:,} numbers")
    print_table(("parameter", "dtype", "shape", "norm"), rows)
