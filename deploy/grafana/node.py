"""One node: is it well, what does it do with its time, what does the aggregator see of it."""

from __future__ import annotations

from deploy.grafana.layout import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    Board,
    Query,
    Row,
    Variable,
    heat,
    number,
    series,
    strip,
)
from deploy.grafana.names import DAYS, FULL, UP, A, N

THIS = '{node="$node"}'
PROCESS = '{job="edge-attention-nodes", node="$node"}'

NOW = Row(
    "Now",
    [
        number(
            "State",
            "The aggregator's view: lost when its lease ran out.",
            Query(f"max({A}node_up{THIS})"),
            unit="short",
            words=UP,
            span=3,
        ),
        number(
            "Silent for",
            "Since the aggregator heard anything of it.",
            Query(f"max({A}node_silent_seconds{THIS})"),
            unit="s",
            colours=((None, GREEN), (5, YELLOW), (10, RED)),
            span=3,
        ),
        number(
            "Memory",
            "Stored, of what it may store.",
            Query(f"max(edge_attention:node_store:ratio{THIS})"),
            unit="percentunit",
            colours=FULL,
            span=3,
        ),
        number(
            "Tasks running",
            "Programs under way on it.",
            Query(f"max({N}tasks_running{THIS})"),
            unit="short",
            span=3,
        ),
        number(
            "Provider",
            "What its graphs run on.",
            Query(f"max by (provider) ({N}provider_info{THIS})", "{{provider}}"),
            unit="short",
            names=True,
            span=3,
        ),
        number("Threads", "Of a graph (--threads).", Query(f"max({N}threads{THIS})"), unit="short", span=3),
        number(
            "Release",
            "Which of its software runs.",
            Query(f"max by (version) ({N}build_info{THIS})", "{{version}}"),
            unit="short",
            names=True,
            span=3,
        ),
        number(
            "Certificate",
            "Days left; it renews itself when a third of its life is left. Empty without TLS.",
            Query(f"({N}certificate_expiry_timestamp_seconds{THIS} > 0) / 86400 - time() / 86400"),
            unit="d",
            colours=DAYS,
            empty="no TLS",
            span=3,
        ),
    ],
)

WORK = Row(
    "Work",
    [
        heat(
            "Tasks by seconds",
            "From a task's arrival to its end; the stronger the colour, the more.",
            Query(f"sum by (le) (increase({N}task_seconds_bucket{THIS}[$__rate_interval]))", "{{le}}"),
            unit="s",
            span=8,
        ),
        series(
            "A task's time",
            "Mean seconds in graphs, and around them: waiting for a worker, copying, sending.",
            Query(
                f"rate({N}run_seconds_sum{THIS}[$__rate_interval])\n"
                f"  / (rate({N}run_seconds_count{THIS}[$__rate_interval]) > 0)",
                "in graphs",
            ),
            Query(
                f"(rate({N}task_seconds_sum{THIS}[$__rate_interval])"
                f" - rate({N}run_seconds_sum{THIS}[$__rate_interval]))\n"
                f"  / (rate({N}task_seconds_count{THIS}[$__rate_interval]) > 0)",
                "around them",
            ),
            unit="s",
            height=9,
            stack=True,
        ),
        series(
            "Tasks",
            "Ended, by outcome: ok, or the error's name.",
            Query(f"sum by (outcome) (rate({N}tasks_total{THIS}[$__rate_interval]))", "{{outcome}}"),
            unit="ops",
            height=9,
            stack=True,
        ),
        series(
            "Share of attention",
            "Moving mean of the share of global attention its tokens got.",
            Query(f"max({A}attend_mass{THIS})", "mass"),
            unit="percentunit",
            highest=1,
        ),
        series(
            "Last to answer",
            "How often it was the slowest of an attend.",
            Query(f"max(edge_attention:attend_slowest:share5m{THIS})", "slowest"),
            unit="percentunit",
            highest=1,
            limits=((None, GREEN), (0.6, YELLOW)),
        ),
        series(
            "Tasks at once",
            "Running on the node, and queued for it at the aggregator.",
            Query(f"max({N}tasks_running{THIS})", "running"),
            Query(f"max({A}queued_programs{THIS})", "queued"),
            unit="short",
        ),
    ],
)

MEMORY = Row(
    "Memory and link",
    [
        series(
            "Store by scope",
            "context: keys and values; job: a run's tensors; task: of programs under way. The limit is "
            "--memory-limit.",
            Query(f"max by (scope) ({N}store_bytes{THIS})", "{{scope}}"),
            Query(f"max({N}memory_limit_bytes{THIS})", "limit"),
            Query(f"max({N}store_disk_free_bytes{THIS})", "left on the disk of --store"),
            unit="bytes",
            span=12,
        ),
        series(
            "Bytes",
            "By direction and kind: stream, programs and contributions; bulk, parameters, graphs, segments.",
            Query(
                f"sum by (direction, kind) (rate({N}bytes_total{THIS}[$__rate_interval]))",
                "{{direction}} {{kind}}",
            ),
            unit="Bps",
            span=12,
        ),
        strip(
            "Connected",
            "The node's view: registered with the aggregator.",
            Query(f"max({N}connected{THIS})", "connected"),
            {"1": ("connected", GREEN), "0": ("not connected", RED)},
            span=8,
            height=6,
        ),
        series(
            "Reconnects",
            "Times it registered again in the time shown: the network, or the aggregator restarted.",
            Query(f"increase({N}reconnects_total{THIS}[$__rate_interval])", "reconnects"),
            unit="short",
            height=6,
        ),
        series(
            "Credit left",
            "Bytes the aggregator may still send it.",
            Query(f"max({A}credit_bytes{THIS})", "credit"),
            unit="bytes",
            height=6,
        ),
    ],
)

BOX = Row(
    "The box",
    [
        series(
            "Resident memory",
            "Of the daemon's process. A node with private data shows it at its own port only.",
            Query(f"max(process_resident_memory_bytes{PROCESS})", "resident"),
            unit="bytes",
        ),
        series(
            "Processor",
            "Cores in use by the daemon. A node with private data shows it at its own port only.",
            Query(f"max(rate(process_cpu_seconds_total{PROCESS}[$__rate_interval]))", "cores"),
            unit="short",
        ),
        number(
            "Releases refused",
            "Private tensors asked for and kept, since the daemon started. Not 0: a job asks for what the "
            "node's operator did not allow; its log names it.",
            Query(f"max({N}refused_releases_total{THIS})"),
            unit="short",
            colours=((None, BLUE), (1, YELLOW)),
            span=8,
            height=8,
        ),
    ],
)

BOARD = Board(
    "node",
    "Edge Attention: one node",
    "Is it well, what does it do with its time, what does the aggregator see of it.",
    [NOW, WORK, MEMORY, BOX],
    [Variable("node", "node", f"{A}node_up", False, "The node shown.")],
)
