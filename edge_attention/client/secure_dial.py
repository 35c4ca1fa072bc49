"""How a client dials its aggregator over TLS: with a token, or with the identity in a folder."""

from __future__ import annotations

from pathlib import Path

from edge_attention.core.errors import InvalidArgument
from edge_attention.trust.authorities import read_authorities
from edge_attention.trust.certificates import ends
from edge_attention.trust.dial import Dial
from edge_attention.trust.enrol import enrol, renew
from edge_attention.trust.identity import Identity, IdentityFolder
from edge_attention.trust.keeper import Keeper
from edge_attention.trust.tokens import parse_token


def secure_dial(
    address: str,
    where: str,
    token: str | None = None,
    authority: str | Path | None = None,
    identity: str | Path | None = None,
) -> tuple[Dial, Keeper | None]:
    """See `client_dial`."""
    if token is not None and identity is not None:
        raise InvalidArgument("give a token or an identity, not both: each says who is calling")
    known = read_authorities(Path(authority)) if authority is not None else None
    if identity is None:
        access = parse_token(token, "access") if token is not None else None
        return Dial(address, where, authorities=known, token=access), None
    folder = IdentityFolder(Path(identity))
    kept = folder.load()
    if known is not None and not set(known) & set(kept.authorities):
        raise InvalidArgument(
            f"{folder.folder} was enrolled with another authority than the one given: leave out the "
            "authority, or enrol anew"
        )
    dial = Dial(address, where, authorities=known, identity=kept)
    keeper = Keeper(kept, lambda old: renew(address, old, folder, known), None, dial.become)
    dial.ends = lambda: ends(keeper.identity.certificate)
    return dial, keeper


def enrol_client(
    address: str, token: str, folder: Path, name: str = "", authority: Path | None = None
) -> Identity:
    """Make an identity in `folder` with a join token for a client.

    Raises:
        EdgeAttentionError: what the aggregator refused it with, or why it was not reached.
    """
    parsed = parse_token(token, "join")
    known = read_authorities(authority) if authority is not None else None
    return enrol(address, parsed, IdentityFolder(folder), name, authorities=known)
