"""FleetAttention over two nodes against PyTorch's own attention, forward and back."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention as attention  # noqa: E402

from edge_attention import InvalidArgument, InvalidTensor, Unavailable, Unimplemented  # noqa: E402
from edge_attention.client.gradients import Gradients  # noqa: E402
from edge_attention.client.results import Answer  # noqa: E402
from edge_attention.torch import FleetAttention  # noqa: E402
from edge_attention.torch.attention import _Attend, _QueryView  # noqa: E402
from edge_attention.torch.held_keys import KeysLease  # noqa: E402


def made(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).requires_grad_()


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def windowed(length, tokens, window):
    at, key = torch.arange(length)[:, None], torch.arange(tokens)
    return (key <= at) & (key > at - window)


@pytest.mark.parametrize(
    ("query", "key", "value", "options"),
    [
        ((2, 4, 7, 16), (2, 4, 40, 16), (2, 4, 40, 16), {}),
        ((4, 7, 16), (4, 40, 16), (4, 40, 8), {"scale": 0.3}),
        ((2, 4, 40, 16), (2, 4, 40, 16), (2, 4, 40, 16), {"is_causal": True}),
        ((3, 2, 4, 9, 8), (3, 2, 2, 11, 8), (3, 2, 2, 11, 6), {"enable_gqa": True}),
        ((1, 8, 600, 16), (1, 8, 1300, 16), (1, 8, 1300, 16), {}),
        ((2, 4, 5, 16), (2, 4, 1, 16), (2, 4, 1, 16), {}),
        ((2, 4, 33, 16), (2, 4, 33, 16), (2, 4, 33, 16), {"window": 5}),
        ((5, 16), (40, 16), (40, 8), {}),
        ((2, 3, 4, 5, 8), (1, 4, 6, 8), (3, 4, 6, 8), {}),
        ((1, 2, 3, 8), (1, 2, 9, 8), (1, 2, 9, 8), {"is_causal": True}),
        ((1, 2, 9, 8), (1, 2, 3, 8), (1, 2, 3, 8), {"is_causal": True}),
    ],
)
def test_forward_and_gradients_are_pytorch_s(client, query, key, value, options):
    q, k, v = made(*query), made(*key, seed=1), made(*value, seed=2)
    theirs = dict(options)
    if "window" in theirs:
        theirs["attn_mask"] = windowed(query[-2], key[-2], theirs.pop("window"))
    with torch.no_grad():
        ours_alone = FleetAttention(client)(q, k, v, **options)
    ours, wanted = FleetAttention(client)(q, k, v, **options), attention(q, k, v, **theirs)
    close(ours_alone, ours)
    close(ours, wanted)
    dout = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3))
    for found, expected in zip(
        torch.autograd.grad(ours, (q, k, v), dout), torch.autograd.grad(wanted, (q, k, v), dout), strict=True
    ):
        close(found, expected)


def test_a_model_with_it_trains_as_with_pytorch_s(client):
    class Block(nn.Module):
        def __init__(self, attend):
            super().__init__()
            torch.manual_seed(1)
            self.project, self.out, self.attend = nn.Linear(12, 36), nn.Linear(12, 1), attend

        def forward(self, x):
            split = self.project(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
            return self.out(self.attend(*split, is_causal=True).transpose(1, 2).flatten(2))

    x, y = torch.randn(2, 20, 12), torch.randn(2, 20, 1)
    ours, theirs = Block(FleetAttention(client)), Block(attention)
    losses = []
    for block in (ours, theirs):
        # Not Adam: the keys' bias moves nothing, and Adam makes steps of its gradient's rounding.
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(block(x), y)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(one, other)
    assert "FleetAttention(keys and values of each call" in repr(ours)


def test_over_a_context_it_is_attention_to_what_is_stored(client):
    context = client.create_context("memory-torch", query_heads=4, key_heads=2, key_dim=8, value_dim=6)
    k, v = made(2, 50, 8, seed=4).detach(), made(2, 50, 6, seed=5).detach()
    for node, part in (("a", slice(0, 20)), ("b", slice(20, 50))):
        context.append(k[:, part].transpose(0, 1), v[:, part].transpose(0, 1), node=node)
    memory = FleetAttention(client, "memory-torch")
    q = made(3, 4, 5, 8)
    keys, values = (tensor.repeat_interleave(2, 0).expand(3, -1, -1, -1) for tensor in (k, v))
    for causal in (False, True):
        mask = torch.ones(5, 50, dtype=torch.bool).tril(45) if causal else None
        ours, wanted = memory(q, is_causal=causal), attention(q, keys, values, attn_mask=mask)
        close(ours, wanted)
        close(torch.autograd.grad(ours.sum(), q)[0], torch.autograd.grad(wanted.sum(), q)[0])
    context.drop()


def test_types_are_the_queries(client):
    q, k, v = (made(2, 3, 5, 8, seed=seed).double() for seed in range(3))
    found = FleetAttention(client)(q, k, v)
    assert found.dtype == torch.float64
    half = FleetAttention(client)(*(tensor.to(torch.bfloat16) for tensor in (q, k, v)))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), found, rtol=0.02, atol=0.02)


def test_the_fleet_keeps_nothing(client):
    attend = FleetAttention(client)
    q, k, v = (made(1, 2, 6, 4, seed=seed) for seed in range(3))
    mine = lambda: [c for c in client.contexts() if c.spec.name.startswith("torch-")]  # noqa: E731
    attend.forward(q, k, v)
    gc.collect()
    with torch.no_grad():
        attend(q, k, v)
    before = len(mine())
    found = attend(q, k, v).sum()
    found.backward(retain_graph=True)
    found.backward()
    assert torch.isfinite(q.grad).all()
    assert len(mine()) == before + 1
    del found
    gc.collect()
    attend.close()
    assert len(mine()) < before + 1


def test_what_it_does_not_do_is_said(client):
    attend = FleetAttention(client)
    q = torch.randn(1, 2, 6, 4)
    with pytest.raises(Unimplemented, match="which keys a query sees is a range here"):
        attend(q, q, q, torch.ones(6, 6, dtype=torch.bool))
    for transformed in (torch.vmap, lambda of: torch.func.grad(lambda *given: of(*given).sum())):
        with pytest.raises(Unimplemented, match="give samples as dimensions in front of the heads"):
            transformed(attend)(q, q, q)
    with pytest.raises(Unimplemented, match=r"dropout_p is 0\.1"):
        attend(q, q, q, dropout_p=0.1)
    assert attend.eval()(q, q, q, dropout_p=0.1).shape == q.shape
    with pytest.raises(InvalidTensor, match="query has 2 heads and key 1; with enable_gqa"):
        attend(q, q[:, :1], q[:, :1])
    with pytest.raises(InvalidTensor, match="do not fit"):
        attend(q, q, q[:, :, :3])
    with pytest.raises(InvalidTensor, match="key is an array of NumPy; give a tensor"):
        attend(q, q.numpy(), q)
    assert np.isfinite(attend(q, q, q).numpy()).all()
    for wrong in ((q.long(), q, q), (q, q.bool(), q), (q.tolist(), q, q), (q, q, None)):
        with pytest.raises((InvalidTensor, InvalidArgument)):
            attend(*wrong)
    for wrong in (torch.arange(6.0), list(range(6)), torch.arange(5)):
        with pytest.raises(InvalidTensor, match="positions"):
            attend(q, q, q, is_causal=True, positions=wrong)


class Recalled:
    """A context that keeps what it was asked, whose drop fails at first."""

    name = "torch-x"

    def __init__(self):
        self.dropped = 0
        self.until = None

    def drop(self):
        self.dropped += 1
        if self.dropped == 1:
            raise Unavailable("the aggregator is away")

    def attend(self, queries, **_):
        return Answer(queries, queries[..., 0], True, (range(10),), {}, (), tokens=15)

    def gradients(self, queries, *_, until, **__):
        self.until = until
        return Gradients(queries, None, None, 1)


def test_keys_that_could_not_be_forgotten_are_at_the_next_call(client):
    attend, context = FleetAttention(client), Recalled()
    attend._made._there[context.name] = context
    attend._made.ended.append(context.name)
    q = torch.randn(1, 2, 3, 4)
    assert attend(q, q, q).shape == q.shape  # which is not lost by it
    assert context.dropped == 1
    attend._made._there[context.name] = context
    context.dropped = 0
    with pytest.raises(Unavailable):
        attend.close()
    attend.close()
    assert context.dropped == 2
    assert not attend._made._there


def test_gradients_over_a_memory_are_of_what_the_answer_stood_on(client):
    """It may have grown since it was asked, by tokens of which the answer knows nothing."""
    context = Recalled()
    q = made(4, 3, 4)
    seen = _QueryView(False, None, None, 60.0)
    _Attend.apply(q, q.new_zeros(0), q.new_zeros(0), KeysLease(context), seen, False).sum().backward()
    assert context.until == 10


def test_gradients_of_gradients_are_refused_and_not_left_out(client):
    """As of a penalty on a gradient, which would have none without a word."""
    q = made(1, 2, 6, 4)
    out = FleetAttention(client)(q, q, q)
    with pytest.raises(Unimplemented, match="no gradients of gradients"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


def test_layers_are_copied_as_pytorch_copies_them(client):
    attend = FleetAttention(client, is_causal=True, scale=0.5).eval()
    copied = nn.ModuleList([copy.deepcopy(nn.Sequential(attend))])[0][0]
    q = made(1, 2, 6, 4)
    assert copied is not attend
    assert not copied.training
    close(copied(q, q, q), attention(q, q, q, is_causal=True, scale=0.5))


def test_a_compiled_model_leaves_it_as_it_is(client):
    attend, twice = FleetAttention(client), nn.Linear(4, 4)
    compiled = torch.compile(lambda x: attend(twice(x), x, x) + 1, backend="eager")
    q = made(1, 2, 6, 4)
    close(compiled(q), attention(twice(q), q, q) + 1)


def test_no_rows_are_none_and_no_heads_are_refused(client):
    q = torch.randn(0, 2, 6, 4)
    assert FleetAttention(client)(q, q, q).shape == q.shape
    key = torch.randn(1, 2, 6, 4)
    assert FleetAttention(client)(torch.randn(1, 2, 0, 4), key, key[..., :3]).shape == (1, 2, 0, 3)
    none = torch.randn(1, 0, 6, 4)
    with pytest.raises(InvalidTensor, match="one head, key and element at least"):
        FleetAttention(client)(none, none, none)
