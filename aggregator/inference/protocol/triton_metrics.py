"""The statistics of models by the names that Triton's metrics have, for dashboards made for it.

Collected when somebody asks: what a version has counted is counted once, in `statistics.py`, and goes with
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from edge_attention.core.messages.open_inference import ModelStatistics
from edge_attention.metrics.families import Family, Registers

__all__ = ["TritonMetrics"]

VERSIONS = 200
"""Of models that have series."""

PENDING = "nv_inference_pending_request_count", "Requests that wait for their turn.", "gauge"
_COUNTS: tuple[tuple[str, str, Callable[[ModelStatistics], float]], ...] = (
    ("request_success", "Requests that were answered.", lambda one: one.inference_stats.success.count),
    ("request_failure", "Requests that ended with an error.", lambda one: one.inference_stats.fail.count),
    ("count", "Rows of requests that were answered.", lambda one: one.inference_count),
    (
        "exec_count",
        "Runs of the model; rows of several requests may share one.",
        lambda one: one.execution_count,
    ),
    (
        "request_duration_us",
        "Microseconds of requests, from their first byte to their answer.",
        lambda one: (one.inference_stats.success.ns + one.inference_stats.fail.ns) / 1000,
    ),
    (
        "queue_duration_us",
        "Microseconds that requests waited: for nodes to be ready, and for their turn.",
        lambda one: one.inference_stats.queue.ns / 1000,
    ),
    (
        "compute_input_duration_us",
        "Microseconds of putting inputs together.",
        lambda one: one.inference_stats.compute_input.ns / 1000,
    ),
    (
        "compute_infer_duration_us",
        "Microseconds of running, nodes and links included.",
        lambda one: one.inference_stats.compute_infer.ns / 1000,
    ),
    (
        "compute_output_duration_us",
        "Microseconds of putting outputs together.",
        lambda one: one.inference_stats.compute_output.ns / 1000,
    ),
)


class TritonMetrics:
    """A collector of `statistics`, which are asked for at each scrape.

    `pending`: how many requests of a model's version wait for their turn.
    """

    _labelnames = ("model", "version")

    def __init__(
        self,
        statistics: Callable[[], Iterable[ModelStatistics]],
        registry: Registers,
        pending: Callable[[str, str], int] = lambda name, version: 0,
    ) -> None:
        self._statistics = statistics
        self._pending = pending
        registry.register(self)

    def describe(self) -> list[Family]:
        found = [Family(f"nv_inference_{name}", text, "gauge") for name, text, _ in _COUNTS]
        return [*found, Family(*PENDING)]

    def collect(self) -> Iterator[Family]:
        found = sorted(self._statistics(), key=lambda one: (-one.last_inference, one.name))[:VERSIONS]
        for name, text, read in _COUNTS:
            # Triton's names do not end in _total, which a counter's would here.
            family = Family(f"nv_inference_{name}", text, "gauge", self._labelnames)
            for one in found:
                family.add("", read(one), {"model": one.name, "version": one.version})
            yield family
        waiting = Family(*PENDING, self._labelnames)
        for one in found:
            waiting.add("", self._pending(one.name, one.version), {"model": one.name, "version": one.version})
        yield waiting
