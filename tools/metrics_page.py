"""Writes the tables of docs/metrics.md from both daemons' registries; `--check` fails if they are stale."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from aggregator.bounds.budget import Budgets
from aggregator.bounds.turns import Turns
from aggregator.engine.bulk import Bulk
from aggregator.engine.dispatch import Dispatcher
from aggregator.engine.link import FleetLink
from aggregator.engine.recipe import Engine
from aggregator.engine.trip import Trips
from aggregator.fleet.membership import Membership
from aggregator.observe.metrics import Metrics
from aggregator.recipes import RECIPES
from aggregator.server import recipes_of
from aggregator.store.state import State
from edge_attention.metrics.node import NodeMetrics

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
COMMON = ("process_", "python_")

# Each metric and a question it answers. A name that is not registered, as yet, gets no row.
AGGREGATOR = {
    "build_info": "count by (version) (NAME)",
    "nodes": 'NAME{state="ready"}',
    "node_up": "NAME == 0",
    "node_silent_seconds": "topk(5, NAME)",
    "queued_programs": "max by (node) (max_over_time(NAME[5m])) > 0",
    "credit_bytes": "min by (node) (min_over_time(NAME[5m])) < 1048576",
    "registrations_total": "sum by (outcome) (increase(NAME[1h]))",
    "contributions_total": 'sum by (outcome) (rate(NAME{outcome!="folded"}[5m]))',
    "nonfinite_total": "sum by (what) (increase(NAME[15m])) > 0",
    "refusals_total": "sum by (reason) (rate(NAME[5m]))",
    "bound_refusals_total": "sum by (bound) (increase(NAME[15m])) > 0",
    "bound_used_ratio": "NAME > 0.8",
    "state_disk_free_bytes": "NAME / edge_attention_aggregator_state_disk_bytes < 0.1",
    "state_disk_bytes": "NAME",
    "state_bytes": "sum by (kind) (NAME)",
    "runs_deleted_total": "sum by (setting) (increase(NAME[1d]))",
    "blob_bytes_freed_total": "increase(NAME[1d])",
    "turns": 'NAME{kind="attend",what="waiting"}',
    "grpc_connections": "max_over_time(NAME[5m])",
    "bytes_total": "sum by (direction, kind) (rate(NAME[5m]))",
    "attends_total": 'sum(rate(NAME{outcome="exact"}[5m])) / sum(rate(NAME[5m]))',
    "attend_seconds": "histogram_quantile(0.99, sum by (le, stage) (rate(NAME_bucket[5m])))",
    "attend_bound": "histogram_quantile(0.9, sum by (le) (rate(NAME_bucket[1h])))",
    "attend_mass": "sum by (node) (NAME)",
    "attend_wait_seconds_total": "rate(NAME[5m])",
    "attend_straggler_seconds_total": "rate(NAME[5m]) "
    "/ rate(edge_attention_aggregator_attend_wait_seconds_total[5m])",
    "attend_slowest_total": "topk(3, rate(NAME[15m]))",
    "merge_seconds": "rate(NAME_sum[5m]) / rate(NAME_count[5m])",
    "node_run_seconds": "histogram_quantile(0.5, sum by (le) (rate(NAME_bucket[5m])))",
    "deployments": 'NAME{state!="serving"} > 0',
    "deployment_node_bytes": "topk(5, NAME)",
    "infers_total": 'sum(rate(NAME{outcome="exact"}[5m])) / sum(rate(NAME[5m]))',
    "infer_seconds": "histogram_quantile(0.99, sum by (le, stage) (rate(NAME_bucket[5m])))",
    "infer_model_seconds": "histogram_quantile(0.5, sum by (le, model) (rate(NAME_bucket[5m])))",
    "infer_bytes_total": "sum by (direction) (rate(NAME[5m]))",
    "infer_batch_rows": "rate(NAME_sum[5m]) / rate(NAME_count[5m])",
    "generations_total": 'sum(rate(NAME{outcome="failed"}[5m])) / sum(rate(NAME[5m]))',
    "generation_tokens_total": "sum by (kind) (rate(NAME[5m]))",
    "generation_guesses_total": 'sum(rate(NAME{result="right"}[5m])) / sum(rate(NAME[5m]))',
    "generation_seconds": "histogram_quantile(0.9, sum by (le, stage) (rate(NAME_bucket[5m])))",
    "generations_under_way": "max_over_time(NAME[5m])",
    "nv_inference_request_success": "sum by (model) (rate(NAME[5m]))",
    "nv_inference_request_failure": "sum by (model) (increase(NAME[15m])) > 0",
    "nv_inference_count": "sum by (model) (rate(NAME[5m]))",
    "nv_inference_exec_count": "rate(nv_inference_count[5m]) / rate(NAME[5m])",
    "nv_inference_request_duration_us": "rate(NAME[5m]) / rate(nv_inference_request_success[5m])",
    "nv_inference_queue_duration_us": "rate(NAME[5m]) / rate(nv_inference_request_success[5m])",
    "nv_inference_compute_input_duration_us": "rate(NAME[5m])",
    "nv_inference_compute_infer_duration_us": "rate(NAME[5m]) / rate(nv_inference_exec_count[5m])",
    "nv_inference_compute_output_duration_us": "rate(NAME[5m])",
    "nv_inference_pending_request_count": "max by (model) (max_over_time(NAME[5m])) > 0",
    "infer_segments_again_total": "increase(NAME[15m]) > 0",
    "deployments_planned_anew_total": "increase(NAME[1h]) > 0",
    "cut_seconds": "rate(NAME_sum[1h]) / rate(NAME_count[1h])",
    "runs": "NAME",
    "rounds_total": "rate(NAME[5m])",
    "round_seconds": "sum by (stage) (rate(NAME_sum[15m])) / sum by (stage) (rate(NAME_count[15m]))",
    "run_round": "NAME",
    "run_version": "changes(NAME[10m])",
    "run_waiting": "avg_over_time(NAME[15m])",
    "run_missing_nodes": "NAME > 0",
    "run_other_data_nodes": "NAME > 0",
    "run_loss": "NAME",
    "run_metric": 'NAME{metric="correct"}',
    "run_consensus_loss": 'NAME{kind="total"}',
    "run_last_commit_timestamp_seconds": "time() - NAME > 600",
    "updates_total": "sum by (outcome) (rate(NAME[15m]))",
    "update_staleness_versions": "histogram_quantile(0.9, sum by (le) (rate(NAME_bucket[15m])))",
    "contexts": "NAME",
    "context_tokens": "deriv(NAME[1h])",
    "certificate_expiry_timestamp_seconds": "(NAME - time()) / 86400 < 2",
    "certificates_issued_total": "sum by (role) (increase(NAME[1d]))",
    "enrolments_total": "sum by (outcome) (increase(NAME[1d]))",
}
NODE = {
    "build_info": "count by (version) (NAME)",
    "tasks_total": 'sum by (node, outcome) (rate(NAME{outcome!="ok"}[5m]))',
    "run_seconds": "histogram_quantile(0.9, sum by (le, node) (rate(NAME_bucket[5m])))",
    "task_seconds": "rate(NAME_sum[5m]) / rate(NAME_count[5m])",
    "bytes_total": "sum by (node, direction) (rate(NAME[5m]))",
    "refused_releases_total": "increase(NAME[1h]) > 0",
    "memory_limit_bytes": "sum by (node) (edge_attention_node_store_bytes) / sum by (node) (NAME) > 0.9",
    "provider_info": "count by (provider) (NAME)",
    "threads": "NAME",
    "certificate_expiry_timestamp_seconds": "(NAME - time()) / 86400 < 2 and NAME > 0",
    "store_bytes": "sum by (node, scope) (NAME)",
    "store_disk_free_bytes": "NAME / edge_attention_node_store_disk_bytes < 0.1",
    "store_disk_bytes": "NAME",
    "connected": "NAME == 0",
    "reconnects_total": "increase(NAME[1h]) > 3",
    "tasks_running": "max_over_time(NAME[5m])",
    "cells_enabled": "NAME == 0",
    "cells_running": "sum by (node) (NAME)",
    "cells_started_total": "increase(NAME[1h]) > 5",
    "cells_died_total": "sum by (node, how) (increase(NAME[1h])) > 0",
    "cell_seconds_total": "rate(NAME[5m])",
    "cell_graph_seconds_total": "rate(NAME[5m])",
    "refused_graphs": "NAME > 0",
}


class Row(NamedTuple):
    """A metric as it is exposed."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


