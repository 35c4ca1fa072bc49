"""What is said of each node: state, release, clock, machine, and the way to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from edge_attention.core.messages.fleet import Node, NodeState, ProbeNodeResponse
from edge_attention.doctor import box_findings, connection_findings
from edge_attention.doctor.connection_findings import ClockReading
from edge_attention.doctor.finding import Finding, duration, failed, ok, size, skipped, warning
from edge_attention.trust.certificates import moment

SLOW_TRIP = 0.25
"""Seconds of a round trip: each answer waits for one."""

LEAST_BANDWIDTH = 64 * 1024 * 1024 / 120
"""Bytes a second: an append of 64 MiB that goes to one node has 120 s."""

FLAPPING = 600.0
"""Seconds a connection lives on average, under which it is cut rather than restarted."""

FULL, NEARLY = 0.98, 0.9

REGISTER_WITHIN = 1.0
"""Seconds a node's Register may be on its way: it is made before the connection stands."""


def nodes(found: Sequence[Node], address: str) -> Finding:
    """Whether there is anybody."""
    ready = sum(node.state is NodeState.READY for node in found)
    if not found:
        fix = f"start one: edge-node --aggregator {address} --name a"
        return warning("nodes", "fleet", "no node has ever connected", fix, ready=0, known=0)
    if not ready:
        fix = "start the nodes, or read their logs: nobody can be asked"
        return failed(
            "nodes", "fleet", f"none of {len(found)} nodes is ready", fix, ready=0, known=len(found)
        )
    return ok("nodes", "fleet", f"{ready} of {len(found)} nodes are ready", ready=ready, known=len(found))


def state(node: Node, lease: float) -> Finding:
    """Whether the node is there."""
    data = {"state": node.state.value, "silent_seconds": node.silent_seconds}
    subject, said = (
        f"node {node.name}",
        f"{node.state.value}, last heard of {duration(node.silent_seconds)} ago",
    )
    if node.revoked_at is not None and node.state in (NodeState.SUSPECT, NodeState.LOST):
        said += f"; its certificate was revoked at {moment(node.revoked_at)} by an operator"
        fix = (
            f"to let it in again: edge-aggregator token create --role node --name {node.name}, and start it "
            "with that as its --join-token; if it is gone for good, append its tokens elsewhere"
        )
        return failed("state", subject, said, fix, **data, revoked_at=node.revoked_at)
    match node.state:
        case NodeState.READY:
            return ok("state", subject, said, **data)
        case NodeState.DRAINING:
            fix = "nothing, if it was told to leave; else start it again when it has"
            return warning("state", subject, said, fix, **data)
        case NodeState.SUSPECT:
            fix = f"look at its line and its log: after {duration(lease)} of silence it counts as lost"
            return warning("state", subject, said, fix, **data)
        case NodeState.LOST:
            fix = "start it again with the same --name and --store, or drop the contexts only it held"
            return failed("state", subject, said, fix, **data)


def software(node: Node, aggregator: str) -> Finding:
    """Whether the node has the aggregator's release."""
    data = {"software": node.software, "aggregator": aggregator}
    if node.software != aggregator:
        fix = "install the same release on both"
        said = f"release {node.software or 'unknown'}, the aggregator has {aggregator}"
        return warning("version", f"node {node.name}", said, fix, **data)
    return ok("version", f"node {node.name}", f"release {node.software}", **data)


def clock(node: Node) -> Finding:
    """The node's clock against the aggregator's, as they were when it registered."""
    reading = None if node.clock_seconds is None else ClockReading(node.clock_seconds, REGISTER_WITHIN)
    return connection_findings.clock(f"node {node.name}", reading, "the aggregator's")


def reconnects(node: Node, uptime: float) -> Finding:
    """Whether the node's connection holds."""
    again = max(node.registrations - 1, 0)
    data = {"registrations": node.registrations, "registered_seconds": node.registered_seconds}
    subject = f"node {node.name}"
    if not node.registrations:
        return skipped("connection", subject, "the aggregator does not count: its software is older")
    lived = f"connected for {duration(node.registered_seconds)}"
    if not again:
        return ok("connection", subject, f"{lived}, the first time", **data)
    said = f"{lived}; has come back {again} time{'s' if again > 1 else ''} in {duration(uptime)}"
    if again >= 3 and uptime / again < FLAPPING:
        fix = (
            "read in its log why the connection ended; a router that cuts idle streams shows with --idle 120"
        )
        return warning("connection", subject, said, fix, **data)
    return ok("connection", subject, said, **data)


def provider(node: Node) -> Finding:
    if node.box is None:
        used = box_findings.short(node.provider)
        return skipped(
            "provider", f"node {node.name}", f"graphs run on {used}; what was asked for is not told"
        )
    return box_findings.provider(
        f"node {node.name}", node.box.provider_asked, node.provider, node.box.providers
    )


