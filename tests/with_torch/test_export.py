"""Modules as files: every parameter under its name, in its layout, by itself; what is otherwise is said."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from modules import Pictures, Recurrent, Tab, Words, zeroed  # noqa: E402
from torch import nn  # noqa: E402

from edge_attention.core.errors import InvalidArgument, InvalidGraph  # noqa: E402
from edge_attention.core.messages.federated import LossSpec  # noqa: E402
from edge_attention.graphs.models.model import gradient_graph, load_model  # noqa: E402
from edge_attention.graphs.models.trained import trained_onnx  # noqa: E402
from edge_attention.torch import ExportWarning, contents, export, load  # noqa: E402


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExportWarning)
        return export(*arguments, **options)


def initializers(path):
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


CASES = {
    "tab": (lambda: zeroed(Tab()), lambda: torch.randn(4, 16)),
    "pictures": (lambda: zeroed(Pictures()), lambda: torch.randn(4, 3, 8, 8)),
    "words": (Words, lambda: torch.randint(20, (4, 5))),
    "recurrent": (lambda: zeroed(Recurrent()), lambda: torch.randn(4, 3, 5)),
}


def test_what_the_user_draws_next_is_what_it_would_have_been(tmp_path, monkeypatch):
    """On the CPU; and a GPU that nothing has used yet has the seed that waits for it."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(7)
    wanted = torch.randn(3)
    torch.manual_seed(7)
    module, example = nn.Linear(16, 2), torch.ones(4, 16)
    torch.manual_seed(7)
    assert seeded == [7, 7, 7], "by PyTorch itself"
    quietly(module, example, tmp_path / "m.onnx")
    assert torch.equal(torch.randn(3), wanted)
    assert seeded == [7, 7, 7]


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_its_name_and_its_value(name, tmp_path):
    module, example = (make() for make in CASES[name])
    training = module.train().state_dict()
    report = quietly(module, example, tmp_path / "m.onnx")
    assert module.training  # as it was
    assert report.difference < 1e-5
    assert report.inputs[next(iter(report.inputs))][0] == "batch"
    found = initializers(report)
    wanted = {n: p for n, p in module.named_parameters() if n not in report.unused}
    assert set(report.trained) | set(report.frozen) == set(wanted)
    for one, parameter in wanted.items():
        assert np.array_equal(found[one], parameter.detach().numpy()), one
    assert all(torch.equal(value, module.state_dict()[one]) for one, value in training.items())


