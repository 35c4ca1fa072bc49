"""The fleet: who is there, what it does, what is wrong."""

from __future__ import annotations

from deploy.grafana.layout import (
    GREEN,
    RED,
    TO_NODE,
    YELLOW,
    Board,
    Column,
    Query,
    Row,
    bars,
    number,
    rows,
    series,
    strip,
)
from deploy.grafana.names import DAYS, FULL, UP, A, N

AGGREGATOR = 'job="edge-attention-aggregator"'
NODE = "/d/edge-attention-node?var-node=${__data.fields.Node}&${__url_time_range}"

NOW = Row(
    "Now",
    [
        number(
            "Nodes ready",
            "Nodes whose lease is good: they are sent work.",
            Query(f'sum({A}nodes{{state="ready"}})'),
            unit="short",
            colours=((None, RED), (1, GREEN)),
        ),
        number(
            "Not ready",
            "suspect: the stream broke, the lease still runs. draining: leaving. lost: the lease ran out.",
            Query(f'sum by (state) ({A}nodes{{state!="ready"}})', "{{state}}"),
            unit="short",
            colours=((None, GREEN), (1, YELLOW)),
            span=5,
        ),
        number(
            "Alerts firing",
            "Each has a paragraph in docs/runbook.md. The table below names them.",
            Query('count(ALERTS{alertname=~"Edge.*", alertstate="firing"}) or vector(0)'),
            unit="short",
            colours=((None, GREEN), (1, RED)),
            span=3,
        ),
        number(
            "Attends",
            "Queries answered, exact or partial, and failed ones.",
            Query(f"sum(rate({A}attends_total[$__rate_interval]))"),
            unit="reqps",
            span=3,
        ),
        number(
            "Attend, 95th percentile",
            "Seconds of an attend inside the aggregator, over five minutes; empty while nobody asks.",
            Query('max(edge_attention:attend_seconds:quantile5m{stage="all", quantile="0.95"})'),
            unit="s",
            empty="idle",
            span=3,
        ),
        number("Runs", "Training runs going on.", Query(f"sum({A}runs)"), unit="short", span=3),
        number(
            "Certificate that ends first",
            "Days left; renewed by itself when a third of its life is left. Empty without TLS.",
            Query("min(edge_attention:certificate_seconds_left) / 86400"),
            unit="d",
            colours=DAYS,
            empty="no TLS",
            span=3,
        ),
    ],
)

NODES = Row(
    "Nodes",
    [
        rows(
            "Nodes",
            "One row a node; a click on its name opens it. Memory is of what the node may store.",
            "node",
            [
                Column("Node", field="node", link=NODE),
                Column("State", f"max by (node) ({A}node_up)", words=UP),
                Column("Silent for", f"max by (node) ({A}node_silent_seconds)", unit="s"),
                Column(
                    "Memory",
                    "max by (node) (edge_attention:node_store:ratio)",
                    unit="percentunit",
                    colours=FULL,
                ),
                Column("Tasks running", f"max by (node) ({N}tasks_running)"),
                Column("Threads", f"max by (node) ({N}threads)"),
                Column("Provider", f"max by (node, provider) ({N}provider_info)", field="provider"),
                Column("Release", f"max by (node, version) ({N}build_info)", field="version"),
            ],
            span=24,
            height=9,
        ),
        strip(
            "Up and lost",
            "The aggregator's view: a node is lost when its lease ran out.",
            Query(f"max by (node) ({A}node_up)", "{{node}}"),
            UP,
            links=TO_NODE,
        ),
        rows(
            "Alerts",
            "What fires now. docs/runbook.md says what each means and what to do.",
            "alert",
            [
                Column("Alert", 'ALERTS{alertname=~"Edge.*", alertstate="firing"}', field="alertname"),
                Column("Severity", field="severity"),
                Column("Node", field="node"),
                Column("Run", field="run"),
                Column("Of", field="name"),
            ],
            span=12,
            empty="nothing fires",
        ),
    ],
)

