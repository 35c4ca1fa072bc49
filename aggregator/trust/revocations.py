"""Which nodes' certificates were revoked, for those who tell of nodes; kept until trust.db changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edge_attention.core.errors import EdgeAttentionError

if TYPE_CHECKING:
    from aggregator.trust.registry import Registry

log = logging.getLogger(__name__)

RevokedNodes = Callable[[], Mapping[str, float]]
"""Nodes whose newest certificate was revoked, by name, and when: seconds since 1970."""


class Revocations:
    """Reads `registry` again when it has changed."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._version = -1
        self._revoked: dict[str, float] = {}

    def of_nodes(self) -> Mapping[str, float]:
        """Name -> when its newest certificate was revoked, seconds since 1970."""
        try:
            version = self._registry.version()
            if version != self._version:
                self._revoked = {
                    row.name: row.revoked
                    for row in self._registry.certificates()
                    if row.role == "node" and row.revoked is not None
                }
                self._version = version
        except EdgeAttentionError as error:  # a list of nodes is worth more than why one is away
            log.error("%s", error.message)
        return self._revoked
