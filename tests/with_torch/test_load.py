"""Trained values back into a module: all of them, or one error that names what does not fit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import onnx  # noqa: E402
from modules import Tab, Words, zeroed  # noqa: E402
from torch import nn  # noqa: E402

from edge_attention.client.runs import AsyncRun  # noqa: E402
from edge_attention.core.errors import InvalidArgument, InvalidTensor  # noqa: E402
from edge_attention.jobs.parameters import Parameters, write_safetensors  # noqa: E402
from edge_attention.torch import load  # noqa: E402


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A file that PyTorch's exporter wrote by itself."""
    path = tmp_path_factory.mktemp("theirs") / "model.onnx"
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            zeroed(Tab()).eval(), (torch.randn(4, 16),), path, dynamo=True, input_names=["x"],
            output_names=["logits"], dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
            external_data=False, verbose=False,
        )  # fmt: skip
    return path


def test_a_file_that_an_exporter_has_taken_apart_is_refused_with_all_names(theirs):
    module = Tab()
    before = state(module)
    there = {tensor.name for tensor in onnx.load(theirs).graph.initializer}
    missing = [name for name, _ in module.named_parameters() if name not in there]
    assert missing, "the exporter leaves all as it is now: this test, and a good part of the package, may go"
    with pytest.raises(InvalidArgument, match=r"does not fit Tab: .*edge_attention\.torch\.export") as error:
        load(module, theirs)
    assert all(name in str(error.value) for name in missing)
    assert same(state(module), before)
    found = load(module, theirs, strict=False)
    assert set(found.left) >= set(missing)
    assert not same(state(module), before)


def test_names_shapes_and_strangers_are_all_said_at_once():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4))
    good = {name: tensor.numpy() + 1 for name, tensor in module.state_dict().items()}
    bad = {n: a for n, a in good.items() if n != "0.bias"} | {"val_9": np.ones((3, 2), np.float32)}
    bad["1.weight"] = bad["1.weight"].T
    before = state(module)
    with pytest.raises(InvalidArgument) as error:
        load(module, bad)
    for said in (
        "1 of its parameters are not there: 0.bias",
        "1.weight is [2, 4], transposed, in the module [4, 2]",
        "val_9 [3, 2]",
        "Nothing was loaded",
    ):
        assert said in str(error.value)
    assert same(state(module), before)
    assert load(module, good).names == tuple(good)
    assert same(state(module), {name: torch.tensor(array) for name, array in good.items()})


@pytest.mark.parametrize("how", ["mapping", "parameters", "bytes", "file", "tensors"])
def test_what_it_takes(how, tmp_path):
    module = nn.Linear(3, 2)
    arrays = {"weight": np.ones((2, 3), np.float32), "bias": np.full(2, 5, np.float32)}
    given = {
        "mapping": arrays,
        "parameters": Parameters(arrays, 7, "r1"),
        "bytes": write_safetensors(arrays),
        "file": tmp_path / "p.safetensors",
        "tensors": {name: torch.tensor(array) for name, array in arrays.items()},
    }[how]
    (tmp_path / "p.safetensors").write_bytes(write_safetensors(arrays))
    found = load(module, given)
    assert found.names == ("weight", "bias")
    assert repr(found).startswith("2 tensors loaded from ")
    assert (module.bias == 5).all()


def test_a_part_of_a_run_by_fusion():
    arrays = {"a/weight": np.ones((2, 3), np.float32), "a/bias": np.ones(2, np.float32)}
    arrays |= {"head/w": np.ones(3, np.float32), "queries": np.ones((1, 1, 2), np.float32)}
    module = nn.Linear(3, 2)
    load(module, arrays, part="a")
    assert (module.weight == 1).all()
    with pytest.raises(InvalidArgument, match="part is 'b'; it has a, head"):
        load(module, arrays, part="b")


def test_a_tied_weight_is_found_under_any_of_its_names():
    module = Words()
    values = {n: np.full(p.shape, 2, np.float32) for n, p in module.named_parameters()}
    values["out.weight"] = values.pop("embed.weight")
    load(module, values)
    assert (module.embed.weight == 2).all()
    assert module.out.weight is module.embed.weight


def test_what_can_be_no_values_is_refused(tmp_path):
    module = nn.Linear(3, 2)
    (tmp_path / "text.onnx").write_text("no model")
    for said, source in {
        "cannot be read": tmp_path / "nowhere.onnx",
        "neither an ONNX nor a safetensors": tmp_path / "text.onnx",
        "is int": 3,
        "asyncio": AsyncRun(None, None),
    }.items():
        with pytest.raises(InvalidArgument, match=said):
            load(module, source)
    with pytest.raises(InvalidArgument, match="version is of a run"):
        load(module, {}, version=3)


def test_what_is_no_number_is_refused_before_anything_is_changed():
    module = nn.Linear(2, 2)
    before = module.weight.detach().clone()
    tensors = [
        onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "weight"),
        onnx.helper.make_tensor("bias", onnx.TensorProto.FLOAT8E4M3FN, [2], [1.0, 2.0]),
    ]
    graph = onnx.helper.make_graph([], "g", [], [], tensors)
    with pytest.raises(InvalidTensor, match="bias is float8_e4m3fn"):
        load(module, onnx.helper.make_model(graph).SerializeToString())
    assert torch.equal(module.weight, before)
