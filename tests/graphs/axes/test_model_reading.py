"""Models are read without their weights, wherever those lie; what is wrong is refused before one is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.errors import DataLoss, InvalidGraph, NotFound
from edge_attention.core.schedule.extents import AxisSpan
from edge_attention.core.schedule.schedule import Weight
from edge_attention.graphs.axes.model_reading import KEPT_BYTES, open_model
from tests.graphs.axes.random_transformers import recipe_of, transformer

WIDE = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)


def model_of(*weights: TensorProto) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 30])
    graph = helper.make_graph(nodes, "g", [x], [y], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def bias() -> TensorProto:
    return numpy_helper.from_array(np.arange(30, dtype=np.float32), "b")


def external(location: str, **more: object) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=WIDE.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return tensor


def test_weights_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model_of(numpy_helper.from_array(WIDE, "w"), bias()), path)
    model = open_model(path)
    assert set(model.places) == {"w"}
    assert model.model.ByteSize() < WIDE.nbytes
    assert (model.read("w") == WIDE).all()
    assert (model.read("b") == np.arange(30)).all()
    piece = model.piece(Weight("w", (AxisSpan(0, 1, 2, 4, 2, 5),)))
    assert (piece == WIDE.reshape(2, 4, 5, 30)[:, 1:2].reshape(10, 30)).all()
    with pytest.raises(NotFound, match="'v'"):
        model.read("v")


def sparse(places: np.ndarray, **changed: object) -> onnx.SparseTensorProto:
    """WIDE, where a number is above 1.5, and zeros elsewhere."""
    given = {"values": WIDE.ravel()[WIDE.ravel() > 1.5], "dims": WIDE.shape, "name": "w"} | changed
    values = numpy_helper.from_array(np.asarray(given["values"]), str(given["name"]))
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places, "places"), given["dims"])


FLAT = np.flatnonzero(WIDE.ravel() > 1.5)


@pytest.mark.parametrize("places", [FLAT, np.argwhere(WIDE > 1.5)])
def test_a_sparse_initializer_is_made_dense(tmp_path: Path, places: np.ndarray) -> None:
    path = tmp_path / "m.onnx"
    model = model_of(bias())
    model.graph.sparse_initializer.append(sparse(places))
    onnx.save(model, path)
    opened = open_model(path)
    assert (opened.read("w") == np.where(WIDE > 1.5, WIDE, 0)).all()
    assert not opened.model.graph.sparse_initializer


@pytest.mark.parametrize("places", [np.zeros(0, np.int64), np.zeros((0, WIDE.ndim), np.int64)])
def test_a_sparse_initializer_of_nothing_is_zeros(tmp_path: Path, places: np.ndarray) -> None:
    model = model_of(bias())
    model.graph.sparse_initializer.append(sparse(places, values=np.zeros(0, np.float32)))
    onnx.save(model, tmp_path / "m.onnx")
    found = open_model(tmp_path / "m.onnx").read("w")
    assert found.shape == WIDE.shape
    assert not found.any()


@pytest.mark.parametrize(
    ("places", "changed", "said"),
    [
        (np.array(3), {}, "do not go together"),
        (FLAT.reshape(-1, 1), {}, "do not go together"),
        (np.argwhere(WIDE > 1.5) + np.array([0, 30]), {}, "beyond its shape"),
        (np.argwhere(WIDE > 1.5) - np.array([40, 0]), {}, "beyond its shape"),
        (FLAT + 1100, {}, "beyond its shape"),
        (FLAT[:-1], {}, "do not go together"),
        (FLAT, {"name": "b"}, "no name of its own|two constants"),
        (np.zeros(1, np.int64), {"values": np.ones(1), "dims": (1 << 20, 1 << 20)}, "bytes once it is dense"),
        (np.zeros(1, np.int64), {"values": np.ones(1), "dims": (0, 4)}, "do not go together"),
    ],
)
def test_a_sparse_initializer_that_cannot_be_made_dense_is_refused(
    tmp_path: Path, places: np.ndarray, changed: dict[str, object], said: str
) -> None:
    path = tmp_path / "m.onnx"
    model = model_of(bias())
    model.graph.sparse_initializer.append(sparse(places, **changed))
    onnx.save(model, path)
    with pytest.raises(InvalidGraph, match=said):
        open_model(path)


def test_all_constants_are_read_as_onnx_reads_them(tmp_path: Path) -> None:
    """Also those whose numbers are in fields of their type, one by one or in a row."""
    path = tmp_path / "m.onnx"
    given = transformer(recipe_of(5, layers=2, quantised=False))
    floats = helper.make_tensor("floats", TensorProto.FLOAT, WIDE.shape, WIDE.ravel())
    ids = np.arange(999, dtype=np.int64)
    given.graph.initializer.extend([floats, helper.make_tensor("ids", TensorProto.INT64, [999], ids)])
    onnx.save(given, path)
    model = open_model(path)
    assert "floats" in model.places
    assert "ids" not in model.places
    for tensor in given.graph.initializer:
        expected = numpy_helper.to_array(tensor)
        assert model.read(tensor.name).dtype == expected.dtype
        assert np.array_equal(model.read(tensor.name), expected), tensor.name


def test_external_data(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 64 + WIDE.tobytes())
    path = tmp_path / "m.onnx"
    onnx.save(model_of(external("w.bin", offset=64, length=WIDE.nbytes), bias()), path)
    model = open_model(path)
    assert (model.read("w") == WIDE).all()
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(DataLoss, match=r"w\.bin"):
        model.read("w")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (external("../w.bin"), "model's folder"),
        (external("/etc/passwd"), "model's folder"),
        (external("link.bin"), "plain file"),
        (external("none.bin"), "not there"),
        (external("w.bin", offset=65), "has 4,864"),
        (external("w.bin", offset=-1), "takes"),
        (external("w.bin", length=7), "takes"),
        (external("w.bin", offset="x"), "number"),
    ],
)
def test_external_data_that_is_not_where_it_may_be(tmp_path: Path, tensor: TensorProto, words: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(b"\0" * 64 + WIDE.tobytes())
    (tmp_path / "w.bin").write_bytes(WIDE.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    onnx.save(model_of(tensor, bias()), folder / "m.onnx")
    with pytest.raises(InvalidGraph, match=words):
        open_model(folder / "m.onnx")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Cut off anywhere, or changed anywhere: an error of ours, or a model that the strict reader takes."""
    path = tmp_path / "m.onnx"
    whole = model_of(numpy_helper.from_array(WIDE, "w"), bias()).SerializeToString()
    rng = np.random.default_rng(0)
    for at in range(1, len(whole), 97):
        path.write_bytes(whole[:at])
        with pytest.raises(InvalidGraph):
            open_model(path)
        changed = bytearray(whole)
        changed[at if at % 2 else int(rng.integers(200))] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            model = open_model(path)
        except InvalidGraph:
            continue
        for name in model.places:
            model.read(name)
    path.write_bytes(b"")
    with pytest.raises(InvalidGraph, match="empty"):
        open_model(path)


def test_a_weight_that_is_twice_in_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    big = numpy_helper.from_array(WIDE, "w")
    small = numpy_helper.from_array(np.float32(1), "w")
    assert WIDE.nbytes > KEPT_BYTES
    for weights in ((big, big), (small, big), (big, small)):
        onnx.save(model_of(*weights, bias()), path)
        with pytest.raises(InvalidGraph, match="two constants"):
            open_model(path)
