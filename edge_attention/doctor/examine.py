"""Runs the checks in order: this box, the way to the aggregator, the fleet, its contexts.

Each is told as it is found. What cannot be measured is a finding too; nothing here is waited for without a
deadline, and no check that fails keeps the others from being made, except those it makes pointless.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edge_attention import box
from edge_attention.client.aio import AsyncClient
from edge_attention.core.addresses import is_loopback
from edge_attention.core.errors import (
    EdgeAttentionError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unimplemented,
)
from edge_attention.core.messages.attention import Context
from edge_attention.core.messages.fleet import DescribeAggregatorResponse, Node, NodeState
from edge_attention.core.messages.link import PROTOCOL
from edge_attention.doctor import (
    box_findings,
    connection_findings,
    context_findings,
    fewer,
    measure_box,
    measure_fleet,
    measure_port,
    node_findings,
    trust_findings,
)
from edge_attention.doctor.examine_trust import (
    KnownTrust,
    TrustAsked,
    examine_credentials,
    examine_files,
    examine_shown,
)
from edge_attention.doctor.finding import Finding, Grade, failed, skipped, warning
from edge_attention.wire.methods import KEEPALIVE_SECONDS, LEAST_PING_SECONDS

PROBED = 30
"""Nodes that get bytes to carry; of the others only round trips are timed."""

MAX_PROBE = 300.0
"""Seconds a probe may take, the aggregator's own limit."""

Tell = Callable[[Finding], None]
Busy = Callable[[str], None]


@dataclass(frozen=True)
class Questions:
    """What the doctor is asked. `timeout`: seconds any one wait may take.

    `provider`, `threads` and `memory_limit` are what a node on this box is started with; None: its defaults.
    """

    host: str
    port: int
    trust: TrustAsked = field(default_factory=TrustAsked)
    timeout: float = 10.0
    idle: float = 2.0
    context: str = ""
    queries: int = 1
    bandwidth: bool = True
    provider: str = "auto"
    threads: int | None = None
    memory_limit: int | None = None


def examine_box(asked: Questions, tell: Tell) -> bool:
    """Check this machine alone; whether gRPC would take a proxy to the aggregator."""
    here = box.describe(asked.provider)
    subject = "this box"
    tell(box_findings.packages(subject, here.versions, measure_box.required()))
    trial = measure_box.try_runtime(asked.provider)
    tell(box_findings.runtime(subject, trial))
    if not trial.known:
        tell(box_findings.no_such_provider(subject, asked.provider, trial.available))
    elif not trial.problem:
        devices = measure_box.devices()
        tell(box_findings.provider(subject, asked.provider, trial.used, trial.available, devices))
    tell(box_findings.threads(subject, asked.threads or here.usable_processors or here.processors, here))
    limit = asked.memory_limit or here.room // 2
    tell(box_findings.memory(subject, limit, here, default=asked.memory_limit is None))
    tell(box_findings.free_memory(subject, limit, here))
    tell(box_findings.clock_source(subject, *measure_box.clock_source()))
    url, variable = box_findings.proxy_for(asked.host, os.environ, loopback=is_loopback(asked.host))
    tell(box_findings.proxy(subject, asked.host, url, variable))
    examine_files(asked.trust, tell)
    return bool(url)


def examine_port(asked: Questions, tell: Tell, *, proxied: bool) -> bool:
    """Check the way to the aggregator's port, past the proxy if there is one; whether to go on."""
    known = examine_credentials(asked.trust, tell)
    port = measure_port.look(asked.host, asked.port, asked.timeout)
    tell(connection_findings.name(port, proxied=proxied))
    if port.addresses or proxied:
        tell(connection_findings.reachable(port, proxied=proxied))
    if not port.connected:
        return proxied and known is not None
    finding = connection_findings.protocol(port, tls=asked.trust.tls)
    tell(finding)
    good = finding.status is Grade.OK and known is not None
    if port.speaks is connection_findings.Speaks.TLS:
        # Also where this client would speak plaintext: then whom it would have to trust is told.
        good &= examine_shown(f"{asked.host}:{asked.port}", asked.timeout, known or KnownTrust(), tell)
    return good


