"""Models: what is asked of deployed models, how long each stage takes, what nodes hold of them."""

from __future__ import annotations

from deploy.grafana.layout import GREEN, RED, TO_NODE, YELLOW, Board, Query, Row, number, series
from deploy.grafana.names import A

STAGES = (
    "ready: until nodes were ready for the request's shape; turn: until it could run; run: in the graphs of "
    "the slowest part; wait: for nodes, their graphs included; fold: merging at the aggregator; all."
)


def quantile(share: float, metric: str, label: str) -> str:
    """A quantile of a histogram by one of its labels."""
    return f"histogram_quantile({share}, sum by (le, {label}) (rate({A}{metric}_bucket[$__rate_interval])))"


REQUESTS = Row(
    "Requests",
    [
        number(
            "Exact",
            "Of the answers of five minutes. The rest are partial, and say what they lack.",
            Query(
                f'sum(rate({A}infers_total{{outcome="exact"}}[5m])) '
                f'/ sum(rate({A}infers_total{{outcome!="failed"}}[5m]))'
            ),
            unit="percentunit",
            colours=((None, RED), (0.95, YELLOW), (0.99, GREEN)),
            empty="idle",
            span=4,
            height=8,
        ),
        series(
            "Requests by outcome",
            "exact: the whole model's answer. partial: labelled. failed: an error, a deadline included.",
            Query(f"sum by (outcome) (rate({A}infers_total[$__rate_interval]))", "{{outcome}}"),
            unit="reqps",
            span=10,
            stack=True,
        ),
        series(
            "Seconds by model",
            "Median of a request, from its first message to its answer.",
            Query(quantile(0.5, "infer_model_seconds", "model"), "{{model}}"),
            unit="s",
            span=10,
        ),
    ],
)

BY_MODEL = Row(
    "By model",
    [
        series(
            "Requests by model",
            "Answered ones a second, by the names that Triton's metrics have.",
            Query("sum by (model) (rate(nv_inference_request_success[$__rate_interval]))", "{{model}}"),
            unit="reqps",
            span=6,
            stack=True,
        ),
        series(
            "Failures by model",
            "Requests of five minutes that ended with an error.",
            Query("sum by (model) (increase(nv_inference_request_failure[5m]))", "{{model}}"),
            unit="short",
            span=6,
        ),
        series(
            "Waiting by model",
            "Mean time that a request waited: for nodes to be ready for its shape, and for its turn.",
            Query(
                "sum by (model) (rate(nv_inference_queue_duration_us[$__rate_interval])) / "
                "(sum by (model) (rate(nv_inference_request_success[$__rate_interval])) > 0)",
                "{{model}}",
            ),
            unit="µs",
            span=6,
        ),
        series(
            "Tokens",
            "Of generations, a second: prompt tokens that were read, and completion tokens that came.",
            Query(f"sum by (kind) (rate({A}generation_tokens_total[$__rate_interval]))", "{{kind}}"),
            unit="short",
            span=6,
        ),
    ],
)

STAGE = Row(
    "Where the time goes",
    [
        series(
            "Median by stage", STAGES, Query(quantile(0.5, "infer_seconds", "stage"), "{{stage}}"), unit="s"
        ),
        series(
            "99% by stage", STAGES, Query(quantile(0.99, "infer_seconds", "stage"), "{{stage}}"), unit="s"
        ),
        series(
            "Activations",
            "Bytes that pass the aggregator for requests: to nodes (down), and from them (up).",
            Query(f"sum by (direction) (rate({A}infer_bytes_total[$__rate_interval]))", "{{direction}}"),
            unit="Bps",
        ),
    ],
)

HELD = Row(
    "Deployments",
    [
        series(
            "Deployments by state",
            "waiting: a part has no node that is here; requests wait for one until their deadline.",
            Query(f"sum by (state) ({A}deployments)", "{{state}}"),
            unit="short",
            steps=True,
        ),
        series(
            "Weights by node",
            "Bytes of models' weights that a node is to hold.",
            Query(f"max by (node) ({A}deployment_node_bytes)", "{{node}}"),
            unit="bytes",
            links=TO_NODE,
        ),
        series(
            "Segments done again",
            "Of five minutes, as the node that had the part was gone in the middle of a request.",
            Query(f"sum(increase({A}infer_segments_again_total[5m]))", "again"),
            unit="short",
        ),
    ],
)

BOARD = Board(
    "models",
    "Edge Attention: models",
    "What is asked of deployed models, how long each stage takes, what nodes hold of them.",
    [REQUESTS, BY_MODEL, STAGE, HELD],
)
