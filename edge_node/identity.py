"""What `edge-node` does about trust: enrol once, keep the identity, renew it."""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

from edge_attention.core.errors import (
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from edge_attention.core.tensors import require_name
from edge_attention.trust.authorities import Authorities, pinned, read_authorities
from edge_attention.trust.certificates import ends, moment
from edge_attention.trust.dial import Dial
from edge_attention.trust.enrol import enrol, renew
from edge_attention.trust.identity import Identity, IdentityFolder
from edge_attention.trust.keeper import Keeper
from edge_attention.trust.tokens import Token, parse_token, read_token
from edge_node.options import JoinOptions

log = logging.getLogger(__name__)

BACKOFF = (0.25, 10.0)


def node_dial(
    given: JoinOptions, address: str, name: str | None, store: Path | None, suggested: str = ""
) -> tuple[Dial, str]:
    """How to reach the aggregator at `address`, and this node's name; enrols first if need be.

    `suggested`: without a `name`, what to be called where nobody else is; the host's name of itself.

    An identity kept already is used as it is, unless the token is of another aggregator. While the
    aggregator is away this waits.

    Raises:
        EdgeAttentionError: it cannot be done, and time would not help.
    """
    has_token = given.join_token or given.join_token_file
    if given.identity is not None and not has_token and not IdentityFolder(given.identity).exists():
        log.warning(
            "the folder --identity %s holds no identity, so this node speaks plaintext: to join an "
            "aggregator with TLS, give a --join-token too",
            given.identity,
        )
    authorities = read_authorities(given.authority) if given.authority else None
    path = given.identity or (store / "identity" if store else None)
    folder = IdentityFolder(path) if path else None
    try:
        token = _token(given)
    except FailedPrecondition as error:
        if folder is None or not folder.exists():
            raise
        log.info("%s; the identity kept needs none", error.message)
        token = None
    if token is None and (folder is None or not folder.exists()):
        called = name or suggested or socket.gethostname()
        return Dial(address, authorities=authorities), require_name(called, "--name")
    if folder is None:
        raise InvalidArgument(
            "--join-token needs a folder to keep the identity in: give --identity DIR, or --store DIR"
        )
    kept = folder
    identity = _kept(folder, token, authorities)
    enrolled: Callable[[], Identity] | None = None
    if token is not None:
        joins = token
        wanted, hint = name or "", "" if name else suggested or socket.gethostname()

        def enrolled() -> Identity:
            return enrol(address, joins, kept, wanted, hint, authorities)

        if identity is None:
            identity = _patiently(enrolled)
    assert identity is not None
    dial = Dial(address, authorities=authorities, identity=identity)
    keeper = Keeper(identity, lambda old: renew(address, old, kept, authorities), enrolled, dial.become)
    dial.ends = lambda: ends(keeper.identity.certificate)
    return dial, name or identity.name


def _token(given: JoinOptions) -> Token | None:
    if given.join_token and given.join_token_file:
        raise InvalidArgument("give --join-token or --join-token-file, not both")
    if given.join_token:
        return parse_token(given.join_token, "join")
    return read_token(given.join_token_file, "join") if given.join_token_file else None


def _kept(folder: IdentityFolder, token: Token | None, authorities: Authorities | None) -> Identity | None:
    """The identity in the folder, unless a token says to make a new one."""
    try:
        identity = folder.load()
    except NotFound:
        if token is None:
            raise
        return None
    moved = token is not None and not pinned(token.pin, authorities or identity.authorities)
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
