"""Options of `edge-node` about joining an aggregator with TLS. Imports nothing heavy: `--help` needs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

REPLICA = "{replica}"
"""Stands for a replica's number in --name, --store, --identity and --data."""


@dataclass(frozen=True)
class JoinOptions:
    """What the command line says of joining an aggregator with TLS; `identity.node_dial` acts on it.

    Attributes:
        join_token: a join token (`eaj_...`), or None.
        join_token_file: a file with one, instead.
        identity: the folder for this node's key and certificate; None: `STORE/identity`.
        authority: the aggregator's authority, a PEM file, instead of the token's pin.
    """

    join_token: str | None = None
    join_token_file: Path | None = None
    identity: Path | None = None
    authority: Path | None = None

    def plain(self, store: Path | None) -> bool:
        """Whether nothing speaks of TLS: no option, and no identity kept in `STORE/identity`."""
        given = self.join_token or self.join_token_file or self.identity or self.authority
        return not given and (store is None or not (store / "identity").exists())


def join_options(function: F) -> F:
    """Adds the options to a command, which is called with `join`, a JoinOptions, instead of them."""

    def wrapped(*args: Any, **values: Any) -> Any:
        names = [field.name for field in fields(JoinOptions)]
        return function(*args, join=JoinOptions(**{name: values.pop(name) for name in names}), **values)

    wrapped.__name__, wrapped.__doc__ = function.__name__, function.__doc__
    wrapped.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


_FILE = click.Path(dir_okay=False, path_type=Path)

_OPTIONS = (
    click.option(
        "--join-token",
        metavar="TOKEN",
        help="To join an aggregator with TLS the first time: `edge-aggregator token create` prints one. It "
        "also says whom to trust.",
    ),
    click.option("--join-token-file", type=_FILE, help="The same, read from a file."),
    click.option(
        "--identity",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder for this node's key and certificate; the name in it is the node's.  [default: "
        "STORE/identity]",
    ),
    click.option(
        "--authority",
        type=_FILE,
        help="The aggregator's authority, PEM, or a bundle of several, instead of the token's pin.",
    ),
)
