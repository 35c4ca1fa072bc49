"""What models have counted, by the names that Triton's metrics have."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from aggregator.inference.protocol import triton_metrics
from aggregator.inference.protocol.statistics import InferenceCounts
from aggregator.inference.protocol.triton_metrics import TritonMetrics
from edge_attention.core.messages.inference import InferReport


def report(whole, queue):
    return InferReport(1, True, 1.0, "", {"all": whole, "queue": queue, "fold": 0.25}, {}, rows=4)


def test_what_is_counted_is_what_is_told():
    counts, registry = InferenceCounts(), CollectorRegistry()
    TritonMetrics(
        lambda: [counts.of("bert", 2)], registry, lambda name, version: 5 * (name, version).count("bert")
    )
    counts.answered("bert", 2, 3, report(2.0, 0.5))
    counts.answered("bert", 2, 1, report(1.0, 0.25))
    counts.failed("bert", 2, 4.0)

    def told(name):
        return registry.get_sample_value(f"nv_inference_{name}", {"model": "bert", "version": "2"})

    assert (told("request_success"), told("request_failure")) == (2, 1)
    assert (told("count"), told("exec_count")) == (4, 1)
    assert told("request_duration_us") == 7e6
    assert told("queue_duration_us") == 0.75e6
    assert told("compute_infer_duration_us") == (2.0 - 0.75 + 1.0 - 0.5) * 1e6
    assert told("compute_input_duration_us") == 0
    assert told("compute_output_duration_us") == 0.5e6
    assert told("pending_request_count") == 5
    assert b"nv_inference_count{" in generate_latest(registry)


def test_so_many_versions_have_series(monkeypatch):
    monkeypatch.setattr(triton_metrics, "VERSIONS", 2)
    counts, registry = InferenceCounts(lambda: next(clock)), CollectorRegistry()
    clock = iter(range(10))
    names = [f"m{n}" for n in range(5)]
    TritonMetrics(lambda: [counts.of(name, 1) for name in names], registry)
    for name in names:
        counts.answered(name, 1, 1, report(1.0, 0.0))
    (family,) = [one for one in registry.collect() if one.name == "nv_inference_count"]
    assert {sample.labels["model"] for sample in family.samples} == {"m3", "m4"}
