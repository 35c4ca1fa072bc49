"""What `edge-node` does about trust: enrol once, keep the identity, renew it."""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from cryptography import x509

from edge_attention.core.errors import (
    EdgeAttentionError,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from edge_attention.core.tensors import require_name
from edge_attention.trust.certificates import ends, moment, pin
from edge_attention.trust.dial import Dial, read_authority
from edge_attention.trust.enrol import enrol, renew
from edge_attention.trust.identity import Identity, IdentityFolder
from edge_attention.trust.keeper import Keeper
from edge_attention.trust.tokens import Token, parse_token, read_token

log = logging.getLogger(__name__)

BACKOFF = (0.25, 10.0)

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class NodeTrust:
    """What the command line says."""

    join_token: str | None
    join_token_file: Path | None
    identity: Path | None
    authority: Path | None

    def token(self) -> Token | None:
        if self.join_token and self.join_token_file:
            raise InvalidArgument("give --join-token or --join-token-file, not both")
        if self.join_token:
            return parse_token(self.join_token, "join")
        return read_token(self.join_token_file, "join") if self.join_token_file else None

    def dial(self, address: str, name: str | None, store: Path | None) -> tuple[Dial, str]:
        """How to reach the aggregator at `address`, and this node's name; enrols first if need be.

        An identity kept already is used as it is, unless the token is of another aggregator. While the
        aggregator is away this waits.

        Raises:
            EdgeAttentionError: it cannot be done, and time would not help.
        """
        authority = read_authority(self.authority) if self.authority else None
        token, folder = self.token(), self._folder(store)
        if token is None and (folder is None or not folder.exists()):
            return Dial(address, authority=authority), require_name(name or socket.gethostname(), "--name")
        if folder is None:
            raise InvalidArgument(
                "--join-token needs a folder to keep the identity in: give --identity DIR, or --store DIR"
            )
        identity = _kept(folder, token, authority)
        enrolled: Callable[[], Identity] | None = None
        if token is not None:
            wanted, suggested = name or "", "" if name else socket.gethostname()

            def enrolled() -> Identity:
                return enrol(address, token, folder, wanted, suggested, authority)

            if identity is None:
                identity = _patiently(enrolled)
        assert identity is not None
        dial = Dial(address, authority=authority, identity=identity)
        keeper = Keeper(identity, lambda old: renew(address, old, folder), enrolled, dial.become)
        dial.ends = lambda: ends(keeper.identity.certificate)
        return dial, name or identity.name

    def _folder(self, store: Path | None) -> IdentityFolder | None:
        folder = self.identity or (store / "identity" if store else None)
        return IdentityFolder(folder) if folder else None


def _kept(folder: IdentityFolder, token: Token | None, authority: x509.Certificate | None) -> Identity | None:
    """The identity in the folder, unless a token says to make a new one."""
    try:
        identity = folder.load()
    except NotFound:
        if token is None:
            raise
        return None
    moved = token is not None and token.pin != pin(authority or identity.authority)
    if moved:
        log.info("the token is of another aggregator than the identity in %s: enrolling anew", folder.folder)
        return None
    if time.time() >= ends(identity.certificate):
        if token is not None:
            return None
        log.warning(
            "the certificate in %s ended at %s: start this node once with a --join-token, or set its clock",
            folder.folder,
            moment(ends(identity.certificate)),
        )
    return identity


def _patiently(enrolled: Callable[[], Identity]) -> Identity:
    """Enrol, however long the aggregator is away."""
    said, tries = "", 0
    while True:
        try:
            identity = enrolled()
        except Unavailable as error:
            if error.message != said:
                log.warning("not enrolled yet: %s; trying again until it answers", error.message)
            said = error.message
            base, cap = BACKOFF
            time.sleep(min(cap, base * 2.0 ** min(tries, 16)) * (0.5 + random.random() / 2))
            tries += 1
        except EdgeAttentionError as error:
            raise type(error)(f"enrolling was refused: {error.message}") from None
        else:
            until = moment(ends(identity.certificate))
            log.info("enrolled as %s, with a certificate until %s", identity.name, until)
            return identity


def node_trust_options(function: F) -> F:
    """Adds the options; the command is called with `trust`, a NodeTrust, instead."""

    def wrapped(*args: Any, **values: Any) -> Any:
        names = ("join_token", "join_token_file", "identity", "authority")
        return function(*args, trust=NodeTrust(*(values.pop(name) for name in names)), **values)

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
        "--authority", type=_FILE, help="The aggregator's authority, PEM, instead of the token's pin."
    ),
)
