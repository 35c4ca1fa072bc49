"""Kinds of modules as people write them: gradients of their files are autograd's in float64."""

from __future__ import annotations

import copy
import re
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import onnxruntime  # noqa: E402
import torch.nn.functional as functional  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

from edge_attention.core.messages.federated import LossSpec  # noqa: E402
from edge_attention.graphs.models.model import gradient_graph, load_model  # noqa: E402
from edge_attention.graphs.models.model_checks import check_model  # noqa: E402
from edge_attention.torch import ExportWarning, export, load  # noqa: E402


class Made(nn.Module):
    """`does(self, x)`, with these modules and tensors."""

    def __init__(self, does, **parts):
        super().__init__()
        self.does = does
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part, persistent=False)

    def forward(self, x):
        return self.does(self, x)


def row(*layers):
    return Made(lambda m, x: m.layers(x), layers=nn.Sequential(*layers))


def embedding(words, width, padding):
    made = nn.Embedding(words, width, padding_idx=padding)
    nn.init.normal_(made.weight)  # the row of padding, too
    return made


def rotary(m, ids):
    x = m.embed(ids)
    angles = torch.outer(torch.arange(x.shape[1]).to(x.dtype), m.rates.to(x.dtype))
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def turned(y):
        first, second = y.chunk(2, -1)
        return y * cos + torch.cat([-second, first], -1) * sin

    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in m.qkv(x).chunk(3, -1))
    found = functional.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
    return m.out(m.norm(x + found.transpose(1, 2).flatten(2)))[:, -1]


def translated(m, ids):
    padding = ids == 0
    source, target = m.embed(ids), m.embed(ids[:, :3])
    mask = nn.Transformer.generate_square_subsequent_mask(3).to(source.dtype)
    hints = {"src_key_padding_mask": padding, "memory_key_padding_mask": padding}
    return m.out(m.body(source, target, tgt_mask=mask, tgt_is_causal=True, **hints))[:, -1]


def mixture(m, x):
    best, which = m.gate(x).topk(2)
    share = torch.zeros_like(m.gate(x)).scatter(1, which, best.softmax(1))
    return sum(share[:, n : n + 1] * expert(x) for n, expert in enumerate(m.experts))


class Adapter(nn.Module):
    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) * 0.3)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + 2 * x @ self.lora_a.T @ self.lora_b.T


