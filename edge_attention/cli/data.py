"""`edge-attention data`: what a node would make of files, before any node has them."""

from __future__ import annotations

import click

from edge_attention.cli.output import json_option, print_json, say


@click.group()
def data() -> None:
    """Look at files of tables as a node would."""


@data.command(
    epilog="A FILE may have options, as `--data` of edge-node takes them: 'rows.csv?id=who&separator=tab'. "
    "Exit code 1: a file would be refused. Example: edge-attention data check north.csv south.csv",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@json_option
def check(files: tuple[str, ...], as_json: bool) -> int:
    """Print what a node would make of each FILE: columns, types, what is set aside and why.

    No aggregator is asked, and no value is printed: figures are counts, and rounded means of many rows.
    """
    from edge_attention.tables.check import check_file, differences, lines_of

    checks = [check_file(file)[0] for file in files]
    different = differences(checks)
    if as_json:
        print_json({"files": checks, "differences": different})
    else:
        for one in checks:
            say(*lines_of(one))
        if len(checks) > 1:
            say(
                "between the files:",
                *(f"  {line}" for line in different or ["the same columns, in one order"]),
            )
    return 1 if any(one.refused for one in checks) else 0
