"""What a node counts, and when it reports it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.core.messages.link import Register
from edge_attention.core.messages.program import Contribution, Fault
from edge_attention.metrics.node import REPORT_LIMIT, REPORT_SECONDS, NodeMetrics
from edge_node.cell.counts import Counts
from edge_node.metrics_port import serve
from edge_node.session import Session, SessionPhase
from edge_node.store.store import Store


@pytest.fixture
def made():
    session = Session(
        "n", "hub:1", lambda id: Register(1, "0", "n", "i", id, "cpu", 1, 9), lambda: 0, lambda: 0
    )
    return NodeMetrics(Store(1000), session, "CPUExecutionProvider", 3), session


def value(metrics, name, **labels):
    registry = CollectorRegistry()
    registry.register(metrics.registry)
    return registry.get_sample_value(f"edge_attention_node_{name}", labels)


def test_a_task_is_counted_by_how_it_ended(made):
    metrics, _ = made
    for name in (None, "PrivateTensor", "NotFound"):
        error = None if name is None else Fault(name, "no")
        done = Contribution(
            "t", "s", range(1), 0, 0, final=True, error=error, run_seconds=0.5, task_seconds=2.0
        )
        metrics.ended(done)
    assert value(metrics, "tasks_total", outcome="ok") == 1
    assert value(metrics, "tasks_total", outcome="NotFound") == 1
    assert value(metrics, "refused_releases_total") == 1
    assert value(metrics, "run_seconds_sum") == 1.5
    assert value(metrics, "task_seconds_sum") == 6.0


def test_the_rest_is_looked_up(made):
    metrics, session = made
    assert value(metrics, "connected") == 0
    assert value(metrics, "memory_limit_bytes") == 1000
    assert value(metrics, "threads") == 3
    assert value(metrics, "provider_info", provider="CPUExecutionProvider") == 1
    assert value(metrics, "certificate_expiry_timestamp_seconds") == 0
    session.phase = SessionPhase.REGISTERED
    session.reconnects = 4
    assert value(metrics, "connected") == 1
    assert value(metrics, "reconnects_total") == 4
    assert value(metrics, "tasks_running") == 0
    assert value(metrics, "store_bytes", scope="context") == 0


@pytest.mark.parametrize(("quiet", "free"), [(False, 4096 * 137), (True, 4096 * 100)])
def test_what_is_left_of_the_disk_of_the_store_is_told_roughly_by_who_has_datasets(
    made, monkeypatch, quiet, free
):
    _, session = made
    disk = os.statvfs_result((4096, 4096, 1000, 137, 137, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    metrics = NodeMetrics(Store(1000), session, "cpu", 3, quiet=quiet, folder=Path("/store"))
    assert value(metrics, "store_disk_free_bytes") == free
    assert value(metrics, "store_disk_bytes") == 4096 * 1000
    assert value(made[0], "store_disk_bytes") is None, "a store in memory has no disk"


def test_cells_are_counted_and_that_there_are_none_is_said(made):
    metrics, session = made
    assert value(metrics, "cells_enabled") == 0
    assert value(metrics, "cells_running") is None
    counts = Counts(
        started=3, died=Counter(SIGFPE=2, exit=1), seconds=1.5, graph_seconds=0.5, running=1, refused=4
    )
    cells = SimpleNamespace(counts=lambda: counts)
    metrics = NodeMetrics(Store(1000), session, "CPUExecutionProvider", 3, cells)
    assert value(metrics, "cells_enabled") == 1
    assert value(metrics, "cells_running") == 1
    assert value(metrics, "cells_started_total") == 3
    assert value(metrics, "cells_died_total", how="SIGFPE") == 2
    assert value(metrics, "cell_seconds_total") == 1.5
    assert value(metrics, "cell_graph_seconds_total") == 0.5
    assert value(metrics, "refused_graphs") == 4


def test_it_reports_now_and_then_and_after_a_reconnection(made):
    metrics, session = made
    first = metrics.report(100.0)
    assert b"edge_attention_node_build_info" in first
    assert b"_created" not in first
    assert metrics.report(100.0 + REPORT_SECONDS - 1) == b""
    assert metrics.report(100.0 + REPORT_SECONDS)
    session.reconnects += 1
    assert metrics.report(100.0 + REPORT_SECONDS + 1)
    assert metrics.report(100.0 + REPORT_SECONDS + 2) == b""


def test_a_report_too_large_stays_here(made):
    metrics, _ = made
    metrics.certificate_expiry._text = "x" * REPORT_LIMIT
    assert metrics.report(0.0) == b""


def test_its_port_is_on_loopback_and_free(made):
    metrics, _ = made
    with pytest.raises(FailedPrecondition, match="refusing to serve a node's metrics"):
        serve(metrics.registry, "0.0.0.0", 0)
    url = serve(metrics.registry, "127.0.0.1", 0)
    with pytest.raises(InvalidArgument, match="metrics cannot be served on"):
        serve(metrics.registry, "127.0.0.1", int(url.split(":")[2].split("/")[0]))


def test_what_would_tell_of_private_data_stays_on_the_machine(made):
    """A process's memory and processor time are what a graph on private data has taken."""
    _, session = made
    cells = SimpleNamespace(counts=lambda: Counts(1, Counter({"signal 8": 1}), 2.5))
    for quiet in (False, True):
        metrics = NodeMetrics(Store(1000), session, "CPUExecutionProvider", 3, cells, quiet)
        names = {line.split(b"{")[0].split(b" ")[0] for line in metrics.report(0.0).splitlines()}
        told = names & {
            b"process_resident_memory_bytes",
            b"process_virtual_memory_bytes",
            b"process_cpu_seconds_total",
            b"process_open_fds",
            b"edge_attention_node_cell_seconds_total",
            b"edge_attention_node_cell_graph_seconds_total",
            b"edge_attention_node_cells_died_total",
        }
        assert len(told) == (0 if quiet else 7)
        assert b"edge_attention_node_run_seconds_count" in names
        assert b"\nprocess_resident_memory_bytes " in metrics.registry.text()