async def examine_fleet(client: AsyncClient, asked: Questions, tell: Tell, busy: Busy) -> None:
    """Check the aggregator, its nodes and contexts."""
    health = await measure_fleet.serving(client, asked.timeout)
    tell(connection_findings.health(health.status, health.seconds, health.problem))
    if not health.status:
        return
    try:
        about = await _aggregator(client, asked, tell)
    except (Unauthenticated, PermissionDenied) as error:
        tell(trust_findings.access(error.message))
        return
    if asked.trust.tls:
        tell(trust_findings.access(""))
    if about is not None and about.http_port:
        answer = await asyncio.to_thread(measure_port.readiness, asked.host, about.http_port, asked.timeout)
        tell(connection_findings.http_port(answer))
    if asked.idle > 0:
        busy(f"keeping a stream idle for {asked.idle:g} s")
        survived, after, problem = await measure_fleet.idle(client, asked.idle)
        tell(connection_findings.idle(asked.idle, survived, after, problem))
    try:
        nodes = await client.nodes()
        contexts = [context.info for context in await client.contexts()]
    except EdgeAttentionError as error:
        tell(_refused("nodes", "fleet", error))
        return
    tell(node_findings.nodes(nodes, f"{asked.host}:{asked.port}"))
    may = True
    for number, node in enumerate(nodes):
        _node(node, contexts, about, tell)
        if may and node.state is NodeState.READY:
            busy(f"probing node {node.name}")
            may = await _way(client, node, asked, tell, bulk=asked.bandwidth and number < PROBED)
    for finding in node_findings.shared_boxes(nodes):
        tell(finding)
    for context in contexts:
        tell(context_findings.coverage(context))
        tell(context_findings.growth(context, nodes))
        if context.spec.name != asked.context and (hint := context_findings.rule_of_thumb(context)):
            tell(hint)
    if asked.context:
        busy(f"attending to context {asked.context}")
        await _fewer(client, asked, nodes, tell)


async def _aggregator(client: AsyncClient, asked: Questions, tell: Tell) -> DescribeAggregatorResponse | None:
    here = box.software()
    try:
        about, reading = await measure_fleet.describe(client, asked.timeout)
    except (Unauthenticated, PermissionDenied):
        raise
    except Unimplemented:
        tell(connection_findings.software(None, here, PROTOCOL))
        return None
    except EdgeAttentionError as error:
        tell(_refused("version", "aggregator", error))
        return None
    tell(connection_findings.software(about, here, PROTOCOL))
    tell(box_findings.packages("aggregator", about.box.versions, measure_box.required()))
    tell(connection_findings.clock("aggregator", reading))
    if (disk := connection_findings.state_disk(about)) is not None:
        tell(disk)
    tell(connection_findings.keepalive(KEEPALIVE_SECONDS, LEAST_PING_SECONDS, about))
    return about


def _node(
    node: Node, contexts: Sequence[Context], about: DescribeAggregatorResponse | None, tell: Tell
) -> None:
    tell(node_findings.state(node, about.lease_seconds if about else 0.0))
    if node.state is NodeState.LOST:
        return  # what it said of itself is no longer so
    tell(node_findings.software(node, about.software if about else box.software()))
    tell(node_findings.packages(node, measure_box.required()))
    tell(node_findings.clock(node))
    tell(node_findings.reconnects(node, about.uptime_seconds if about else 0.0))
    tell(node_findings.provider(node))
    tell(node_findings.threads(node))
    tell(node_findings.memory(node))
    tell(node_findings.stored(node))
    tell(context_findings.shards(node, contexts))


async def _way(client: AsyncClient, node: Node, asked: Questions, tell: Tell, *, bulk: bool) -> bool:
    """Check the way to a node; whether this client may."""
    subject = f"node {node.name}"
    try:
        found = await measure_fleet.probe(client, node, min(asked.timeout, MAX_PROBE), bulk=bulk)
    except ResourceExhausted as error:
        tell(skipped("round trip", subject, error.message))
    except PermissionDenied:
        why = "the ways to the nodes are not measured: that needs a token of the role user"
        tell(skipped("round trip", "fleet", why))
        return False
    except EdgeAttentionError as error:
        tell(_refused("round trip", subject, error))
    else:
        tell(node_findings.round_trip(node.name, found))
        tell(node_findings.bandwidth(node.name, found))
    return True


async def _fewer(client: AsyncClient, asked: Questions, nodes: Sequence[Node], tell: Tell) -> None:
    subject = f"context {asked.context}"
    try:
        measured = await measure_fleet.attends(client, asked.context, asked.queries, nodes, asked.timeout)
    except TimeoutError:
        fix = "give more time with --timeout, or see what is wrong with its nodes"
        tell(failed("fewer nodes", subject, f"an attend took more than {asked.timeout:g} s", fix))
    except NotFound as error:
        tell(failed("fewer nodes", subject, error.message, "name one that `edge-attention contexts` lists"))
    except EdgeAttentionError as error:
        tell(_refused("fewer nodes", subject, error))
    else:
        tell(fewer.fewer(measured))


def _refused(check: str, subject: str, error: EdgeAttentionError) -> Finding:
    """What an error of the fleet's means for a check."""
    if isinstance(error, PermissionDenied | Unauthenticated):
        fix = "give a token of a role that may: attending and probes need `user`, all else `viewer`"
        return warning(check, subject, error.message, fix, error=type(error).__name__)
    if isinstance(error, Unimplemented):
        fix = "install this release there too, then run the doctor again"
        return warning(check, subject, error.message, fix, error=type(error).__name__)
    fix = "see the log of that node or of the aggregator"
    return failed(check, subject, error.message, fix, error=type(error).__name__)


def run_fleet(make: Callable[[], AsyncClient], asked: Questions, tell: Tell, busy: Busy) -> None:
    """`examine_fleet` with a client of its own, to its end."""

    async def whole() -> None:
        async with make() as client:
            await examine_fleet(client, asked, tell, busy)

    asyncio.run(whole())
