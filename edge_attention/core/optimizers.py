"""Optimizers: a fused gradient in, new parameters out. Pure, float32, the formulae of PyTorch.

    optimizer = from_config("adamw", lr=1e-3, weight_decay=0.01)
    state = optimizer.init(parameters)
    parameters, state = optimizer.step(parameters, gradients, state)

Every constant, default and order of operations is that of `torch.optim` (its single-tensor CPU code):
hyperparameters and bias corrections are computed in double precision and rounded once to float32, so a
run here follows the same run in PyTorch. The state is a flat mapping of arrays, to be stored as it is:
`step` (int64, shape ()), and for each parameter the slots of the optimizer, `m/<name>` and `v/<name>`
(float32, the parameter's shape).

To add an optimizer, write one frozen dataclass here: `name`, `slots`, its options, `update`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edge_attention.core.errors import InvalidTensor
from edge_attention.core.options import (
    EPSILON,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SWITCH,
    Configured,
    configure,
    find,
    option,
)

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Momentum", "Optimizer", "from_config", "to_config"]

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = Mapping[str, Array]

_BY_NAME: dict[str, type[Optimizer]] = {}


@dataclass(frozen=True)
class Optimizer(Configured, ABC):
    """What all optimizers share: options in range, tensors that fit, nothing non-finite in or out."""

    kind: ClassVar[str] = "optimizer"
    slots: ClassVar[tuple[str, ...]]  # of the state, one tensor each for every parameter
    lr: float = option(1e-3, POSITIVE)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _BY_NAME[cls.name] = cls

    def init(self, parameters: Tensors) -> dict[str, Array]:
        """The state before the first step: `step` 0 and every slot zero, of its parameter's shape.

        `parameters` are float32 arrays of any shape; anything else raises `InvalidTensor`.
        """
        for name, parameter in parameters.items():
            _check(f"parameter {name}", parameter, np.shape(parameter))
        state = {
            f"{slot}/{name}": np.zeros(p.shape, np.float32)
            for name, p in parameters.items()
            for slot in self.slots
        }
        return {"step": np.array(0, np.int64), **state}

    def step(
        self, parameters: Tensors, gradients: Tensors, state: Tensors
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """One step down `gradients`: the new parameters and the new state, in arrays of their own.

        All three mappings hold float32 arrays (`step`: int64); gradients are keyed and shaped as the
        parameters, state as `init` made it. Nothing passed in is changed.

        Raises `InvalidTensor`, naming the tensor, if one is missing, is not expected, has another shape or
        dtype, if a gradient is not finite, or if the step itself would overflow: what was passed in is
        still good then.
        """
        _same_names("gradient", gradients, set(parameters))
        slots = {f"{slot}/{name}" for name in parameters for slot in self.slots}
        _same_names("optimizer state", state, slots | {"step"})
        _check("optimizer state step", state["step"], (), np.int64)
        count = int(state["step"]) + 1
        if count < 1:
            raise InvalidTensor(f"optimizer state step is {count - 1}; it counts from 0")

        new_parameters: dict[str, Array] = {}
        new_state: dict[str, Array] = {"step": np.array(count, np.int64)}
        for name, parameter in parameters.items():
            _check(f"parameter {name}", parameter, np.shape(parameter))
            gradient, shape = gradients[name], parameter.shape
            _check(f"gradient {name}", gradient, shape)
            if not np.isfinite(gradient).all():
                raise InvalidTensor(
                    f"gradient {name} holds NaN or Inf; drop this round's contributions to it"
                )
            held = [state[f"{slot}/{name}"] for slot in self.slots]
            for slot, tensor in zip(self.slots, held, strict=True):
                _check(f"optimizer state {slot}/{name}", tensor, shape)
            with np.errstate(all="ignore"):  # an overflow is found below, with the name it deserves
                updated = self.update(count, parameter, gradient, *held)
            for key, value in zip((name, *(f"{slot}/{name}" for slot in self.slots)), updated, strict=True):
                if not np.isfinite(value).all():
                    raise InvalidTensor(
                        f"a step of {self.name} makes {key} overflow; lower lr, or clip gradients"
                    )
            # NumPy turns arrays of shape () into scalars.
            new_parameters[name] = np.asarray(updated[0], np.float32)
            for slot, value in zip(self.slots, updated[1:], strict=True):
                new_state[f"{slot}/{name}"] = np.asarray(value, np.float32)
        return new_parameters, new_state

    @abstractmethod
    def update(self, step: int, p: Array, g: Array, *slots: Array) -> tuple[Array, ...]:
        """The new parameter and its new slots, in new arrays; `step` counts from 1.

        Elementwise, on arrays or any pieces of them, and unchecked: `step` checks what goes in and comes out.
        """


# Scalars are rounded by hand: NumPy 1 would widen `float32 array of shape () * float` to float64.
_f32 = np.float32


def _decayed(p: Array, g: Array, weight_decay: float) -> Array:
    return g + _f32(weight_decay) * p if weight_decay else g


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent (Robbins and Monro, 1951): `p - lr (g + weight_decay p)`."""

    name: ClassVar[str] = "sgd"
    slots: ClassVar[tuple[str, ...]] = ()
    weight_decay: float = option(0.0, NOT_NEGATIVE)

    def update(self, step: int, p: Array, g: Array, *slots: Array) -> tuple[Array, ...]:
        return (p - _f32(self.lr) * _decayed(p, g, self.weight_decay),)


