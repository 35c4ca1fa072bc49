"""How a client dials its aggregator: in plaintext on loopback, or by TLS as `secure_dial` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_attention.trust.dial import Dial

if TYPE_CHECKING:
    from edge_attention.trust.keeper import Keeper


def client_dial(
    address: str,
    where: str,
    token: str | None = None,
    authority: str | Path | None = None,
    identity: str | Path | None = None,
) -> tuple[Dial, Keeper | None]:
    """How a client reaches `address`, and what keeps its certificate alive while it does.

    Raises:
        InvalidArgument: what is given does not fit together, or is damaged.
        NotFound: there is no identity in the folder.
        FailedPrecondition: a file cannot be read.
    """
    if token is None and authority is None and identity is None:
        return Dial(address, where), None
    from edge_attention.client.secure_dial import secure_dial  # knows certificates: 10 MB, and 30 ms to load

    return secure_dial(address, where, token, authority, identity)
