"""A module tried out: where PyTorch's training of it is not that of what it computes in evaluation mode.

A file says what a module computes, and what trains is that: its derivatives. PyTorch's are others where
`forward` detaches, or leaves out gradients, or has a backward pass of its own; and in training mode a module
may compute something else. Neither shows in the file, so both are looked for in the module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

from edge_attention.graphs.onnx_file import first_line

__all__ = ["GradientsFound", "InTraining", "gradients_of", "in_training", "padding_of", "tensors_of"]

TRIED = 1 << 26
"""Numbers in a module's parameters up to which gradients are tried: half a GiB in float64, three times."""
_SHORT, _LONG = 1e-6, (2e-3, 3e-3, 4e-3)
"""Steps of a difference: the long ones for what computes in float32 in any case, as T5's norms do."""
_NEAR, _NEAR_LONG = 1e-4, 1e-2
"""How far each may be off the gradient, relative to its length."""
Called = tuple[tuple[Any, ...], Mapping[str, Any]]
"""What a module is called with, by position and by name."""


@dataclass(frozen=True)
class GradientsFound:
    """What autograd says of a module's parameters.

    Attributes:
        none: those that it gives no gradient, although an output may depend on them.
        otherwise: those whose gradient is not the derivative of what the module computes.
    """

    none: tuple[str, ...] = ()
    otherwise: tuple[str, ...] = ()


@dataclass(frozen=True)
class InTraining:
    """What a module does in training mode, with dropouts and batch norms as in evaluation.

    Attributes:
        random: two calls differ.
        changed: buffers and parameters that a call changes.
        otherwise: it computes something else than in evaluation mode.
        failed: why it could not be called so.
    """

    random: bool = False
    changed: tuple[str, ...] = ()
    otherwise: bool = False
    failed: str = ""


def numbers_of(module: nn.Module) -> int:
    """Of its parameters and buffers."""
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def padding_of(module: nn.Module) -> dict[str, int]:
    """The tables of `module` that lookups leave a row of alone (`padding_idx`), by their first name."""
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first.setdefault(id(parameter), name)
    return {
        first[id(one.weight)]: int(one.padding_idx)
        for one in module.modules()
        if isinstance(one, nn.Embedding) and one.padding_idx is not None and id(one.weight) in first
    }


def gradients_of(module: nn.Module, called: Called) -> GradientsFound | None:
    """Compare autograd's gradients of `module`, as it is, with differences of what it computes.

    In float64, at its parameters moved a little, of a random sum of its outputs. Rows of embeddings that
    are padding do not count. None: it is too large, or does not run so.
    """
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad and p.is_floating_point()}
    if not trained or numbers_of(module) > TRIED:
        return None
    random = torch.Generator().manual_seed(0)
    padding = padding_of(module)
    places = _places(module)
    held = {n: _wide(t).clone() for n, t in (*module.named_parameters(), *module.named_buffers())}
    point = {}
    for name, parameter in trained.items():
        near = held[name].abs().mean().clamp(min=0.1)
        moved = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        point[name] = (held[name] + 1e-3 * near * moved.to(parameter.device)).requires_grad_()
    arguments, keywords = pytree.tree_map_only(Tensor, _wide, (called[0], dict(called[1])))
    weights: list[Tensor] = []

    def total(at: Mapping[str, Tensor]) -> Tensor:
        with _seeded(0):
            tensors = {**held, **at}
            with_them = {place: tensors[name] for place, name in places.items()}
            returned = functional_call(module, with_them, arguments, keywords, tie_weights=False)
        leaves = pytree.tree_leaves(returned)
        found = [one for one in leaves if isinstance(one, Tensor) and one.is_floating_point()]
        if not weights:
            weights.extend(torch.randn(one.shape, generator=random, dtype=torch.float64) for one in found)
        parts = [(one.double() * w.to(one.device)).sum() for one, w in zip(found, weights, strict=True)]
        return torch.stack(parts).sum()

    try:
        with torch.enable_grad():
            value = total(point)
            if not value.requires_grad:
                return GradientsFound(none=tuple(trained))
            found = torch.autograd.grad(value, list(point.values()), allow_unused=True)
            gradients = dict(zip(point, found, strict=True))
            none = tuple(name for name, one in gradients.items() if one is None)
            known = {name: one for name, one in gradients.items() if one is not None}
            wrong: set[str] = set()
            for _ in range(2):  # along one direction the two may be the same by chance
                towards = {
                    n: torch.randn(g.shape, generator=random, dtype=g.dtype).to(g.device)
                    for n, g in known.items()
                }
                for name in padding.keys() & known.keys():
                    towards[name][padding[name]] = 0
                wrong |= set(_wrong(total, point, known, towards, list(known)))
    except Exception:  # a module that computes in float32 alone, or anything else that a forward may raise
        return None
    return GradientsFound(none, tuple(name for name in trained if name in wrong))


