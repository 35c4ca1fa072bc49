"""How many rows batches have is counted by rows."""

from __future__ import annotations

from prometheus_client import generate_latest

from aggregator.inference.metrics import ROWS, InferenceMetrics
from aggregator.observe.metrics import Metrics


def test_rows_are_counted_in_buckets_of_rows():
    metrics = Metrics()
    batches = InferenceMetrics(metrics).batches
    for rows in (1, 2, 2, 64, 1000):
        batches.observe(rows)
    page = generate_latest(metrics.make.registry).decode()
    found = {
        line.split('"')[1]: float(line.rsplit(" ", 1)[1])
        for line in page.splitlines()
        if line.startswith("edge_attention_aggregator_infer_batch_rows_bucket")
    }
    assert [float(bound) for bound in found] == [*ROWS, float("inf")]
    assert list(found.values()) == [1, 3, 3, 3, 3, 3, 4, 4, 5]
