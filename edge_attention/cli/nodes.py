"""`edge-attention nodes`: list the fleet, forget a node."""

from __future__ import annotations

import click

from edge_attention.cli.connection import connect
from edge_attention.cli.output import print_json, print_table, say, size
from edge_attention.failing import json_option


@click.group(
    invoke_without_command=True, epilog="Example: edge-attention --aggregator aggregator.example:50051 nodes"
)
@json_option
@click.pass_context
def nodes(ctx: click.Context, as_json: bool) -> None:
    """List the fleet's nodes: state, memory, datasets, releases. Or forget one that is lost."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_nodes, as_json=as_json)


@nodes.command(epilog="Example: edge-attention nodes forget clinic-3")
@click.argument("node")
@click.option(
    "--even-alone", is_flag=True, help="Also where only NODE has tokens of a context, or a part of a model."
)
@json_option
@click.pass_obj
def forget(address: str, node: str, even_alone: bool, as_json: bool) -> None:
    """Forget NODE, which is lost for good: it is no longer listed, nor among the holders of tokens.

    Its certificate stays good: edge-aggregator certificate revoke NODE.
    """
    with connect(address) as client:
        lost = client.forget_node(node, even_alone=even_alone)
    if as_json:
        print_json({"forgotten": node, "lost": lost})
    else:
        say(f"forgot node {node}", *(f"  no other node has {what}" for what in lost))


@nodes.command("list", epilog="Example: edge-attention nodes list --json")
@json_option
@click.pass_obj
def list_nodes(address: str, as_json: bool) -> None:
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
