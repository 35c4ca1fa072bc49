"""Attention: what is asked and answered, how long each stage takes, on whose answers it stands."""

from __future__ import annotations

from deploy.grafana.layout import (
    BLUE,
    GREEN,
    RED,
    TO_NODE,
    YELLOW,
    Board,
    Query,
    Row,
    Variable,
    heat,
    number,
    series,
)
from deploy.grafana.names import A, N

QUANTILES = "edge_attention:attend_seconds:quantile5m"
STAGES = (
    "client: receiving and sending at the aggregator's edge; plan; queue: waiting for a node's credit or "
    "worker; node_run: in the graphs of the slowest node; network: on the way; merge."
)

ANSWERS = Row(
    "Answers",
    [
        number(
            "Exact",
            "Of the answers of five minutes. The rest are partial: they say what they stand on, and a bound.",
            Query("1 - max(edge_attention:attends_partial:ratio5m)"),
            unit="percentunit",
            colours=((None, RED), (0.95, YELLOW), (0.99, GREEN)),
            empty="idle",
            span=4,
            height=8,
        ),
        series(
            "Attends by outcome",
            "exact: every token a query sees is in it. partial: labelled, with a bound. failed: an error.",
            Query(f"sum by (outcome) (rate({A}attends_total[$__rate_interval]))", "{{outcome}}"),
            unit="reqps",
            span=10,
            stack=True,
        ),
        series(
            "Certified bound of partial answers",
            "The largest error a partial answer can have, as it says. Empty while all answers are exact.",
            Query(
                f"histogram_quantile(0.5, sum by (le) (rate({A}attend_bound_bucket[$__rate_interval])))",
                "median",
            ),
            Query(
                f"histogram_quantile(0.95, sum by (le) (rate({A}attend_bound_bucket[$__rate_interval])))",
                "95%",
            ),
            unit="short",
            span=10,
        ),
    ],
)

LATENCY = Row(
    "Latency",
    [
        heat(
            "Attends by seconds",
            "All of an attend at the aggregator; the stronger the colour, the more.",
            Query(
                f'sum by (le) (increase({A}attend_seconds_bucket{{stage="all"}}[$__rate_interval]))', "{{le}}"
            ),
            unit="s",
        ),
        series(
            "Attend, quantiles",
            "All of an attend at the aggregator, over five minutes.",
            Query(f'max by (quantile) ({QUANTILES}{{stage="all"}})', "{{quantile}}"),
            unit="s",
            span=12,
            height=9,
        ),
        series(
            "Where the time goes",
            f"Mean seconds a stage, stacked. {STAGES}",
            Query(
                f'sum by (stage) (rate({A}attend_seconds_sum{{stage!="all"}}[$__rate_interval]))\n'
                f'  / (sum by (stage) (rate({A}attend_seconds_count{{stage!="all"}}[$__rate_interval])) > 0)',
                "{{stage}}",
            ),
            unit="s",
            span=12,
            height=9,
            stack=True,
        ),
        series(
            "95th percentile by stage",
            STAGES,
            Query(f'max by (stage) ({QUANTILES}{{quantile="0.95"}})', "{{stage}}"),
            unit="s",
            span=12,
            height=9,
        ),
    ],
)

SHARES = Row(
    "Nodes",
    [
        series(
            "Attention mass by node",
            "Moving mean of the share of attention each node's tokens got: who holds what answers need.",
            Query(f'max by (node) ({A}attend_mass{{node=~"$node"}})', "{{node}}"),
            unit="percentunit",
            span=12,
            stack=True,
            links=TO_NODE,
        ),
        series(
            "Last to answer",
            "How often each node was the slowest of an attend. Above 60%, with much waiting, an alert fires.",
            Query('max by (node) (edge_attention:attend_slowest:share5m{node=~"$node"})', "{{node}}"),
            unit="percentunit",
            span=12,
            highest=1,
            limits=((None, GREEN), (0.6, YELLOW)),
            links=TO_NODE,
        ),
        series(
            "Straggler share of the wait",
            "Of the time attends wait for nodes, the part after the median shard had answered. What an even "
            "fleet would save.",
            Query("max(edge_attention:attend_straggler:ratio5m)", "stragglers"),
            unit="percentunit",
            highest=1,
            limits=((None, GREEN), (0.3, YELLOW)),
        ),
        series(
            "In graphs, 95th percentile by node",
            "Seconds of a task in its graphs, as each node measures them.",
            Query(
                f'histogram_quantile(0.95, sum by (node, le) (rate({N}run_seconds_bucket{{node=~"$node"}}'
                "[$__rate_interval])))",
                "{{node}}",
            ),
            unit="s",
            links=TO_NODE,
        ),
        series(
            "Merge",
            "Seconds to merge one answer out of its partials.",
            Query(
                f"histogram_quantile(0.5, sum by (le) (rate({A}merge_seconds_bucket[$__rate_interval])))",
                "median",
            ),
            Query(
                f"histogram_quantile(0.95, sum by (le) (rate({A}merge_seconds_bucket[$__rate_interval])))",
                "95%",
            ),
            unit="s",
        ),
    ],
)

QUEUES = Row(
    "Queues",
    [
        series(
            "Programs queued",
            "Waiting at the aggregator for the node's credit.",
            Query(f'max by (node) ({A}queued_programs{{node=~"$node"}})', "{{node}}"),
            unit="short",
            links=TO_NODE,
        ),
        series(
            "Credit left",
            "Bytes the aggregator may still send before the node grants more.",
            Query(f'max by (node) ({A}credit_bytes{{node=~"$node"}})', "{{node}}"),
            unit="bytes",
            links=TO_NODE,
        ),
        series(
            "Bytes on the streams",
            "Programs down, contributions up. Attends send results, never keys or values.",
            Query('sum by (direction) (edge_attention:bytes:rate5m{kind="stream"})', "{{direction}}"),
            unit="Bps",
        ),
        number(
            "Contexts",
            "Named sequences of keys and values.",
            Query(f"sum({A}contexts)", "contexts"),
            Query(f"sum({A}context_tokens)", "tokens"),
            unit="short",
            colours=((None, BLUE),),
            span=24,
            height=4,
        ),
    ],
)

BOARD = Board(
    "attention",
    "Edge Attention: attention",
    "What is asked and answered, how long each stage takes, on whose answers it stands.",
    [ANSWERS, LATENCY, SHARES, QUEUES],
    [
        Variable(
            "node", "node", f"{A}node_up", True, "Nodes shown; sums over the fleet are not changed by it."
        )
    ],
)
