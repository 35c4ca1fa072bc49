from __future__ import annotations

import numpy as np
import onnxruntime
import psutil
import pytest
import small_graphs
from onnx import helper, numpy_helper

from edge_attention.core.errors import DataLoss, InvalidArgument, InvalidGraph
from edge_attention.graphs.attention import library
from edge_attention.graphs.reading import read_graph
from edge_attention.providers import choose_provider, open_session, working_provider
from edge_node import runtime as rooms
from edge_node import sessions
from edge_node.runtime import Runtime


def load(made):
    return Runtime().load(*made)


def test_arrays_go_in_and_out():
    graph = load(small_graphs.doubled())
    x = np.frombuffer(np.arange(6, dtype=np.float32).tobytes(), np.float32).reshape(3, 2)  # read-only
    z, y = graph.run({"x": x}, ["z", "y"], rooms.Stop())
    np.testing.assert_array_equal(y, 2 * x)
    assert z == 15


def test_a_graph_that_reads_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.ones(2, np.float32).tofile("secret.bin")
    with pytest.raises(InvalidGraph, match="other files"):
        load(small_graphs.external())


def test_onnx_runtime_is_given_what_was_written_out_again(monkeypatch):
    given = []

    def opened(data, options, provider, where):
        given.append(data)
        return open_session(data, options, provider, where)

    monkeypatch.setattr(rooms, "open_session", opened)
    _, data = small_graphs.doubled()
    sent = small_graphs.named(data + b"\x12\x04them")  # producer_name
    assert load(sent).digest == sent[0]
    assert given == [read_graph(data, "the graph").data]


@pytest.mark.parametrize("name", library.names())
def test_the_library_s_graphs_are_found_without_a_download(name):
    runtime = Runtime()
    graph = runtime.find(library.digest(name))
    assert graph is not None
    assert runtime.cached(graph.digest) is graph


def test_what_is_no_graph_is_refused():
    with pytest.raises(InvalidGraph, match="not an ONNX file"):
        load(small_graphs.named(b"not a graph"))
    with pytest.raises(InvalidGraph, match="own format"):
        load(small_graphs.named(b"\x00\x00\x00\x00ORTM"))
    with pytest.raises(DataLoss):
        Runtime().load("0" * 64, small_graphs.doubled()[1])
    assert Runtime().find("0" * 64) is None


def test_graphs_used_least_go_first(monkeypatch):
    monkeypatch.setattr(rooms, "GRAPHS", 2)
    made = [small_graphs.doubled(), small_graphs.filled(), small_graphs.gathered()]
    runtime = Runtime()
    runtime.load(*made[0])
    runtime.load(*made[1])
    assert runtime.cached(made[0][0])
    runtime.load(*made[2])
    assert [runtime.cached(digest) is not None for digest, _ in made] == [True, False, True]
    small = Runtime(limit=1)
    small.load(*made[0])
    small.load(*made[1])
    assert [small.cached(digest) is not None for digest, _ in made] == [False, True, False]


def test_a_provider_that_is_in_the_build_but_does_not_load_is_the_cpu(caplog, monkeypatch):
    """As onnxruntime-gpu without the libraries of CUDA: it is listed, and sessions quietly run on the CPU."""
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    for wanted in ("cuda", "auto"):
        caplog.clear()
        assert working_provider(wanted) == "CPUExecutionProvider"
        assert "provider CUDAExecutionProvider does not work here" in caplog.text
    assert Runtime("cuda").provider == "CPUExecutionProvider"


def test_a_graph_that_a_provider_cannot_compile_runs_on_the_cpu(caplog, monkeypatch):
    """As OpenVINO 1.24 does with attention_prefill; the CPU's answer, and its refusals, are the real ones."""
    real = onnxruntime.InferenceSession

    def refusing(data, options, providers):
        if providers[0] != "CPUExecutionProvider":
            raise RuntimeError("Check '!shape.rank().is_dynamic()' failed")
        return real(data, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refusing)
    data = library.load("attention_prefill")
    session = open_session(
        data, onnxruntime.SessionOptions, "OpenVINOExecutionProvider", "graph 3ed7f0214bd0"
    )
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert "graph 3ed7f0214bd0: OpenVINOExecutionProvider cannot run it, the CPU does: Check" in caplog.text
    with pytest.raises(Exception, match="protobuf parsing failed"):
        open_session(b"no graph", onnxruntime.SessionOptions, "OpenVINOExecutionProvider", "graph x")


def test_the_provider_that_is_not_there_is_the_cpu(caplog):
    cpu = "CPUExecutionProvider"
    assert choose_provider("auto", [cpu]) == cpu
    assert choose_provider("auto", [cpu, "CUDAExecutionProvider"]) == "CUDAExecutionProvider"
    assert not caplog.text
    assert choose_provider("cuda", [cpu]) == cpu
    assert "cuda is not in this build" in caplog.text
    with pytest.raises(InvalidArgument, match="abacus"):
        choose_provider("abacus", onnxruntime.get_available_providers())


def test_what_is_large_is_not_computed_ahead(monkeypatch):
    """A size that the reader cannot tell: ONNX Runtime computes it when it runs, within the arena."""
    monkeypatch.setattr(sessions, "FOLDED", 1 << 20)
    value, vector = small_graphs.value, numpy_helper.from_array(np.ones(1 << 14, np.float32), "a")
    nodes = [
        helper.make_node("Einsum", ["a", "a"], ["e"], equation="i,j->ij"),
        helper.make_node("Add", ["e", "x"], ["y"]),
    ]
    inputs, outputs = [value("x", small_graphs.FLOAT, [1])], [value("y", small_graphs.FLOAT, None)]
    made = small_graphs.model(nodes, inputs, outputs, [vector])
    before = psutil.Process().memory_info().rss
    graph = load(small_graphs.named(made))
    assert psutil.Process().memory_info().rss - before < 200 << 20, graph