def _wrong(
    total: Any,
    point: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    towards: Mapping[str, Tensor],
    names: Sequence[str],
) -> list[str]:
    """Which of them have another gradient: halves of those that do not agree are looked at."""
    if not names or _agree(total, point, gradients, towards, names):
        return []
    middle = len(names) // 2
    halves = (names[:middle], names[middle:]) if middle else ()
    return [n for half in halves for n in _wrong(total, point, gradients, towards, half)] or (
        list(names) if not middle else []
    )


def _agree(
    total: Any,
    point: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    towards: Mapping[str, Tensor],
    names: Sequence[str],
) -> bool:
    """Whether a difference along `towards` of these is what their gradients say; of NaN nothing is said."""
    gradient = sum(float((gradients[n] * towards[n]).sum()) for n in names)
    length = sum(float((gradients[n] * towards[n]).square().sum()) for n in names) ** 0.5

    def slope(step: float) -> float:
        sides = []
        for side in (step, -step):
            moved = {n: (point[n].detach() + side * towards[n]).requires_grad_() for n in names}
            sides.append(float(total({**point, **moved}).detach()))
        return (sides[0] - sides[1]) / (2 * step)

    found, again = slope(_SHORT), slope(2 * _SHORT)
    scale = max(length, abs(found), 1e-8)
    if not abs(found - again) > _NEAR / 4 * scale:
        return not abs(found - gradient) > _NEAR * scale
    # Rounding hides so short a step, or a curve bends within a long one: both move slopes of several steps.
    slopes = [slope(step) for step in _LONG]
    spread, found = max(slopes) - min(slopes), sum(slopes) / len(slopes)
    return not abs(found - gradient) > _NEAR_LONG * max(length, abs(found)) + 3 * spread


def in_training(module: nn.Module, called: Called, expected: Sequence[Tensor]) -> InTraining:
    """Call `module` in training mode twice. `expected`: what it returns in evaluation mode.

    Its parameters and buffers stay as they are. The caller restores the modules' modes.
    """
    if numbers_of(module) > TRIED:
        return InTraining()
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    places = _places(module)
    answers: list[list[Tensor]] = []
    changed: tuple[str, ...] = ()
    try:
        with _all_but_known(module), torch.no_grad():
            for seed in (0, 1):
                own = {name: tensor.detach().clone() for name, tensor in state.items()}
                with_them = {place: own[name] for place, name in places.items()}
                with _seeded(seed):
                    returned = functional_call(
                        module, with_them, called[0], dict(called[1]), tie_weights=False
                    )
                answers.append([one for one in pytree.tree_leaves(returned) if isinstance(one, Tensor)])
                changed = tuple(
                    name
                    for name, tensor in state.items()
                    if tensor.is_floating_point() and not torch.equal(own[name], tensor)
                )
    except Exception as error:
        return InTraining(failed=f"{type(error).__name__}: {first_line(error)}")
    random = not _alike(answers[0], answers[1], 1e-6)
    return InTraining(random, changed, not (random or changed or _alike(answers[0], expected, 1e-3)))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers by place, each place once: what `functional_call` may be given others of."""
    named = dict((*module.named_parameters(), *module.named_buffers()))
    return {place: named[name] for place, name in _places(module).items()}


def _places(module: nn.Module) -> dict[str, str]:
    """Where its tensors are, each place once, and what the tensor there is called first.

    A module with two names is one place: `functional_call` ties by name, swaps both, and what it gives back
    then is not what was there.
    """
    first: dict[int, str] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        first.setdefault(id(tensor), name)
    return {
        f"{path}.{leaf}" if path else leaf: first[id(tensor)]
        for path, one in module.named_modules()
        for leaf, tensor in (*one._parameters.items(), *one._buffers.items())
        if tensor is not None
    }


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within it numbers are drawn from `seed` on; behind it from where they were, on a GPU, too."""
    gpus = torch.cuda.is_initialized()  # else a seed that was given waits there for the first use
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if gpus else ()):
        torch.random.default_generator.manual_seed(seed)
        if gpus:
            torch.cuda.manual_seed_all(seed)
        yield


@contextmanager
def _all_but_known(module: nn.Module) -> Iterator[None]:
    """Training mode for all but what is said anyway: dropouts, and batch norms with running statistics."""
    before = [(one, one.training) for one in module.modules()]
    try:
        module.train()
        for one in module.modules():
            drops = isinstance(one, _DropoutNd) or (
                isinstance(one, nn.MultiheadAttention | nn.RNNBase) and one.dropout
            )
            if drops or (isinstance(one, _BatchNorm) and one.running_mean is not None):
                one.training = False
        yield
    finally:
        for one, mode in before:
            one.training = mode


def _alike(first: Sequence[Tensor], second: Sequence[Tensor], tolerance: float) -> bool:
    if len(first) != len(second) or any(a.shape != b.shape for a, b in zip(first, second, strict=True)):
        return False
    for one, other in zip(first, second, strict=True):
        a, b = one.detach().double(), other.detach().double()
        both = torch.isfinite(a) & torch.isfinite(b)
        if both.any() and (a - b)[both].abs().max() > tolerance * b[both].abs().max().clamp(min=1e-6):
            return False
    return True


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()
