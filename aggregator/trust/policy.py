"""The role each method needs. A method without a line here is refused to everybody.

viewer    sees: nodes, contexts, runs
user      works: creates and fills contexts, attends, starts runs, reads what they made
operator  ends what others may rely on: drops contexts, stops and resumes runs
node      is one: the node link, under its own name
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_attention.trust.names import Role
from edge_attention.wire import services, trust
from edge_attention.wire.link import CONNECT, DOWNLOAD, UPLOAD
from edge_attention.wire.methods import AnyMethod

OPEN: frozenset[AnyMethod] = frozenset({trust.ENROL})
"""Needs no role: a join token in the request is what lets it in."""

ANY: frozenset[AnyMethod] = frozenset({trust.RENEW})
"""Any certificate will do: it renews itself."""

NEEDED: Mapping[AnyMethod, Role] = {
    CONNECT: "node",
    DOWNLOAD: "node",
    UPLOAD: "node",
    services.LIST_NODES: "viewer",
    services.DESCRIBE_AGGREGATOR: "viewer",
    services.DESCRIBE_CONTEXT: "viewer",
    services.LIST_CONTEXTS: "viewer",
    services.WATCH_RUN: "viewer",
    services.DESCRIBE_RUN: "viewer",
    services.LIST_RUNS: "viewer",
    services.PROBE_NODE: "user",
    services.BULK_UPLOAD: "user",
    services.BULK_DOWNLOAD: "user",
    services.CREATE_CONTEXT: "user",
    services.APPEND: "user",
    services.APPEND_DATASET: "user",
    services.ATTEND: "user",
    services.START_RUN: "user",
    services.PLAN_RUN: "user",
    services.GET_PARAMETERS: "user",
    services.GET_MODEL: "user",
    services.DROP_CONTEXT: "operator",
    services.STOP_RUN: "operator",
    services.RESUME_RUN: "operator",
}
