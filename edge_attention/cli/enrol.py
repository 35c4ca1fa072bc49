"""`edge-attention enrol`: make a client certificate with a join token."""

from __future__ import annotations

from pathlib import Path

import click

from edge_attention.cli.connection import credentials
from edge_attention.cli.output import print_json, say
from edge_attention.client.secure_dial import enrol_client
from edge_attention.failing import json_option
from edge_attention.trust.certificates import ends, moment
from edge_attention.trust.tokens import read_token

_EPILOG = """
\b
Example, the first on the aggregator's machine:
  edge-aggregator token create --role user --join --name alice
  edge-attention --aggregator aggregator.example:50051 enrol --token eaj_... --identity ~/.edge-attention
  edge-attention --aggregator aggregator.example:50051 --identity ~/.edge-attention nodes
"""


@click.command(epilog=_EPILOG)
@click.option("--token", help="The join token (eaj_...).")
@click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path), help="The same, from a file.")
@click.option(
    "--identity",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the key and the certificate.  [default: edge-attention's own --identity]",
)
@click.option("--name", default="", show_default=False, help="The name asked for.  [default: the token's]")
@json_option
@click.pass_obj
def enrol(
    address: str, token: str | None, token_file: Path | None, identity: Path | None, name: str, as_json: bool
) -> None:
    """Make a client certificate with a join token; later commands show it with --identity."""
    if (token is None) == (token_file is None):
        raise click.UsageError("give the join token: --token eaj_..., or --token-file FILE")
    text = token if token is not None else read_token(token_file or Path(), "join").text
    folder = identity or credentials().identity
    if folder is None:
        raise click.UsageError("give a folder for the key and the certificate: --identity DIR")
    made = enrol_client(address, text, folder, name, credentials().authority)
    until = ends(made.certificate)
    if as_json:
        print_json({"role": made.role, "name": made.name, "ends": until, "identity": str(folder)})
        return
    say(f"enrolled as {made.role} {made.name}, until {moment(until)}; kept in {folder}")
