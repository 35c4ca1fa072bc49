"""Local training on a node: one step of an optimizer, appended to a model's gradient graph.

The formulae are those of `core/optimizers.py`, every constant and the order of operations included.
Hyperparameters are constants of the graph; `lr` is an input, so that a schedule costs no new graph.
Parameters and the optimizer's state are inputs and outputs; the next step reads what this one wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.optimizers import SGD, Adagrad, Adam, AdamW, Momentum, Optimizer
from edge_attention.graphs.models.model_form import LOSS_WEIGHT
from edge_attention.graphs.models.parts import serialize
from edge_attention.graphs.onnx_builder import FLOAT, INT64, Builder
from edge_attention.graphs.onnx_file import rename_values
from edge_attention.graphs.steps.append import append

__all__ = ["WEIGHT_SUM", "local_step", "start_graph", "step_and_update"]

WEIGHT_SUM = "loss/weight_sum"
"""What the batches of all steps so far counted, in rows."""
Shapes = Sequence[tuple[int, ...]]


def start_graph(shapes: Shapes, slots: Sequence[str], *, weighted: bool = False) -> bytes:
    """The graph that begins local training.

    Inputs `p/<i>`, finite float32 of `shapes[i]`. Outputs `x/<i>` (copies), `slot/<s>/<i>` (zeros), `count`
    int64 [] 0, `loss_sum` float32 [] 0, and with `weighted` WEIGHT_SUM, the same.
    """
    b = Builder("start")
    for i, shape in enumerate(shapes):
        p = b.input(f"p/{i}", FLOAT, shape)
        b.output(f"x/{i}", p, FLOAT, shape)
        for slot in slots:
            # Not a constant: ONNX Runtime would keep zeros as large as the model with the graph.
            b.output(f"slot/{slot}/{i}", b("Sub", p, p), FLOAT, shape)
    b.output("count", b.const(np.array(0, np.int64)), INT64, [])
    for name in ("loss_sum", *((WEIGHT_SUM,) if weighted else ())):
        b.output(name, b.const(np.array(0, np.float32)), FLOAT, [])
    return serialize(b.model())


def local_step(
    gradient: ModelProto,
    shapes: Shapes,
    optimizer: Optimizer,
    *,
    proximal: bool = False,
    control: bool = False,
    penalty: bool = False,
    weighted: bool = False,
    clip: bool = False,
) -> bytes:
    """The graph of one local step: `gradient` and behind it the optimizer's operations.

    `gradient` has the data inputs, `x/<i>` (float32 of `shapes[i]`; those it does not need may be missing)
    and the outputs `loss` [] and `grad/<i>`. Added inputs, float32: `slot/<s>/<i>`, `lr` [], `loss_sum` [],
    and `count` int64 [] if the optimizer counts its steps (`count` of them were taken before). With
    `proximal` `anchor/<i>` and `mu` []: the gradient gets `mu (x - anchor)` (FedProx, arXiv:1812.06127).
    With `control` `control/<i>`, which it gets as it is (SCAFFOLD, arXiv:1910.06378). With `penalty`
    `extra/<i>` and `penalty_weight` []: it gets `penalty_weight extra`. With `clip` `max_gradient` []: a
    gradient, with all of these, that is longer over all parameters is scaled down to that length. Outputs,
    each `next/` and the name of the input it replaces: `x/<i>`, `slot/<s>/<i>`, `count`, and `loss_sum` with
    the loss added. With `weighted`, where `gradient` has LOSS_WEIGHT, `loss_sum` gets the loss times that,
    and the input WEIGHT_SUM that itself.

    Raises:
        InvalidGraph: a data input has the name of one of these, or an output is missing.
        InvalidArgument: an optimizer that has no graph.
    """
    missing = {"loss", *(f"grad/{i}" for i in range(len(shapes)))} - {o.name for o in gradient.graph.output}
    if missing:
        raise InvalidGraph(f"the gradient graph lacks the output {min(missing)}; it needs loss and grad/<i>")
    b = Builder("local_step")
    update = _update(b, optimizer)
    mu = b.input("mu", FLOAT, []) if proximal else ""
    penalty_weight = b.input("penalty_weight", FLOAT, []) if penalty else ""
    inputs = [b.input(f"x/{i}", FLOAT, shape) for i, shape in enumerate(shapes)]
    gradients: list[str] = []
    for i, (x, shape) in enumerate(zip(inputs, shapes, strict=True)):
        g = f"grad/{i}"
        if proximal:
            g = b("Add", g, b("Mul", mu, b("Sub", x, b.input(f"anchor/{i}", FLOAT, shape))))
        if control:
            g = b("Add", g, b.input(f"control/{i}", FLOAT, shape))
        if penalty:
            g = b("Add", g, b("Mul", penalty_weight, b.input(f"extra/{i}", FLOAT, shape)))
        gradients.append(g)
    if clip:
        gradients = _clipped(b, gradients, shapes)
    for i, (x, g, shape) in enumerate(zip(inputs, gradients, shapes, strict=True)):
        slots = [b.input(f"slot/{slot}/{i}", FLOAT, shape) for slot in optimizer.slots]
        names = (f"x/{i}", *(f"slot/{slot}/{i}" for slot in optimizer.slots))
        for name, value in zip(names, update(x, g, slots), strict=True):
            b.output(f"next/{name}", value, FLOAT, shape)
    loss = b("Mul", "loss", LOSS_WEIGHT) if weighted else "loss"
    b.output("next/loss_sum", b("Add", b.input("loss_sum", FLOAT, []), loss), FLOAT, [])
    if weighted:
        total = b("Add", b.input(WEIGHT_SUM, FLOAT, []), LOSS_WEIGHT)
        b.output(f"next/{WEIGHT_SUM}", total, FLOAT, [])
    model = append(gradient, b.graph(), "step/", "gradient/")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InvalidGraph(f"the step of {optimizer.name} is not a valid graph: {error}") from error
    return serialize(model)


def _clipped(b: Builder, gradients: list[str], shapes: Shapes) -> list[str]:
    squares = [
        b("ReduceSumSquare", g, keepdims=0) for g, s in zip(gradients, shapes, strict=True) if 0 not in s
    ]
    norm = b("Sqrt", b("Sum", b.const(np.float32(0)), *squares))
    # Of length 0 the quotient is infinite, and 1 is less.
    scale = b("Min", b.const(np.float32(1)), b("Div", b.input("max_gradient", FLOAT, []), norm))
    return [b("Mul", g, scale) for g in gradients]


def step_and_update(step: bytes, update: bytes) -> bytes:
    """A local step and the update of it in one graph, so that what the step makes is never stored.

    `step`: of `local_step`, of an optimizer without slots; `update`: of `update_graph`, of source
    "difference". Inputs: those of both, but the update's `x/<i>`, `loss_sum` and WEIGHT_SUM, which are what
    the step writes. Outputs: the update's.

    Raises:
        InvalidGraph: a data input has a name that the update uses.
    """
    behind = onnx.load_model_from_string(update).graph
    written = {v.name for v in behind.input if v.name.startswith("x/")} | {"loss_sum"}
    written |= {WEIGHT_SUM} & {v.name for v in behind.input}
    rename_values(behind, {name: f"next/{name}" for name in written})
    return serialize(append(onnx.load_model_from_string(step), behind, "update/", "step/"))


UpdateRule = Callable[[str, str, list[str]], tuple[str, ...]]
"""From names of x, its gradient and slots, to names of the new x and the new slots."""


def _update(b: Builder, optimizer: Optimizer) -> UpdateRule:
    """Writes what all parameters share; what it returns writes one parameter's step."""
    lr = b.input("lr", FLOAT, [])
    rates = _Rates(b, lr)

    def f32(value: float) -> str:
        return b.const(np.float32(value))

    def decayed(x: str, g: str, weight_decay: float) -> str:
        return b("Add", g, b("Mul", f32(weight_decay), x)) if weight_decay else g

    match optimizer:
        case SGD(weight_decay=decay):

            def sgd(x: str, g: str, slots: list[str]) -> tuple[str, ...]:
                return (b("Sub", x, b("Mul", lr, decayed(x, g, decay))),)

            return sgd
        case Momentum(momentum=momentum, nesterov=nesterov, weight_decay=decay):

            def heavy_ball(x: str, g: str, slots: list[str]) -> tuple[str, ...]:
                g = decayed(x, g, decay)
                m = b("Add", b("Mul", f32(momentum), slots[0]), g)
                direction = b("Add", g, b("Mul", f32(momentum), m)) if nesterov else m
                return b("Sub", x, b("Mul", lr, direction)), m

            return heavy_ball
        case Adagrad(lr_decay=lr_decay, eps=eps, weight_decay=decay):
            rate = rates.over(lambda t: rates.plus_one(b("Mul", b("Sub", t, rates.one), rates.f64(lr_decay))))

            def adagrad(x: str, g: str, slots: list[str]) -> tuple[str, ...]:
                g = decayed(x, g, decay)
                v = b("Add", slots[0], b("Mul", g, g))
                step = b("Div", g, b("Add", b("Sqrt", v), f32(eps)))
                return b("Sub", x, b("Mul", rate, step)), v

            return adagrad
        case Adam(beta1=beta1, beta2=beta2, eps=eps, weight_decay=decay):
            decoupled = isinstance(optimizer, AdamW)
            rate = rates.over(lambda t: rates.correction(beta1, t))
            root_correction = rates.f32(b("Sqrt", rates.correction(beta2, rates.step)))
            shrink = rates.f32(b("Sub", rates.one, b("Mul", rates.lr, rates.f64(decay)))) if decoupled else ""

            def adam(x: str, g: str, slots: list[str]) -> tuple[str, ...]:
                if decoupled:
                    x = b("Mul", x, shrink)
                else:
                    g = decayed(x, g, decay)
                m = b("Add", slots[0], b("Mul", f32(1 - beta1), b("Sub", g, slots[0])))
                v = b("Add", b("Mul", f32(beta2), slots[1]), b("Mul", f32(1 - beta2), b("Mul", g, g)))
                root = b("Add", b("Div", b("Sqrt", v), root_correction), f32(eps))
                return b("Sub", x, b("Mul", rate, b("Div", m, root))), m, v

            return adam
    raise InvalidArgument(f"optimizer {optimizer.name} has no graph; nodes step with another")


