"""What is counted of deployed models, and of the requests they answer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence

from aggregator.observe.metrics import Metrics
from edge_attention.core.messages.inference import DeploymentState, InferReport

MODELS = 200
"""Models, and nodes, that have series."""
STAGES = ("all", "queue", "ready", "run", "turn", "wait", "fold")
OUTCOMES = ("exact", "partial", "failed")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Bounds of the buckets of a batch's rows: cut models' batches have a power of two."""


class InferenceMetrics:
    """Requests by outcome and stage, bytes of activations; deployments and their weights."""

    def __init__(self, metrics: Metrics) -> None:
        make = metrics.make
        self.deployments = make.gauge(
            "deployments",
            "Deployed models by state: planning, delivering, serving, waiting, leaving.",
            "state",
        )
        self.weights = make.gauge(
            "deployment_node_bytes", "Bytes of models' weights that a node is to hold.", "node"
        )
        self.requests = make.counter(
            "infers_total", "Requests to deployed models by outcome: exact, partial, failed.", "outcome"
        )
        self.seconds = make.histogram(
            "infer_seconds",
            "Seconds of a request to a model by stage. queue: until it was its turn. ready: until nodes were "
            "ready for its shape. turn: until it could run. run: in graphs, at the slowest part. wait: for "
            "nodes. fold: here. all.",
            "stage",
        )
        self.model_seconds = make.histogram("infer_model_seconds", "Seconds of a request by model.", "model")
        self.bytes = make.counter(
            "infer_bytes_total", "Bytes of activations of requests to models, to nodes (down) and from (up).",
            "direction",
        )  # fmt: skip
        self.again = make.counter(
            "infer_segments_again_total", "Segments done again, as the node that had the part was gone."
        )
        self.cuts = make.histogram(
            "cut_seconds", "Seconds to cut a deployed model for another shape of inputs."
        )
        self.batches = make.histogram(
            "infer_batch_rows",
            "Rows of batches in which requests to models run; 1: of one by itself.",
            buckets=ROWS,
        )
        self.anew = make.counter(
            "deployments_planned_anew_total",
            "Deployments planned anew by reason (gone, came: nodes) and by what came of it (swapped, kept, "
            "failed).",
            "reason",
            "end",
        )
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
        for direction in ("down", "up"):
            self.bytes.labels(direction)
        self._nodes: set[str] = set()

    def answered(self, model: str, report: InferReport) -> None:
        """A request was answered."""
        self.requests.labels("exact" if report.exact else "partial").inc()
        for stage in STAGES:
            if stage in report.seconds:
                self.seconds.labels(stage).observe(report.seconds[stage])
        self.seconds.labels("run").observe(max(report.part_seconds.values(), default=0.0))
        self.model_seconds.labels(model).observe(report.seconds.get("all", math.nan))
        self.bytes.labels("down").inc(report.bytes_down)
        self.bytes.labels("up").inc(report.bytes_up)
        self.again.inc(report.again)

    def batched(self, requests: int, rows: int, waited: Sequence[float]) -> None:
        """A batch of requests has begun, which waited so long."""
        self.batches.observe(rows)

    def failed(self) -> None:
        """A request ended with an error."""
        self.requests.labels("failed").inc()

    def planned_anew(self, reason: str, end: str) -> None:
        """A deployment was planned anew, and what came of it."""
        self.anew.labels(reason, end).inc()

    def cut(self, seconds: float) -> None:
        """A model was cut for a shape."""
        self.cuts.observe(seconds)

    def deployed(self, states: Mapping[DeploymentState, int], weights: Mapping[str, int]) -> None:
        """How many deployments are in each state now, and what nodes are to hold of them."""
        for state in DeploymentState:
            if state is not DeploymentState.GONE:
                self.deployments.labels(state.value).set(states.get(state, 0))
        nodes = set(sorted(weights)[:MODELS])
        for node in nodes:
            self.weights.labels(node).set(weights[node])
        for node in self._nodes - nodes:
            with contextlib.suppress(KeyError):
                self.weights.remove(node)
        self._nodes = nodes
