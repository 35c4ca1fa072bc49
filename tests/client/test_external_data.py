"""Weights that an ONNX file keeps beside itself: read by who has the path, and from nowhere else."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.reading import read_graph
from edge_attention.jobs import external_data
from edge_attention.jobs.job import model_bytes

W = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)


def proto(weight: np.ndarray = W) -> ModelProto:
    """y = x @ w + c, where c is the constant of a branch."""
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(weight[0], "inner"))
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", 1, None)])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("If", ["on"], ["t"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["h", "t"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 64), ("y", 32))]
    tensors = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array(True), "on")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def saved(folder: Path, **options: Any) -> Path:
    path = folder / "m.onnx"
    options = {"all_tensors_to_one_file": True, "location": "weights.bin", "size_threshold": 0, **options}
    onnx.save(proto(), path, save_as_external_data=True, convert_attribute=True, **options)
    return path


@pytest.mark.parametrize("one", [True, False], ids=["one file", "a file each"])
def test_weights_beside_the_file_are_read_wherever_they_belong(tmp_path: Path, one: bool) -> None:
    path = saved(tmp_path, all_tensors_to_one_file=one, location="weights.bin" if one else None)
    data = model_bytes(path)
    made = onnx.load_model_from_string(data)
    np.testing.assert_array_equal(numpy_helper.to_array(made.graph.initializer[0]), W)
    inner = made.graph.node[1].attribute[0].g.node[0].attribute[0].t
    np.testing.assert_array_equal(numpy_helper.to_array(inner), W[0])
    read_graph(data, "what comes out")  # refuses whatever points outside


def test_a_file_that_has_all_in_it_is_left_as_it_is(tmp_path: Path) -> None:
    data = proto().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data)
    assert model_bytes(tmp_path / "m.onnx") == data
    made = proto()
    made.doc_string = "has the word location in it"
    assert model_bytes(made) == made.SerializeToString()


def test_bytes_and_models_whose_weights_are_elsewhere_say_to_give_the_path(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for given in (path.read_bytes(), onnx.load(path, load_external_data=False)):
        with pytest.raises(
            InvalidGraph, match=r"other files \('weights.bin'\); give the path of the .onnx file"
        ):
            model_bytes(given)
    assert onnx.load_model_from_string(model_bytes(onnx.load(path))) == onnx.load(path)


def pointing(folder: Path, **entries: str) -> Path:
    path = saved(folder)
    made = onnx.load(path, load_external_data=False)
    tensor = made.graph.initializer[0]
    for entry in tensor.external_data:
        if entry.key in entries:
            entry.value = entries[entry.key]
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../secret"}, r"lies in '\.\./secret'; a file of weights has to be in the folder"),
        ({"location": "/etc/hostname"}, "has to be in the folder of the .onnx file"),
        ({"location": "sub/../../secret"}, "has to be in the folder"),
        ({"location": ""}, "has to be in the folder"),
        ({"location": "link"}, "leads out of"),
        ({"location": "linked/secret"}, "leads out of"),
        ({"location": "gone.bin"}, r"'gone\.bin', which cannot be read: No such file .*; put it beside"),
        ({"location": "pipe"}, "is no regular file"),
        ({"location": "."}, "is no regular file"),
        ({"offset": "9999999"}, "has 8,.*: the file is damaged, or of another model"),
        ({"length": "9999999"}, "the file is damaged, or of another model"),
        ({"offset": "-1"}, "offset is '-1'; it must be a whole number"),
        ({"length": "0x10"}, "length is '0x10'; it must be a whole number"),
        ({"length": "9" * 40}, "it must be a whole number"),
    ],
)
def test_what_is_not_there_or_leads_out_is_refused(
    tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(W.nbytes))
    (folder / "link").symlink_to("../secret")
    (folder / "linked").symlink_to("..")
    os.mkfifo(folder / "pipe")
    with pytest.raises(InvalidGraph, match=message) as raised:
        model_bytes(pointing(folder, **entries))
    assert "m.onnx" in raised.value.message


def test_all_together_has_a_bound_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    monkeypatch.setattr(external_data, "MAX_BYTES", W.nbytes)
    with pytest.raises(InvalidGraph, match="more than the limit of 8,192"):
        model_bytes(path)


def test_weights_are_in_memory_once(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    large = proto(np.zeros((1 << 12, 1 << 12), np.float32))  # 64 MiB
    onnx.save(large, path, save_as_external_data=True, location="w.bin", size_threshold=1024)
    del large
    tracemalloc.start()
    data = model_bytes(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * len(data)


@pytest.mark.parametrize("cut", [3, 40, 200])
def test_a_file_that_breaks_off_is_left_to_who_reads_it(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.onnx"
    made = proto()
    made.doc_string = "location"
    data = made.SerializeToString()[:-cut]
    path.write_bytes(data)
    assert model_bytes(path) == data


def test_the_files_of_a_mapped_model_are_named_and_those_elsewhere_refused(tmp_path):
    """The error outlives the mapping's use, and is of the catalogue."""
    from edge_attention.client.models import _beside

    value = helper.make_tensor("w", TensorProto.FLOAT, [2], np.zeros(2, np.float32).tobytes(), raw=True)
    (tmp_path / "w.bin").write_bytes(bytes(8))
    for location, fine in (("w.bin", True), ("../w.bin", False)):
        tensor = TensorProto()
        tensor.CopyFrom(value)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        graph = helper.make_graph([], "g", [], [], [tensor])
        file = tmp_path / "model.onnx"
        file.write_bytes(helper.make_model(graph).SerializeToString())
        if fine:
            assert _beside(file) == {"w.bin": tmp_path / "w.bin"}
        else:
            with pytest.raises(InvalidGraph, match="in the folder"):
                _beside(file)