class Odd(nn.Module):
    """Shared under two names, frozen, never used, scalar, one number, equal ones, and names of all kinds."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.shared = self.first
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.never = nn.Linear(3, 3)
        self.scalar, self.one = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor([0.5]))
        self.ß = nn.Parameter(torch.ones(5))
        self.by = nn.ParameterDict({"ключ": nn.Parameter(torch.ones(5)), "w": nn.Parameter(torch.zeros(5))})
        self.head = nn.ModuleDict({"head-1/x y": nn.Linear(5, 3)})

    def forward(self, x):
        found = self.shared(torch.tanh(self.first(x))) * self.scalar + self.one
        found = torch.tanh(self.frozen(found) * self.ß) * self.by["ключ"] + self.by["w"]
        return self.head["head-1/x y"](found)


def rows(*shape):
    return lambda: torch.randn(*shape)


WORDS = lambda: torch.tensor([[0, 1, 2, 4], [3, 0, 0, 4], [8, 7, 1, 5], [1, 6, 3, 0]])  # noqa: E731
KINDS = {
    "convolutions": (
        lambda: row(
            nn.Conv2d(2, 8, 3, padding=1, padding_mode="circular", bias=False),
            *(
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 8, 3, groups=2),
                nn.GroupNorm(4, 8),
            ),
            *(nn.SiLU(), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(48, 3)),
        ),
        rows(4, 2, 13, 12),
    ),
    "group norm without weights": (
        lambda: row(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4, affine=False), nn.Flatten(), nn.Linear(28, 3)),
        rows(4, 2, 9),
    ),
    "batch norm of its own batch": (
        lambda: row(
            nn.Linear(5, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Tanh(), nn.Linear(8, 3)
        ),
        rows(6, 5),
    ),
    "up again": (
        lambda: row(
            *(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.InstanceNorm2d(4, affine=True), nn.PReLU(4)),
            *(nn.Upsample(scale_factor=2, mode="bilinear"), nn.ConvTranspose2d(4, 2, 3, stride=2), nn.Mish()),
            *(nn.Flatten(), nn.Linear(2 * 17 * 17, 3)),
        ),
        rows(3, 1, 8, 8),
    ),
    "buffers and tensors": (
        lambda: Made(
            lambda m, x: m.out(torch.where(m.mask, m.body(x - m.mean) @ m.mix + m.place, x)),
            body=nn.Linear(6, 6),
            out=nn.Linear(6, 3),
            mean=torch.randn(6),
            mix=torch.randn(6, 6),
            place=torch.randn(1, 6),
            mask=torch.tensor([True, False, True, True, False, True]),
        ),
        rows(4, 6),
    ),
    "rotary": (
        lambda: Made(
            rotary,
            embed=nn.Embedding(9, 8),
            qkv=nn.Linear(8, 24, bias=False),
            out=nn.Linear(8, 3),
            norm=nn.RMSNorm(8),
            rates=1 / 100 ** torch.linspace(0, 1, 2),
        ),
        WORDS,
    ),
    "padding": (
        lambda: Made(lambda m, x: m.out(m.embed(x).mean(1)), embed=embedding(9, 6, 0), out=nn.Linear(6, 3)),
        WORDS,
    ),
    "padding at the end": (
        lambda: Made(lambda m, x: m.out(m.embed(x).mean(1)), embed=embedding(9, 6, -1), out=nn.Linear(6, 3)),
        WORDS,
    ),
    "padding of a table that is the output, too": (
        lambda: Made(
            lambda m, x: torch.tanh(m.body(m.embed(x))).mean(1) @ m.embed.weight.T,
            embed=embedding(9, 6, 0),
            body=nn.Linear(6, 6),
        ),
        WORDS,
    ),
    **{
        f"bags, {mode}, {padding}": (
            lambda mode=mode, padding=padding: Made(
                lambda m, x: m.out(m.bag(x)),
                bag=nn.EmbeddingBag(9, 6, mode=mode, padding_idx=padding),
                out=nn.Linear(6, 3),
            ),
            WORDS,
        )
        for mode, padding in (("mean", None), ("mean", 0), ("sum", 0), ("max", 0), ("max", None))
    },
    **{
        f"bags by offsets, {mode}": (
            lambda mode=mode: Made(
                lambda m, x: m.out(m.bag(x.flatten(), torch.arange(0, x.numel(), x.shape[1]))),
                bag=nn.EmbeddingBag(9, 6, mode=mode, padding_idx=0),
                out=nn.Linear(6, 3),
            ),
            WORDS,
        )
        for mode in ("mean", "max")
    },
    "encoder and decoder": (
        lambda: Made(
            translated,
            embed=nn.Embedding(9, 8, padding_idx=0),
            body=nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
            out=nn.Linear(8, 3),
        ),
        WORDS,
    ),
    "recurrent": (
        lambda: Made(
            lambda m, x: m.out(m.body(x)[0][:, -1]),
            body=nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True),
            out=nn.Linear(8, 3),
        ),
        rows(3, 6, 5),
    ),
    "parametrizations": (
        lambda: row(
            *(parametrizations.weight_norm(nn.Linear(5, 8)), nn.GELU(approximate="tanh")),
            *(parametrizations.spectral_norm(nn.Linear(8, 8)), nn.GLU(), nn.Linear(4, 3)),
        ),
        rows(4, 5),
    ),
    "mixture of experts": (
        lambda: Made(mixture, gate=nn.Linear(5, 4), experts=nn.ModuleList(nn.Linear(5, 3) for _ in range(4))),
        rows(6, 5),
    ),
    "adapters": (
        lambda: row(Adapter(nn.Linear(5, 8)), nn.Tanh(), Adapter(nn.Linear(8, 3))),
        rows(4, 5),
    ),
    "odd parameters": (Odd, rows(5, 5)),
    **{
        f"in {dtype}": (
            lambda dtype=dtype: row(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)).to(dtype),
            lambda dtype=dtype: torch.randn(4, 5).to(dtype),
        )
        for dtype in (torch.float16, torch.bfloat16, torch.float64)
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_autograd_s_and_values_go_back(name, tmp_path):
    make, example_of = KINDS[name]
    module, example = make(), example_of()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExportWarning)
        report = export(module, example, tmp_path / "m.onnx", outputs=["logits"])
    assert not any("PyTorch's gradients" in note for note in report.notes)
    assert all(p.dtype == q.dtype for p, q in zip(module.parameters(), make().parameters(), strict=True))
    loaded = load_model((tmp_path / "m.onnx").read_bytes(), loss=LossSpec("cross_entropy"), place=name)
    check_model(loaded)
    exact = copy.deepcopy(module).double().eval()
    logits = exact(example.double() if example.is_floating_point() else example)
    labels = torch.randint(logits.shape[-1], (len(example),))
    functional.cross_entropy(logits, labels).backward()
    wanted = {
        n: p.grad.numpy() for n, p in exact.named_parameters() if p.requires_grad and p.grad is not None
    }
    assert set(loaded.names) == set(wanted)  # no constant trains, and nothing else is left out
    given = example.float() if example.is_floating_point() else example
    feeds = {next(iter(report.inputs)): given.numpy(), "labels": labels.numpy()}
    feeds |= {f"x/{n}": value for n, value in enumerate(loaded.parameters.values())}
    session = onnxruntime.InferenceSession(gradient_graph(loaded, len(example)).SerializeToString())
    names = [output.name for output in session.get_outputs()]
    found = dict(
        zip(names, session.run(names, {i.name: feeds[i.name] for i in session.get_inputs()}), strict=True)
    )
    largest = max(float(np.abs(value).max()) for value in wanted.values())
    for number, one in enumerate(loaded.names):
        np.testing.assert_allclose(
            found[f"grad/{number}"], wanted[one], atol=1e-4 * largest, rtol=0, err_msg=one
        )
    fresh = make()
    restored = load(fresh, report)
    assert set(restored.left) == set(report.unused)
    for one, tensor in fresh.state_dict().items():
        if not one.startswith(report.unused or ("\0",)) and not one.endswith("num_batches_tracked"):
            assert torch.equal(tensor, module.state_dict()[one]), one


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, dout):
        return dout


class Switched(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (2 if self.training else 1)


class Silent(nn.Linear):
    def forward(self, x):
        if self.training:
            raise ValueError("give labels, too")
        return super().forward(x)


def one(does, **parts):
    return lambda: Made(does, body=nn.Linear(5, 4), out=nn.Linear(4, 3), **parts)


SAID = {
    "PyTorch's gradients of body.weight, body.bias are not those": one(
        lambda m, x: m.out(torch.tanh(m.body(x)) + m.body(x).detach())
    ),
    "gradients of body.weight, body.bias are not those of what": one(
        lambda m, x: m.out(Rounded.apply(m.body(x)))
    ),
    "body.weight, body.bias have no gradient in PyTorch": one(lambda m, x: m.out(m.body(x).detach())),
    "forward is random in training mode": one(
        lambda m, x: m.out(functional.dropout(m.body(x), 0.5, m.training))
    ),
    "forward changes layers.0.parametrizations.weight.0._u": lambda: row(
        parametrizations.spectral_norm(nn.Linear(5, 16)), nn.Linear(16, 3)
    ),
    "forward changes layers.1.running_mean": lambda: row(
        nn.Unflatten(1, (1, 5)), nn.InstanceNorm1d(1, track_running_stats=True), nn.Linear(5, 3)
    ),
    "forward computes something else in training mode": lambda: Switched(5, 3),
    r"called so it fails \(ValueError: give labels": lambda: Silent(5, 3),
}


@pytest.mark.parametrize("said", SAID)
def test_what_trains_otherwise_than_in_pytorch_is_said(said, tmp_path):
    module = SAID[said]()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        report = export(module, torch.randn(4, 5), tmp_path / "m.onnx")
    (note,) = report.notes
    assert re.search(said, note), note
    loud = [str(w.message) for w in warned if issubclass(w.category, ExportWarning)]
    assert len(loud) == ("it fails" not in said)
    # And it is only looked at.
    assert modes == [m.training for m in module.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    if "no gradient" in said:
        assert report.frozen == ("body.weight", "body.bias")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"scale_grad_by_freq": True}, "scale_grad_by_freq of e"), ({"max_norm": 0.5}, "max_norm of e")],
)
def test_what_embeddings_do_besides_is_said(options, said, tmp_path):
    module = Made(lambda m, x: m.out(m.e(x).mean(1)), e=nn.Embedding(9, 6, **options), out=nn.Linear(6, 3))
    with pytest.warns(ExportWarning, match=said):
        export(module, WORDS(), tmp_path / "m.onnx")
