"""How the commands reach the aggregator: what `edge-attention`'s own options say about trust."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from edge_attention.client.sync import Client
from edge_attention.trust.tokens import read_token

_KEY = "edge_attention.cli.connection"


@dataclass(frozen=True)
class Credentials:
    """What to show, and whom to trust; nothing of it: plaintext."""

    access: str | None = None
    token_file: Path | None = None
    authority: Path | None = None
    identity: Path | None = None

    @property
    def token(self) -> str | None:
        """The access token's text.

        Raises:
            UsageError: more than one of these options says who calls.
            InvalidArgument: the file holds none.
            FailedPrecondition: the file cannot be read.
        """
        given = {"--token": self.access, "--token-file": self.token_file, "--identity": self.identity}
        first, *more = [option for option, value in given.items() if value is not None] or [""]
        if more:
            both = f"{first} or {more[0]}, not both: each says who is calling"
            raise click.UsageError(f"give {both}", click.get_current_context(silent=True))
        return read_token(self.token_file, "access").text if self.token_file is not None else self.access


def remember(ctx: click.Context, credentials: Credentials) -> None:
    ctx.meta[_KEY] = credentials


def credentials() -> Credentials:
    """Those of the command that runs."""
    found = click.get_current_context().meta.get(_KEY)
    return found if isinstance(found, Credentials) else Credentials()


def connect(address: str, *, timeout: float = 60.0, patience: float = 60.0) -> Client:
    """A client of the aggregator at `address`, with the credentials of the command that runs."""
    c = credentials()
    return Client(
        address,
        timeout=timeout,
        patience=patience,
        token=c.token,
        authority=c.authority,
        identity=c.identity,
    )