@dataclass(frozen=True)
class Momentum(Optimizer):
    """Heavy ball (Polyak, 1964), `m = momentum m + g`, `p - lr m`; Nesterov's: `p - lr (g + momentum m)`.

    The form of Sutskever et al. (2013) as `torch.optim.SGD` has it, dampening 0: lr multiplies the
    velocity when it is used and is not part of it, so changing lr between steps acts at once.
    """

    name: ClassVar[str] = "momentum"
    slots: ClassVar[tuple[str, ...]] = ("m",)
    momentum: float = option(0.9, SHARE)
    nesterov: bool = option(False, SWITCH)
    weight_decay: float = option(0.0, NOT_NEGATIVE)

    def update(self, step: int, p: Array, g: Array, *slots: Array) -> tuple[Array, ...]:
        g = _decayed(p, g, self.weight_decay)
        m = _f32(self.momentum) * slots[0] + g
        return p - _f32(self.lr) * (g + _f32(self.momentum) * m if self.nesterov else m), m


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Duchi, Hazan and Singer (2011): `v = v + g^2`, `p - lr g / (sqrt(v) + eps)`.

    As `torch.optim.Adagrad`: eps outside the root, lr divided by `1 + (step - 1) lr_decay`.
    """

    name: ClassVar[str] = "adagrad"
    slots: ClassVar[tuple[str, ...]] = ("v",)
    lr: float = option(1e-2, POSITIVE)
    lr_decay: float = option(0.0, NOT_NEGATIVE)
    eps: float = option(1e-10, EPSILON)
    weight_decay: float = option(0.0, NOT_NEGATIVE)

    def update(self, step: int, p: Array, g: Array, *slots: Array) -> tuple[Array, ...]:
        g = _decayed(p, g, self.weight_decay)
        v = slots[0] + g * g
        rate = _f32(self.lr / (1 + (step - 1) * self.lr_decay))
        return p - rate * (g / (np.sqrt(v) + _f32(self.eps))), v


@dataclass(frozen=True)
class Adam(Optimizer):
    """Kingma and Ba (2015, arXiv:1412.6980), algorithm 1; weight decay, if any, is added to the gradient.

    As `torch.optim.Adam`: eps is added to the *corrected* root, `sqrt(v) / sqrt(1 - beta2^t) + eps`.
    """

    name: ClassVar[str] = "adam"
    slots: ClassVar[tuple[str, ...]] = ("m", "v")
    beta1: float = option(0.9, SHARE)
    beta2: float = option(0.999, SHARE)
    eps: float = option(1e-8, EPSILON)
    weight_decay: float = option(0.0, NOT_NEGATIVE)

    def update(self, step: int, p: Array, g: Array, *slots: Array) -> tuple[Array, ...]:
        return self._adapt(step, p, _decayed(p, g, self.weight_decay), *slots)

    def _adapt(self, step: int, p: Array, g: Array, m: Array, v: Array) -> tuple[Array, ...]:
        m = m + _f32(1 - self.beta1) * (g - m)
        v = _f32(self.beta2) * v + _f32(1 - self.beta2) * (g * g)
        root = np.sqrt(v) / _f32(math.sqrt(1 - self.beta2**step)) + _f32(self.eps)
        return p - _f32(self.lr / (1 - self.beta1**step)) * (m / root), m, v


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled decay, `p (1 - lr weight_decay)` first (Loshchilov and Hutter, arXiv:1711.05101).

    As `torch.optim.AdamW`, where the decay is multiplied by lr.
    """

    name: ClassVar[str] = "adamw"
    weight_decay: float = option(1e-2, NOT_NEGATIVE)

    def update(self, step: int, p: Array, g: Array, *slots: Array) -> tuple[Array, ...]:
        return self._adapt(step, p * _f32(1 - self.lr * self.weight_decay), g, *slots)


def from_config(name: str, /, **options: float | bool) -> Optimizer:
    """The optimizer `name` with these options, the others at PyTorch's defaults.

    Raises `InvalidArgument` for a name or an option that does not exist (it lists those that do) and for
    a value out of range.
    """
    return configure(find(_BY_NAME, "optimizer", name), options)


def to_config(optimizer: Optimizer) -> dict[str, Any]:
    """`{"name": ..., "options": {...}}`, all options written out; ready for JSON and for `from_config`."""
    return {"name": optimizer.name, "options": dataclasses.asdict(optimizer)}


def _same_names(what: str, tensors: Tensors, expected: set[str]) -> None:
    for name in sorted(expected - set(tensors)):
        raise InvalidTensor(f"{what} {name} is missing; give one for every parameter")
    for name in sorted(set(tensors) - expected):
        raise InvalidTensor(f"{what} {name} belongs to no parameter; leave it out")


def _check(what: str, tensor: Array, shape: tuple[int, ...], dtype: type[np.generic] = np.float32) -> None:
    if not isinstance(tensor, np.ndarray) or tensor.dtype != dtype:
        found = getattr(tensor, "dtype", type(tensor).__name__)
        raise InvalidTensor(f"{what} is {found}; it must be a {np.dtype(dtype)} array")
    if tensor.shape != shape:
        raise InvalidTensor(f"{what} has shape {list(tensor.shape)}; it must have {list(shape)}")
