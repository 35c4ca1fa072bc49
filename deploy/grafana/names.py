"""What several dashboards say alike: names of metrics, colours of states."""

from __future__ import annotations

from deploy.grafana.layout import GREEN, RED, YELLOW

A = "edge_attention_aggregator_"
N = "edge_attention_node_"

UP = {"1": ("up", GREEN), "0": ("lost", RED)}
FULL = ((None, GREEN), (0.75, YELLOW), (0.9, RED))
"""Memory: an alert fires at 90%."""

DAYS = ((None, RED), (1, YELLOW), (2, GREEN))
"""Of a certificate's life: an alert fires in its last day."""