class _Rates:
    """Scalars that change from step to step: in double precision, rounded once to float32 (`f32`)."""

    def __init__(self, b: Builder, lr: str) -> None:
        self._b = b
        self._lr = lr
        self._step = ""

    def f64(self, value: float) -> str:
        return self._b.const(np.float64(value))

    def f32(self, value: str) -> str:
        return self._b("Cast", value, to=FLOAT)

    @property
    def one(self) -> str:
        return self.f64(1)

    @property
    def lr(self) -> str:
        return self._b("Cast", self._lr, to=TensorProto.DOUBLE)

    @property
    def step(self) -> str:
        """The number of this step, from 1; whoever asks makes the graph count."""
        b = self._b
        if not self._step:
            count = b("Add", b.input("count", INT64, []), b.const(np.array(1, np.int64)))
            b.output("next/count", count, INT64, [])
            self._step = b("Cast", count, to=TensorProto.DOUBLE)
        return self._step

    def plus_one(self, value: str) -> str:
        return self._b("Add", self.one, value)

    def correction(self, beta: float, step: str) -> str:
        """1 - beta^step."""
        return self._b("Sub", self.one, self._b("Pow", self.f64(beta), step))

    def over(self, divisor: Callable[[str], str]) -> str:
        """lr / divisor(step), float32."""
        return self.f32(self._b("Div", self.lr, divisor(self.step)))