class _Node:
    """Stands for a node's store, session and cells: their numbers are not asked for."""

    limit, registered, reconnects, tasks = 0, False, 0, 0
    started, died, running, refused = 0, MappingProxyType({"": 0}), 0, 0
    seconds = graph_seconds = 0.0

    def counts(self) -> _Node:
        return self

    def used_in(self, scope: str) -> int:
        return 0


def rows(registry: Any) -> Iterator[Row]:
    """Every metric of ours in a registry."""
    theirs = getattr(registry, "_collector_to_names", None)
    for collector in list(registry._sources if theirs is None else theirs):
        for family in collector.collect():
            if family.name.startswith(COMMON):
                continue
            labels = getattr(collector, "_labelnames", None)
            if labels is None:
                label = getattr(collector, "_label", None)
                names = "_labelnames" if theirs is not None else "labelnames"
                labels = getattr(family, names, ()) if label is None else (label,)
            name = family.name + "_total" * (family.type == "counter")
            yield Row(name, family.type, tuple(labels), family.documentation)


def table(registry: Any, prefix: str, examples: dict[str, str]) -> str:
    """Rows in the order of the examples. Raises SystemExit for a metric without one."""
    found = {row.name.removeprefix(prefix): row for row in rows(registry)}
    if lacking := found.keys() - examples.keys():
        raise SystemExit(f"no example in tools/metrics_page.py for {', '.join(sorted(lacking))}")
    lines = ["| metric | type | labels | what it is | for example |", "|---|---|---|---|---|"]
    for short, query in examples.items():
        if (row := found.get(short)) is None:
            continue
        labels = ", ".join(f"`{label}`" for label in row.labels)
        example = query.replace("NAME", row.name)
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.text} | `{example}` |")
    return "\n".join(lines)


