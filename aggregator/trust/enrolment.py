"""Whether a join token lets a key have a name: pure decisions over what is known of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_attention.core.errors import (
    AlreadyExists,
    InvalidArgument,
    PermissionDenied,
    Revoked,
    Unauthenticated,
)
from edge_attention.core.tensors import require_name
from edge_attention.trust.certificates import moment

AGAIN_SECONDS = 3600.0
"""How long after its enrolment a key is answered again by a token that is used up."""


class JoinToken(Protocol):
    """What is kept of a token (`registry.TokenRow`)."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def created(self) -> float: ...
    @property
    def expires(self) -> float | None: ...
    @property
    def uses(self) -> int | None: ...
    @property
    def used(self) -> int: ...
    @property
    def revoked(self) -> float | None: ...


@dataclass(frozen=True)
class Holder:
    """A certificate issued for the name that is asked for; holders are in the order of their issue."""

    key: str
    token: str
    issued: float
    ends: float
    revoked: float | None


def require_redeemable(token: JoinToken, holders: Sequence[Holder], key: str, now: float) -> bool:
    """Whether this is a repetition, which takes no use of the token.

    Raises:
        InvalidArgument: it is no join token.
        Revoked: it was revoked or is used up: no time will change that.
        Unauthenticated: it has expired.
    """
    if token.kind != "join":
        raise InvalidArgument(f"token {token.id} gives access; to enrol, a join token (eaj_...) is needed")
    another = f"make another: edge-aggregator token create --role {token.role}"
    if token.revoked is not None:
        raise Revoked(f"join token {token.id} was revoked at {moment(token.revoked)}; {another}")
    again = any(
        h.token == token.id and h.key == key and h.revoked is None and now - h.issued < AGAIN_SECONDS
        for h in holders
    )
    if again:
        return True
    if token.expires is not None and now >= token.expires:
        raise Unauthenticated(f"join token {token.id} expired at {moment(token.expires)}; {another}")
    if token.uses is not None and token.used >= token.uses:
        times = "once, which was all" if token.uses == 1 else f"{token.uses} times, which was all"
        raise Revoked(f"join token {token.id} has been used {times} it was good for; {another}")
    return False


def admit(token: JoinToken, name: str, key: str, holders: Sequence[Holder], now: float) -> None:
    """Let `key` have `name`, or say why not.

    A name belongs to the key that holds a certificate for it until that ends. One that was revoked belongs
    to nobody. A token made for the name, later than that, overrules both.

    Raises:
        InvalidArgument: no name is given, or it is none.
        PermissionDenied: the token is for another name.
        AlreadyExists: another key holds the name.
        Revoked: its certificate was revoked.
    """
    if not name:
        raise InvalidArgument(f"token {token.id} is for no name in particular: say one with --name")
    require_name(name, "name")
    if token.name and token.name != name:
        raise PermissionDenied(
            f"join token {token.id} is for {token.name!r}, not for {name!r}: leave out --name, or make a "
            f"token with edge-aggregator token create --name {name}"
        )
    remedy = f"edge-aggregator token create --role {token.role} --name {name}"
    newest = holders[-1] if holders else None
    if newest is not None and newest.revoked is not None and not _overrules(token, newest):
        raise Revoked(
            f"{token.role} {name!r} was revoked at {moment(newest.revoked)}; to let it in again, make a "
            f"token for it: {remedy}"
        )
    for holder in holders:
        alive = holder.revoked is None and now < holder.ends
        if alive and holder.key != key and not _overrules(token, holder):
            raise AlreadyExists(
                f"the name {name!r} belongs to another {token.role}, whose certificate ends at "
                f"{moment(holder.ends)}; take another --name, or, if that one has lost its key: {remedy}"
            )


def _overrules(token: JoinToken, holder: Holder) -> bool:
    return bool(token.name) and token.created > max(holder.issued, holder.revoked or 0.0)
