"""What the aggregator counts, in Prometheus form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from edge_attention.core.fleet import NodeState

SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """One registry a process; tests make their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        prefix = "edge_attention_aggregator_"
        self.nodes = Gauge(prefix + "nodes", "Nodes by lease state.", ["state"], registry=registry)
        for state in NodeState:
            self.nodes.labels(state.value)
        self.registrations = Counter(
            prefix + "registrations_total", "Node registrations by outcome.", ["outcome"], registry=registry
        )
        self.contributions = Counter(
            prefix + "contributions_total",
            "Contributions by outcome: folded, duplicate, late, stale, refused.",
            ["outcome"],
            registry=registry,
        )
        self.bytes = Counter(
            prefix + "bytes_total",
            "Bytes exchanged with nodes by direction and kind (stream or bulk).",
            ["direction", "kind"],
            registry=registry,
        )
        self.queries = Counter(
            prefix + "attends_total",
            "Attend calls by outcome: exact, partial, failed.",
            ["outcome"],
            registry=registry,
        )
        self.query_seconds = Histogram(
            prefix + "attend_seconds",
            "Seconds of an attend by stage.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.merge_seconds = Histogram(
            prefix + "merge_seconds", "Seconds to merge one answer.", buckets=SECONDS, registry=registry
        )
        self.run_seconds = Histogram(
            prefix + "node_run_seconds",
            "Seconds of a task in its graphs, as nodes report it.",
            buckets=SECONDS,
            registry=registry,
        )
        self.rounds = Counter(prefix + "rounds_total", "Training rounds committed.", registry=registry)
        self.round_seconds = Histogram(
            prefix + "round_seconds",
            "Seconds of a training round by stage.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.runs = Gauge(prefix + "runs", "Training runs going on.", registry=registry)
        self.version = Gauge(
            prefix + "run_version", "Version last committed of a run going on.", ["run"], registry=registry
        )
        self.waiting = Gauge(
            prefix + "run_waiting", "1 while a run waits for a node.", ["run"], registry=registry
        )
        self.updates = Counter(
            prefix + "updates_total",
            "Updates of federated rounds by outcome: folded, left_out, refused, stale.",
            ["outcome"],
            registry=registry,
        )
        self.staleness = Histogram(
            prefix + "update_staleness_versions",
            "Versions between the parameters an update was computed on and the current.",
            buckets=(0, 1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self.loss = Gauge(
            prefix + "run_loss", "Training loss of a run's last round.", ["run"], registry=registry
        )
        self.consensus = Gauge(
            prefix + "run_consensus_loss", "Consensus losses of a run's last round.", ["run", "kind"],
            registry=registry,
        )  # fmt: skip
        self.contexts = Gauge(prefix + "contexts", "Contexts.", registry=registry)
        self.tokens = Gauge(prefix + "context_tokens", "Tokens over all contexts.", registry=registry)
        self.certificate_expiry = Gauge(
            prefix + "certificate_expiry_timestamp_seconds",
            "When certificates end: the authority's, the server's, and peers' by role and name.",
            ["name"],
            registry=registry,
        )
        self.certificates_issued = Counter(
            prefix + "certificates_issued_total", "Certificates issued, by role.", ["role"], registry=registry
        )
        self.enrolments = Counter(
            prefix + "enrolments_total", "Enrolments by outcome: ok, refused.", ["outcome"], registry=registry
        )