def _aggregator() -> Any:
    """The registry of an aggregator with all its recipes: none can have a metric that is not in the table."""
    with State(None) as state:
        metrics, membership, bulk = Metrics(), Membership(1.0, str), Bulk(state)
        dispatcher = Dispatcher(membership, metrics.tasks)
        link = FleetLink(membership, dispatcher, bulk, metrics, welcome=lambda member: ())
        trips, budgets, turns = Trips(dispatcher, bulk), Budgets(), Turns()
        engine = Engine(state, membership, trips, bulk, link, metrics, budgets, turns, 1.0, 0.0, lambda: 0)
        recipes_of(engine, RECIPES)
        return metrics.registry


def tables() -> dict[str, str]:
    node = _Node()
    return {
        "aggregator": table(_aggregator(), "edge_attention_aggregator_", AGGREGATOR),
        "node": table(
            NodeMetrics(node, node, "", 1, node, folder=Path()).registry, "edge_attention_node_", NODE
        ),
    }


def main() -> int:
    page = kept = PAGE.read_text(encoding="utf-8")
    for name, text in tables().items():
        pattern = rf"(<!-- {name}: tools/metrics_page.py -->\n).*?(<!-- end -->)"
        page, count = re.subn(pattern, lambda m, text=text: f"{m[1]}{text}\n{m[2]}", page, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{PAGE} has {count} places for the table of the {name}; it needs one")
    if "--check" in sys.argv:
        if page != kept:
            print(f"stale tables in {PAGE}; run python -m tools.metrics_page")
        return int(page != kept)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
