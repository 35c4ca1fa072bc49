"""Tokens as text: `eaj_<id>_<secret>_<pin>` joins, `eat_<id>_<secret>_<pin>` gives access.

The pin is the beginning of the SHA-256 of the authority's certificate, so that a peer that has only an
address and a token knows which authority to trust.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_attention.core.errors import FailedPrecondition, InvalidArgument

TokenKind = Literal["join", "access"]

PIN_DIGITS = 32
_PREFIX: dict[TokenKind, str] = {"join": "eaj", "access": "eat"}
_KINDS: dict[str, TokenKind] = {prefix: kind for kind, prefix in _PREFIX.items()}
_TOKEN = re.compile(r"(eaj|eat)_([0-9a-f]{8})_([0-9a-f]{48})_([0-9a-f]{32})")


@dataclass(frozen=True)
class Token:
    """One token. `repr` and `str` do not tell its secret; `text` does."""

    kind: TokenKind
    id: str
    secret: str
    pin: str

    @property
    def text(self) -> str:
        return f"{_PREFIX[self.kind]}_{self.id}_{self.secret}_{self.pin}"

    def __repr__(self) -> str:
        return f"<{self.kind} token {self.id}>"

    __str__ = __repr__


def make_token(kind: TokenKind, pin: str) -> Token:
    return Token(kind, secrets.token_hex(4), secrets.token_hex(24), pin)


def parse_token(text: str, kind: TokenKind | None = None) -> Token:
    """The token in `text`; of `kind`, if one is wanted.

    Raises:
        InvalidArgument: it is none, or one of the other kind. The message does not repeat it.
    """
    match = _TOKEN.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(
            f"this is not a token ({len(text.strip())} characters): copy the whole of what `edge-aggregator "
            "token create` printed; it begins with eaj_ (to join) or eat_ (for access)"
        )
    token = Token(_KINDS[match[1]], match[2], match[3], match[4])
    if kind is not None and token.kind != kind:
        wanted = {
            "join": "a join token (eaj_...) is needed; make one: edge-aggregator token create for a node, "
            "edge-aggregator token create --role user --join for a client",
            "access": "an access token (eat_...) is needed; a join token is for edge-node --join-token and "
            "edge-attention enrol",
        }
        raise InvalidArgument(f"token {token.id} is for {_USE[token.kind]}; {wanted[kind]}")
    return token


_USE: dict[TokenKind, str] = {"join": "joining", "access": "access"}


def read_token(path: Path, kind: TokenKind | None = None) -> Token:
    """The token in a file.

    Raises:
        FailedPrecondition: the file cannot be read.
        InvalidArgument: it holds no token, or one of the other kind.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise FailedPrecondition(
            f"token file {path} cannot be read: {error.strerror}; the aggregator's --bootstrap writes one, "
            "or `edge-aggregator token create` prints one"
        ) from None
    try:
        return parse_token(text, kind)
    except InvalidArgument as error:
        raise InvalidArgument(f"token file {path}: {error.message}") from None


def secret_hash(secret: str) -> str:
    """How a secret is kept. It has 192 bits at random, so one hash is enough."""
    return hashlib.sha256(b"edge-attention token " + secret.encode()).hexdigest()