@pytest.mark.parametrize("name", CASES)
def test_gradients_by_these_names_are_autograd_s(name, tmp_path):
    module, example = (make() for make in CASES[name])
    report = quietly(module, example, tmp_path / "m.onnx", outputs=["logits"])
    loaded = load_model((tmp_path / "m.onnx").read_bytes(), loss=LossSpec("cross_entropy"), place=name)
    assert set(loaded.names) == set(report.trained)
    assert not loaded.untied
    logits = module.eval()(example)
    labels = torch.randint(logits.shape[-1], logits.shape[:-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
    loss.backward()
    feeds = {next(iter(report.inputs)): example.numpy(), "labels": labels.numpy()}
    feeds |= {f"x/{i}": value for i, value in enumerate(loaded.parameters.values())}
    session = onnxruntime.InferenceSession(gradient_graph(loaded, len(example)).SerializeToString())
    names = [output.name for output in session.get_outputs()]
    given = {one.name for one in session.get_inputs()}
    found = dict(zip(names, session.run(None, {k: v for k, v in feeds.items() if k in given}), strict=True))
    parameters = dict(module.named_parameters())
    largest = max(float(parameters[one].grad.abs().max()) for one in loaded.names)
    for number, one in enumerate(loaded.names):
        wanted = parameters[one].grad.numpy()
        np.testing.assert_allclose(found[f"grad/{number}"], wanted, atol=2e-5 * largest, rtol=0, err_msg=one)


@pytest.mark.parametrize("name", CASES)
def test_what_was_trained_is_in_a_new_module_again(name, tmp_path):
    module, example = (make() for make in CASES[name])
    report = quietly(module, example, tmp_path / "m.onnx", outputs=["logits"])
    file = (tmp_path / "m.onnx").read_bytes()
    random = np.random.default_rng(1)
    values = {n: initializers(report)[n] for n in report.trained}
    values = {n: v + random.normal(size=v.shape).astype(np.float32) * 0.1 for n, v in values.items()}
    trained = trained_onnx(file, values, output="logits")
    fresh, _ = (make() for make in CASES[name])
    left = load(fresh, trained).left
    assert set(left) == set(report.unused)
    state = fresh.state_dict()
    for one, value in values.items():
        assert np.array_equal(state[one].numpy(), value), one
    for one, buffer in module.named_buffers():
        assert torch.equal(state[one], buffer) or one.endswith("num_batches_tracked")
    (logits,) = onnxruntime.InferenceSession(trained).run(None, {next(iter(report.inputs)): example.numpy()})
    answer = fresh.eval()(example).detach().numpy()
    np.testing.assert_allclose(answer, logits, atol=1e-5 * np.abs(logits).max())


def test_what_will_not_train_as_in_pytorch_is_said_before(tmp_path):
    with pytest.warns(ExportWarning) as said:
        report = export(Words(), torch.randint(20, (2, 5)), tmp_path / "m.onnx")
    shown = repr(report)
    assert any("pooler.weight, pooler.bias" in str(one.message) for one in said)
    assert report.unused == ("pooler.weight", "pooler.bias")
    assert report.frozen == ("fixed",)
    assert dict(report.tied) == {"out.weight": "embed.weight"}
    assert "fixed have requires_grad=False" in shown
    assert "out.weight is embed.weight: one weight" in shown
    with pytest.warns(ExportWarning, match="running statistics, which stay"):
        report = export(Pictures(), torch.randn(2, 3, 8, 8), tmp_path / "m.onnx")
    assert "dropout is off in the file, also while it trains: body.3 (0.5)" in repr(report)
    assert "body.1.running_mean" in initializers(report)
    with pytest.warns(ExportWarning, match=r"dropout is off .*enc.layers.0.dropout \(0.1\)"):
        export(Tab(), torch.randn(2, 16), tmp_path / "m.onnx")


def test_inputs_outputs_and_dimensions_are_called_as_said(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, ids, mask, scale):
            found = (ids @ self.weight) * mask.unsqueeze(-1) * scale
            return {"states": found, "mean": found.mean(1)}

    example = {"ids": torch.randn(1, 7, 6), "mask": torch.ones(1, 7), "scale": torch.ones(1, 1, 1)}
    sizes = {"ids": {1: "sequence"}, "mask": {1: "sequence"}}
    report = export(Two(), example, tmp_path / "m.onnx", dynamic=sizes)
    assert dict(report.inputs)["ids"] == ("batch", "sequence", 6)
    assert dict(report.inputs)["mask"] == ("batch", "sequence")
    assert dict(report.outputs) == {"states": ("batch", "sequence", 6), "mean": ("batch", 6)}
    session = onnxruntime.InferenceSession(report.path)
    feeds = {"ids": np.ones((3, 4, 6), np.float32), "mask": np.ones((3, 4), np.float32)}
    feeds["scale"] = np.ones((3, 1, 1), np.float32)
    assert session.run(["mean"], feeds)[0].shape == (3, 6)
    named = export(
        Two(),
        tuple(example.values()),
        tmp_path / "n.onnx",
        inputs=["a", "b", "c"],
        outputs=["y", "z"],
        batch="",
    )
    assert dict(named.inputs) == {"a": (1, 7, 6), "b": (1, 7), "c": (1, 1, 1)}
    assert list(named.outputs) == ["y", "z"]


class Wrapped(nn.Module):
    """As `peft` and others wrap a module: `forward` says nothing of what it takes."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"of": nn.Linear(4, 3), "words": nn.Embedding(9, 3)})

    def forward(self, *arguments, **more):
        x, ids = (*arguments, *(more[name] for name in ("x", "ids") if name in more))
        return self.inner["of"](x) - self.inner["words"](ids).sum(1)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (lambda x, ids: (x, ids), ["input_0", "input_1"]),
        (lambda x, ids: {"x": x, "ids": ids}, ["x", "ids"]),
        (lambda x, ids: {"ids": ids, "x": x}, ["ids", "x"]),
    ],
)
def test_a_wrapper_whose_forward_takes_whatever_comes(given, names, tmp_path):
    module, x, ids = Wrapped(), torch.randn(3, 4), torch.randint(9, (3, 5))
    report = export(module, given(x, ids), tmp_path / "m.onnx")
    assert list(report.inputs) == names
    assert "forward" not in vars(module)
    assert set(initializers(report.path)) >= {"inner.of.weight", "inner.of.bias", "inner.words.weight"}
    feeds = {name: x.numpy() for name in names if name in ("x", "input_0")}
    feeds |= {name: ids.numpy() for name in names if name in ("ids", "input_1")}
    found = onnxruntime.InferenceSession(report.path).run(None, feeds)[0]
    np.testing.assert_allclose(found, module(x, ids).detach().numpy(), atol=1e-5)


def test_weights_beside_the_file(tmp_path):
    module = Tab()
    report = quietly(module, torch.randn(2, 16), tmp_path / "m.onnx", external=True)
    assert (tmp_path / "m.onnx.data").stat().st_size > report.numbers * 4
    assert (tmp_path / "m.onnx").stat().st_size < report.numbers * 4
    fresh = Tab()
    load(fresh, tmp_path / "m.onnx")
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), module.parameters(), strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types_are_kept_and_said(dtype, tmp_path):
    kind = getattr(torch, dtype)
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).to(kind)
    report = export(module, torch.randn(3, 4).to(kind), tmp_path / "m.onnx", check=dtype != "bfloat16")
    assert f"parameters in {dtype} train in float32" in repr(report)
    fresh = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).to(kind)
    load(fresh, report)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), module.parameters(), strict=True))


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return (x @ self.weight).reshape(3, 2, 2)


class Noise(Fixed):
    def forward(self, x):
        return x @ self.weight + torch.rand_like(x)


class Branches(Fixed):
    def forward(self, x):
        return x @ self.weight if x.sum() > 0 else x


WRONG = {
    "axis 0 of its inputs was to be open": (lambda: Fixed(), {}),
    "answers otherwise than the module": (lambda: Noise(), {}),
    "PyTorch cannot export it": (lambda: Branches(), {}),
    "opset is 27": (lambda: nn.Linear(4, 4), {"opset": 27}),
    "no axis 4": (lambda: nn.Linear(4, 4), {"dynamic": {"input": {4: "n"}}}),
    "the inputs are input": (lambda: nn.Linear(4, 4), {"dynamic": {"y": {0: "n"}}}),
    "inputs has 2 names": (lambda: nn.Linear(4, 4), {"inputs": ["a", "b"]}),
    "is an input or output and a parameter": (lambda: nn.Linear(4, 4), {"inputs": ["weight"]}),
    "cannot be called with the example": (lambda: nn.Linear(5, 4), {}),
    "it must be a torch.nn.Module": (lambda: torch.tanh, {}),
    "module is the class Fixed; give one of it": (lambda: Fixed, {}),
    r"outputs is 'logits'; give a list of names, as \['logits'\]": (
        lambda: nn.Linear(4, 4),
        {"outputs": "logits"},
    ),
    r"inputs is 'x'; give a list of names": (lambda: nn.Linear(4, 4), {"inputs": "x"}),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(said, tmp_path):
    make, options = WRONG[said]
    with pytest.raises((InvalidGraph, InvalidArgument), match=said):
        quietly(make(), torch.randn(3, 4), tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 6, mode="sum")

    def forward(self, ids, offsets):
        return self.bag(ids, offsets)


def test_where_no_input_has_a_row_a_sample_the_remedy_fits(tmp_path):
    example, file = (torch.tensor([1, 2, 3, 4]), torch.tensor([0, 3])), tmp_path / "m.onnx"
    with pytest.raises(InvalidGraph, match="give batch='' and name what is open in dynamic"):
        quietly(Bags(), example, file)
    bags = Bags()
    quietly(bags, example, file, batch="", dynamic={"ids": {0: "tokens"}, "offsets": {0: "bags"}})
    ids, offsets = torch.tensor([5, 1, 7, 7, 2]), torch.tensor([0, 1, 1])
    (found,) = onnxruntime.InferenceSession(file).run(None, {"ids": ids.numpy(), "offsets": offsets.numpy()})
    np.testing.assert_allclose(found, bags(ids, offsets).detach(), rtol=1e-6, atol=1e-6)


def test_an_array_is_no_tensor(tmp_path):
    for example in (np.ones((3, 4), np.float32), {"input": np.ones((3, 4), np.float32)}):
        with pytest.raises(InvalidArgument, match="the example holds an array of NumPy; give tensors"):
            quietly(nn.Linear(4, 4), example, tmp_path / "m.onnx")


@pytest.mark.parametrize("external", [False, True])
def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch, external):
    file = tmp_path / "m.onnx"
    file.write_bytes(b"good")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InvalidArgument, match="No space left"):
        quietly(Tab(), torch.randn(4, 16), file, external=external)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert file.read_bytes() == b"good"


def test_weights_past_a_file_lie_beside_it_or_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_LARGEST", 100)
    with pytest.raises(InvalidArgument, match="a file has 100 at most: leave external out"):
        quietly(Tab(), torch.randn(4, 16), tmp_path / "m.onnx", external=False)
    assert not list(tmp_path.iterdir())
