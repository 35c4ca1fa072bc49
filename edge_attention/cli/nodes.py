"""`edge-attention nodes`: list the fleet."""

from __future__ import annotations

import click

from edge_attention.cli.connection import connect
from edge_attention.cli.output import json_option, print_json, print_table, say, size


@click.command(epilog="Example: edge-attention --aggregator aggregator.example:50051 nodes")
@json_option
@click.pass_obj
def nodes(address: str, as_json: bool) -> None:
    """List the fleet's nodes: state, memory, datasets, releases."""
    with connect(address) as client:
        found = client.nodes()
    if as_json:
        print_json(found)
    elif not found:
        say(f"no nodes; start one with: edge-node --aggregator {address} --name a")
    else:
        print_table(
            (
                "node",
                "state",
                "provider",
                "threads",
                "memory",
                "silent",
                "datasets",
                "releases",
            ),
            (
                (
                    node.name,
                    node.state.value,
                    node.provider.removesuffix("ExecutionProvider"),
                    node.threads,
                    f"{size(node.memory)} of {size(node.memory_limit)}",
                    f"{node.silent_seconds:.1f} s",
                    ", ".join(f"{d.name} ({d.rows:,} rows)" for d in node.datasets) or "-",
                    ", ".join(r[:12] for r in node.releases) or "-",
                )
                for node in found
            ),
        )
