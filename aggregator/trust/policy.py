"""Who may call what: the role that each endpoint names. A method without one is served to nobody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aggregator.trust.endpoint import Endpoint
from edge_attention.core.errors import Internal
from edge_attention.trust.names import ROLES, Role
from edge_attention.wire import trust
from edge_attention.wire.methods import AnyMethod

OPEN: frozenset[AnyMethod] = frozenset({trust.ENROL})
"""Needs no role: a join token in the request is what lets it in."""

ANY: frozenset[AnyMethod] = frozenset({trust.RENEW})
"""Any certificate will do: it renews itself."""


def roles_of(endpoints: Iterable[Endpoint]) -> Mapping[AnyMethod, Role]:
    """The role each method needs.

    Raises:
        Internal: a method has no role, or is served twice: the aggregator must not start.
    """
    needed: dict[AnyMethod, Role] = {}
    paths = {method.path for method in OPEN | ANY}
    for endpoint in endpoints:
        method = endpoint.method
        if endpoint.role not in ROLES:
            raise Internal(
                f"{method.path} would be served without a role; give its Endpoint one of {', '.join(ROLES)}"
            )
        if method.path in paths:
            raise Internal(f"{method.path} would be served twice; leave one of its two Endpoints out")
        paths.add(method.path)
        needed[method] = endpoint.role
    return needed
