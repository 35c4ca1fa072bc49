"""Constants that are not in a graph's file: the same bits as from within it, here and in a cell."""

from __future__ import annotations

import numpy as np
import pytest
import small_graphs
from onnx import TensorProto, helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.reading.constants import with_constants
from edge_node import shared_memory
from edge_node.cell import calls
from edge_node.cell.refused_graphs import RefusedGraphs
from edge_node.runtime import Runtime, Stop

SIZE = 96
RNG = np.random.default_rng(0)
X = RNG.standard_normal((7, SIZE), np.float32)
KINDS = {
    np.dtype(t): n for t, n in (("float32", 1), ("uint8", 2), ("int8", 3), ("int64", 7), ("float16", 10))
}


def weight(*shape):
    return RNG.standard_normal(shape).astype(np.float32) / SIZE**0.5


def layer():
    """Nodes that ONNX Runtime fuses, packs, folds or reads as they are; and their weights."""
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "rows"], ["picked"]),
        node("Add", ["x", "picked"], ["x1"]),
        node("MatMul", ["x1", "w1"], ["m"]),
        node("Add", ["m", "b1"], ["a"]),
        node("Gelu", ["a"], ["g"]),
        node("Gemm", ["g", "w2", "b2"], ["h"], transB=1),
        node("Add", ["h", "x"], ["r"]),
        node("LayerNormalization", ["r", "scale", "bias"], ["n"]),
        node("Transpose", ["w3"], ["t"], perm=[1, 0]),
        node("MatMul", ["n", "t"], ["o"]),
        node("DynamicQuantizeLinear", ["o"], ["q", "qs", "qz"]),
        node("MatMulInteger", ["q", "w4", "qz"], ["i"]),
        node("Cast", ["i"], ["c"], to=TensorProto.FLOAT),
        node("Mul", ["c", "qs"], ["y"]),
        node("Cast", ["half"], ["wide"], to=TensorProto.FLOAT),
        node("MatMul", ["o", "wide"], ["z"]),
    ]
    weights = {
        "table": weight(50, SIZE),
        "rows": RNG.integers(0, 50, 7),
        "w1": weight(SIZE, SIZE),
        "b1": weight(SIZE),
        "w2": weight(SIZE, SIZE),
        "b2": weight(SIZE),
        "scale": weight(SIZE),
        "bias": weight(SIZE),
        "w3": weight(SIZE, SIZE),
        "w4": RNG.integers(-127, 128, (SIZE, SIZE)).astype(np.int8),
        "half": weight(SIZE, 8).astype(np.float16),
    }
    inputs = [small_graphs.value("x", 1, ["t", SIZE])]
    inputs += [small_graphs.value(n, KINDS[array.dtype], array.shape) for n, array in weights.items()]
    outputs = [small_graphs.value("y", 1, ["t", SIZE]), small_graphs.value("z", 1, ["t", 8])]
    return small_graphs.named(small_graphs.model(nodes, inputs, outputs)), weights


def on_disk(array, folder):
    """`array`, mapped from a file in which it does not begin at 0."""
    path = folder / f"{id(array)}"
    path.write_bytes(b"-" * 4096 + array.tobytes())
    return shared_memory.map_file(path).array(4096, array.shape, array.dtype)


@pytest.mark.parametrize("cell", [False, pytest.param(True, marks=pytest.mark.e2e)])
def test_they_are_the_same_bits(cell, monkeypatch, tmp_path):
    (digest, data), weights = layer()
    places = [
        lambda array: array,
        lambda array: on_disk(array, tmp_path),
        lambda array: np.array(array[::-1])[::-1],  # not contiguous
    ]
    runtime = Runtime(limit=64 << 20, graphs=RefusedGraphs() if cell else None)
    try:
        graph = runtime.load(digest, data)
        found = [graph.run({"x": X, **weights}, ["y", "z"], Stop())]
        for least in (1 << 30, 1024):
            monkeypatch.setattr(shared_memory, "LEAST", least)
            for number, place in enumerate(places):
                constants = {name: place(array) for name, array in weights.items()}
                frozen = runtime.frozen(graph, f"{least:032x}{number:032x}", constants)
                found += [frozen.run({"x": X}, ["y", "z"], Stop()) for _ in range(2)]
    finally:
        runtime.close()
    first = found[1]
    for y, z in found[2:]:
        np.testing.assert_array_equal(y, first[0])
        np.testing.assert_array_equal(z, first[1])
    np.testing.assert_allclose(found[0][1], first[1], atol=1e-4)


@pytest.mark.e2e
def test_of_more_than_a_message_has_room_for_the_rest_is_in_the_file(monkeypatch):
    (digest, data), weights = layer()
    monkeypatch.setattr(shared_memory, "LEAST", 1024)
    monkeypatch.setattr(calls, "DESCRIPTORS", 4)
    runtime = Runtime(limit=64 << 20, graphs=RefusedGraphs())
    try:
        graph = runtime.load(digest, data)
        frozen = runtime.frozen(graph, "0" * 64, weights)
        assert len(frozen._file.constants) == 3
        frozen.run({"x": X}, ["y"], Stop())
    finally:
        runtime.close()


def test_what_would_be_computed_of_them_is_bounded_all_the_same():
    nodes = [helper.make_node("Tile", ["w", "times"], ["y"]), helper.make_node("Add", ["y", "x"], ["z"])]
    times = helper.make_tensor("times", TensorProto.INT64, [2], [1 << 14, 1 << 14])
    inputs = [small_graphs.value("x", 1, [1]), small_graphs.value("w", 1, [SIZE, SIZE])]
    data = small_graphs.model(nodes, inputs, [small_graphs.value("z", 1, ["a", "b"])], [times])
    for apart in ((), ("w",)):
        with pytest.raises(InvalidGraph, match="loading it would compute"):
            with_constants(data, {"w": weight(SIZE, SIZE)}, "the graph", apart)