def threads(node: Node) -> Finding:
    if node.box is None:
        return skipped("threads", f"node {node.name}", f"{node.threads} threads; its processors are not told")
    return box_findings.threads(f"node {node.name}", node.threads, node.box)


def memory(node: Node) -> Finding:
    if node.box is None:
        return skipped(
            "memory", f"node {node.name}", f"may store {size(node.memory_limit)}; its RAM is not told"
        )
    return box_findings.memory(f"node {node.name}", node.memory_limit, node.box)


def stored(node: Node) -> Finding:
    """How full the node is."""
    data = {"memory": node.memory, "limit": node.memory_limit}
    share = node.memory / node.memory_limit if node.memory_limit else 1.0
    said = f"stores {size(node.memory)} of {size(node.memory_limit)} ({share:.0%})"
    fix = "give it a larger --memory-limit, add a node, or drop a context"
    if share >= FULL:
        return failed("store", f"node {node.name}", said, fix, **data)
    if share >= NEARLY:
        return warning("store", f"node {node.name}", said, fix, **data)
    return ok("store", f"node {node.name}", said, **data)


def packages(node: Node, required: Mapping[str, str]) -> Finding:
    return box_findings.packages(f"node {node.name}", node.box.versions if node.box else {}, required)


def round_trip(node: str, probe: ProbeNodeResponse) -> Finding:
    """How long a word to the node and back takes."""
    times = sorted(probe.round_trip_seconds)
    middle, task = median(times), median(probe.task_seconds)
    data = {"median": middle, "least": times[0], "most": times[-1], "at_node": task, "count": len(times)}
    span = f"{duration(times[0])} to {duration(times[-1])}"
    said = f"{duration(middle)} ({span}), of it {duration(task)} at the node"
    if middle > SLOW_TRIP:
        fix = "put the node nearer, or ask many queries at a time: each answer waits for this"
        return warning("round trip", f"node {node}", said, fix, **data)
    return ok("round trip", f"node {node}", said, **data)


def bandwidth(node: str, probe: ProbeNodeResponse) -> Finding:
    """What a bulk tensor gets, both ways; what a round trip takes anyway is taken off."""
    if probe.down_seconds is None or probe.up_seconds is None:
        return skipped("bandwidth", f"node {node}", "not measured")
    way = min(probe.round_trip_seconds) / 2
    down, up = (probe.bytes / max(s - way, 1e-6) for s in (probe.down_seconds, probe.up_seconds))
    data = {"down": down, "up": up, "bytes": probe.bytes}
    said = f"{size(down)}/s to it, {size(up)}/s back, with {size(probe.bytes)} each way"
    if min(down, up) < LEAST_BANDWIDTH:
        seconds = 64 * 1024 * 1024 / min(down, up)
        fix = f"append less at a time, or get a faster line: 64 MiB take {duration(seconds)} of 2 min"
        return warning("bandwidth", f"node {node}", said, fix, **data)
    return ok("bandwidth", f"node {node}", said, **data)


def shared_boxes(found: Sequence[Node]) -> list[Finding]:
    """Machines on which several nodes run: whether they ask together for more than it has."""
    by_box: dict[str, list[Node]] = {}
    for node in found:
        if node.box is not None and node.box.id and node.state is not NodeState.LOST:
            by_box.setdefault(node.box.id, []).append(node)
    return [finding for nodes in by_box.values() if len(nodes) > 1 for finding in _shared(nodes)]


def _shared(found: Sequence[Node]) -> list[Finding]:
    boxes = [node.box for node in found if node.box is not None]
    names = ", ".join(node.name for node in found)
    subject = f"box of {names}" if len(names) < 40 else f"box of {len(found)} nodes"
    threads, processors = sum(node.threads for node in found), max(box.processors for box in boxes)
    limits, memory = sum(node.memory_limit for node in found), max(box.memory for box in boxes)
    need = limits + len(found) * box_findings.BASE
    findings = []
    said = f"{threads} threads of {len(found)} nodes on {processors} processors"
    data = {"nodes": [node.name for node in found], "threads": threads, "processors": processors}
    if processors and threads > processors:
        fix = "run fewer nodes on it"
        if any(node.threads > 1 for node in found):
            fix = f"start each with --threads {max(1, processors // len(found))}, or {fix}"
        findings.append(warning("shared threads", subject, said, fix, **data))
    elif processors:
        findings.append(ok("shared threads", subject, said, **data))
    said = f"{len(found)} nodes may store {size(limits)} together of {size(memory)} of RAM"
    data = {"nodes": [node.name for node in found], "limits": limits, "memory": memory}
    if memory and need > memory:
        each = max(memory // len(found) - 2 * box_findings.BASE, memory // (4 * len(found)))
        fix = f"start each with --memory-limit {each // 2**20}MiB: full, they would be killed by the kernel"
        findings.append(warning("shared memory", subject, said, fix, **data))
    elif memory:
        findings.append(ok("shared memory", subject, said, **data))
    return findings