TRAFFIC = Row(
    "Traffic",
    [
        series(
            "Bytes between aggregator and nodes",
            "By direction and kind: stream, programs and contributions; bulk, parameters, graphs, segments.",
            Query("sum by (direction, kind) (edge_attention:bytes:rate5m)", "{{direction}} {{kind}}"),
            unit="Bps",
        ),
        series(
            "Contributions",
            "What nodes returned: folded, or not and why (duplicate, late, stale, refused, damaged).",
            Query(f"sum by (outcome) (rate({A}contributions_total[$__rate_interval]))", "{{outcome}}"),
            unit="ops",
        ),
        series(
            "Calls refused",
            "By the error's name. Unauthenticated and PermissionDenied are also lines of the audit log.",
            Query(f"sum by (reason) (rate({A}refusals_total[$__rate_interval]))", "{{reason}}"),
            unit="reqps",
        ),
    ],
)

LOAD = Row(
    "Capacity",
    [
        bars(
            "Memory of the store",
            "Of what each node may store (--memory-limit). At 90% an alert fires.",
            Query("max by (node) (edge_attention:node_store:ratio)", "{{node}}"),
            unit="percentunit",
            colours=FULL,
            highest=1,
            span=8,
            links=TO_NODE,
        ),
        series(
            "Programs queued",
            "Waiting for the node's credit. A queue that stays is a node that cannot follow.",
            Query(f"max by (node) ({A}queued_programs)", "{{node}}"),
            unit="short",
            links=TO_NODE,
        ),
        series(
            "Credit left",
            "Bytes the aggregator may still send before the node grants more. Near 0: it is full of work.",
            Query(f"max by (node) ({A}credit_bytes)", "{{node}}"),
            unit="bytes",
            links=TO_NODE,
        ),
        series(
            "Contexts",
            "Named sequences of keys and values.",
            Query(f"sum({A}contexts)", "contexts"),
            unit="short",
            span=6,
            steps=True,
        ),
        series(
            "Tokens in contexts",
            "Over all contexts and nodes.",
            Query(f"sum({A}context_tokens)", "tokens"),
            unit="short",
            span=6,
            steps=True,
        ),
        series(
            "Registrations",
            "new: a process that was not known; resumed: the same process after its stream broke; refused.",
            Query(f"sum by (outcome) (increase({A}registrations_total[$__rate_interval]))", "{{outcome}}"),
            unit="short",
            span=6,
        ),
        series(
            "Disk of the state",
            "Bytes left on the disk of the aggregator's --state, and what takes room there, by kind. An "
            "alert fires at a tenth left, or when it fills within a day.",
            Query(f"min({A}state_disk_free_bytes)", "left"),
            Query(f"sum by (kind) ({A}state_bytes)", "{{kind}}"),
            unit="bytes",
            span=6,
        ),
    ],
)

TRUST = Row(
    "Trust",
    [
        bars(
            "Certificate days left",
            "By the name it is for. Renewed by itself when a third of its life is left. Empty without TLS.",
            Query("sort(edge_attention:certificate_seconds_left) / 86400", "{{name}}"),
            unit="d",
            colours=DAYS,
            span=8,
        ),
        series(
            "Certificates issued",
            "Enrolments and renewals, by role.",
            Query(f"sum by (role) (increase({A}certificates_issued_total[$__rate_interval]))", "{{role}}"),
            unit="short",
        ),
        series(
            "Enrolments",
            "By outcome; refused ones are lines of the audit log.",
            Query(f"sum by (outcome) (increase({A}enrolments_total[$__rate_interval]))", "{{outcome}}"),
            unit="short",
        ),
    ],
)

PROCESS = Row(
    "The aggregator's process",
    [
        series(
            "Resident memory",
            "It never holds a model: this does not grow with models or nodes.",
            Query(f"process_resident_memory_bytes{{{AGGREGATOR}}}", "{{instance}}"),
            unit="bytes",
        ),
        series(
            "Processor",
            "Cores in use. At 1 the event loop is full.",
            Query(f"rate(process_cpu_seconds_total{{{AGGREGATOR}}}[$__rate_interval])", "{{instance}}"),
            unit="short",
            limits=((None, GREEN), (0.9, RED)),
        ),
        number(
            "Releases",
            "What runs where; a fleet of several releases works, but update it.",
            Query(f"count by (version) ({A}build_info)", "aggregator {{version}}"),
            Query(f"count by (version) ({N}build_info)", "nodes {{version}}"),
            unit="short",
            span=8,
            height=8,
        ),
    ],
)

BOARD = Board(
    "fleet",
    "Edge Attention: fleet",
    "Who is there, what it does, what is wrong.",
    [NOW, NODES, TRAFFIC, LOAD, TRUST, PROCESS],
)
