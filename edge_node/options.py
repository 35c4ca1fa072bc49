"""Options of `edge-node` that are not about the machine: trust and health. Imports nothing heavy at first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edge_attention.trust.dial import Dial

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Shared:
    """What the command line says."""

    join_token: str | None
    join_token_file: Path | None
    identity: Path | None
    authority: Path | None
    health_port: int | None = None

    def dial(self, address: str, name: str | None, store: Path | None) -> tuple[Dial, str]:
        """See `edge_node.identity.node_dial`."""
        from edge_node.identity import node_dial

        if self.identity is not None and not self.join_token and not self.join_token_file:
            from edge_attention.trust.identity import IdentityFolder

            if not IdentityFolder(self.identity).exists():
                log.warning(
                    "the folder --identity %s holds no identity, so this node speaks plaintext: to join an "
                    "aggregator with TLS, give a --join-token too",
                    self.identity,
                )
        return node_dial(self, address, name, store)


def shared_options(function: F) -> F:
    """Adds the options; the command is called with `shared` instead of them."""

    def wrapped(*args: Any, **values: Any) -> Any:
        names = ("join_token", "join_token_file", "identity", "authority", "health_port")
        return function(*args, shared=Shared(*(values.pop(name) for name in names)), **values)

    wrapped.__name__, wrapped.__doc__ = function.__name__, function.__doc__
    wrapped.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


_FILE = click.Path(dir_okay=False, path_type=Path)

_OPTIONS = (
    click.option(
        "--health-port",
        type=click.IntRange(0, 65535),
        help="Serve the gRPC health service on 127.0.0.1 there; 0: any.",
    ),
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
        "--authority", type=_FILE, help="The aggregator's authority, PEM, instead of the token's pin."
    ),
)
