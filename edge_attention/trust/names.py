"""Roles, and the names that certificates carry: `spiffe://edge-attention/ROLE/NAME`."""

from __future__ import annotations

from typing import Literal, get_args

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import require_name

Role = Literal["node", "viewer", "user", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)
CLIENT_ROLES: tuple[Role, ...] = ("viewer", "user", "operator")
"""Each may do what those before it may."""

DOMAIN = "spiffe://edge-attention"
"""The name in an aggregator's own authority: it signs for nodes, clients and that aggregator, nobody else."""

SERVER_NAME = "aggregator.edge-attention.internal"
"""In every server certificate of such an authority, whatever address the aggregator is reached by."""


def may(role: Role, needed: Role) -> bool:
    """Whether `role` suffices where `needed` is needed. Nodes and clients never stand in for each other."""
    if role == "node" or needed == "node":
        return role == needed
    return CLIENT_ROLES.index(role) >= CLIENT_ROLES.index(needed)


def require_role(text: str) -> Role:
    """`text` as a role.

    Raises:
        InvalidArgument: it is none.
    """
    if text not in ROLES:
        raise InvalidArgument(f"{text[:40]!r} is not a role; roles are {', '.join(ROLES)}")
    return text


def uri(role: Role, name: str) -> str:
    """The name in a certificate.

    Raises:
        InvalidArgument: `name` cannot name a peer.
    """
    return f"{DOMAIN}/{role}/{require_name(name, 'name')}"


def parse_uri(text: str) -> tuple[Role, str]:
    """The role and name in `text`.

    Raises:
        InvalidArgument: it is not such a name.
    """
    role, slash, name = text.removeprefix(f"{DOMAIN}/").partition("/")
    if not text.startswith(f"{DOMAIN}/") or not slash:
        raise InvalidArgument(f"{text[:120]!r} is not {DOMAIN}/ROLE/NAME")
    return require_role(role), require_name(name, "name")
