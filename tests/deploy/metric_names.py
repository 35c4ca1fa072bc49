"""The metrics that rules and dashboards may use: name -> labels. What the daemons' registries must have."""

from __future__ import annotations

import re
from collections.abc import Iterator

HISTOGRAMS = {
    "edge_attention_aggregator_attend_seconds": {"stage"},
    "edge_attention_aggregator_attend_bound": set(),
    "edge_attention_aggregator_merge_seconds": set(),
    "edge_attention_aggregator_infer_seconds": {"stage"},
    "edge_attention_aggregator_infer_model_seconds": {"model"},
    "edge_attention_aggregator_node_run_seconds": set(),
    "edge_attention_aggregator_round_seconds": {"stage"},
    "edge_attention_aggregator_update_staleness_versions": set(),
    "edge_attention_node_run_seconds": set(),
    "edge_attention_node_task_seconds": set(),
}

AGGREGATOR = {
    "build_info": {"version"},
    "nodes": {"state"},
    "node_up": {"node"},
    "node_silent_seconds": {"node"},
    "registrations_total": {"outcome"},
    "contributions_total": {"outcome"},
    "bound_refusals_total": {"bound"},
    "bytes_total": {"direction", "kind"},
    "attends_total": {"outcome"},
    "attend_mass": {"node"},
    "attend_wait_seconds_total": set(),
    "attend_straggler_seconds_total": set(),
    "attend_slowest_total": {"node"},
    "deployments": {"state"},
    "deployment_node_bytes": {"node"},
    "infers_total": {"outcome"},
    "infer_bytes_total": {"direction"},
    "infer_segments_again_total": set(),
    "generation_tokens_total": {"kind"},
    "runs": set(),
    "state_bytes": {"kind"},
    "state_disk_bytes": set(),
    "state_disk_free_bytes": set(),
    "rounds_total": set(),
    "run_round": {"run"},
    "run_version": {"run"},
    "run_waiting": {"run"},
    "run_missing_nodes": {"run"},
    "run_other_data_nodes": {"run"},
    "run_loss": {"run"},
    "run_metric": {"run", "metric"},
    "run_consensus_loss": {"run", "kind"},
    "run_last_commit_timestamp_seconds": {"run"},
    "updates_total": {"outcome"},
    "nonfinite_total": {"what"},
    "contexts": set(),
    "context_tokens": set(),
    "queued_programs": {"node"},
    "credit_bytes": {"node"},
    "refusals_total": {"reason"},
    "certificate_expiry_timestamp_seconds": {"name"},
    "certificates_issued_total": {"role"},
    "enrolments_total": {"outcome"},
}

NODE = {
    "build_info": {"version"},
    "tasks_total": {"outcome"},
    "bytes_total": {"direction", "kind"},
    "refused_releases_total": set(),
    "store_bytes": {"scope"},
    "memory_limit_bytes": set(),
    "store_disk_free_bytes": set(),
    "store_disk_bytes": set(),
    "connected": set(),
    "reconnects_total": set(),
    "provider_info": {"provider"},
    "threads": set(),
    "tasks_running": set(),
    "certificate_expiry_timestamp_seconds": set(),
}

TRITON = {"nv_inference_request_success", "nv_inference_request_failure", "nv_inference_queue_duration_us"}
"""The aggregator's too, by the names that Triton's metrics have."""
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
PROMETHEUS = {"up", "ALERTS"}
TARGET = {"job", "instance"}


def exposed() -> dict[str, set[str]]:
    """Every series the daemons expose that we use, with its labels as Prometheus stores them."""
    made = {f"edge_attention_aggregator_{name}": labels for name, labels in AGGREGATOR.items()}
    made |= {f"edge_attention_node_{name}": labels for name, labels in NODE.items()}
    for name, labels in HISTOGRAMS.items():
        made |= {f"{name}_sum": labels, f"{name}_count": labels, f"{name}_bucket": labels | {"le"}}
    made |= {name: {"model", "version"} for name in TRITON}
    made |= {name: set() for name in PROCESS}
    # Service discovery adds the label `node` to what comes from nodes.
    return {
        name: labels | TARGET | ({"node"} if name.startswith(("edge_attention_node_", "process_")) else set())
        for name, labels in made.items()
    }


def used(expr: str) -> Iterator[tuple[str, set[str]]]:
    """Metrics named in PromQL, with the labels their selectors match on."""
    without_texts = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    pattern = (
        r"\b(edge_attention[_:][\w:]+|nv_inference_\w+|process_\w+|up|ALERTS)\b(?!\s*\()(?:\{([^}]*)\})?"
    )
    for found in re.finditer(pattern, without_texts):
        yield found[1], set(re.findall(r"(\w+)\s*[=!]", found[2] or ""))
