"""A softmax over an axis that is cut: each part's over its own keys, with what merges them.

    lse = max(s) - log(max(softmax(s)))        out = softmax(s) v        (DESIGN section 4)

Rows that see no key of the part, where a mask of -inf hides them all, give the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edge_attention.core.schedule.schedule import Collective, TensorForm
from edge_attention.graphs.axes.forms import Form, Operation, StageCut, Unfolded
from edge_attention.graphs.axes.stock import FormStock, level_of
from edge_attention.graphs.axes.ways import Dims, Way

__all__ = ["carry_lse", "merge_parts", "soften"]

FLOOR = -256.0
"""What stands for the largest score of a row all of whose keys a finite mask hides from a part.

A mask of -1e9 or less takes the scores with it: such a row is a plain mean of the values, of as many keys as
the part has. Beside -1e9 the logarithm of their number is lost in float32; beside this it is right to 8e-6.
Nothing of such a row is left, e^-100, beside a part that sees a key, as long as that one's lse is above -150.
"""
_HIDDEN, _HIDDEN_HALF = -1e8, -6e4


def soften(stock: FormStock, stage: StageCut, node: NodeProto, way: Way) -> None:
    """A softmax over the part's keys, with the logarithm of its sum and the rows that see any key.

    lse = max(s) - log(max(softmax(s))): no pass over the scores that takes their exponential again.
    """
    state = way.operands[0]
    assert state is not None
    scores = stock.obtain(stage, node.input[0], state)
    name, spec = node.output[0], stock.specs[node.input[0]]
    dims = (*stock.dims[node.input[0]][:-1], ())
    row = TensorForm(spec.dtype, (*spec.shape[:-1], 1))
    seen_spec = TensorForm("bool", row.shape)
    operation = Operation(stage.number, scores.level, node, (scores,), {}, way.axis)
    weights = stock.finish(operation, [(name, state)])[0]
    stock.homes[name] = weights
    axis = way.axis

    def made(kind: str, inputs: Sequence[Form], what: str, spec: TensorForm = row, **attributes: int) -> Form:
        return stock.made(
            stage,
            kind,
            inputs,
            f"{name}#{what}",
            spec,
            Unfolded(Collective.MERGE, axis),
            dims,
            axis,
            **attributes,
        )

    def number(what: str, value: float, dtype: str = "float32") -> Form:
        return stock.literal(stage, f"{name}#{what}", np.array(value, dtype))

    top = _most(stock, stage, scores, f"{name}#top", row, dims, axis)
    peak = _most(stock, stage, weights, f"{name}#peak", row, dims, axis)
    seen = made("Not", [made("IsInf", [top], "unseen", seen_spec, detect_positive=0)], "seen", seen_spec)
    least = _HIDDEN if spec.dtype == "float32" else _HIDDEN_HALF
    hidden = made("Less", [top, number("least", least, spec.dtype)], "hidden", seen_spec)
    if spec.dtype != "float32":
        row = TensorForm("float32", row.shape)
        top = made("Cast", [top], "top32", row, to=TensorProto.FLOAT)
        peak = made("Cast", [peak], "peak32", row, to=TensorProto.FLOAT)
    base = made("Where", [hidden, number("floor", FLOOR), top], "base", row)
    full = made("Sub", [base, made("Log", [peak], "log", row)], "lse_seen", row)
    lse = made("Where", [seen, full, number("nothing", -np.inf)], "lse", row)
    weights.lse = (lse, seen)


def _most(
    stock: FormStock, stage: StageCut, of: Form, name: str, spec: TensorForm, dims: Dims, axis: int
) -> Form:
    state = Unfolded(Collective.MERGE, axis)
    if stock.opset() < 18:
        stock.specs[name], stock.dims[name] = spec, dims
        node = helper.make_node("ReduceMax", [of.tensor], [name], axes=[-1], keepdims=1)
        operation = Operation(stage.number, of.level, node, (of,), {}, axis)
        return stock.finish(operation, [(name, state)])[0]
    last = stock.literal(stage, f"{name}#axes", np.array([-1], np.int64))
    return stock.made(stage, "ReduceMax", [of, last], name, spec, state, dims, axis, keepdims=1)


def carry_lse(stock: FormStock, stage: StageCut, operation: Operation) -> None:
    """What a node makes of weights over a part's keys, element by element, keeps their lse."""
    rows = next((form.lse for form in operation.inputs if form is not None and form.lse), ())
    if rows and operation.node.op_type == "Reshape":
        rows = _reshaped_rows(stock, stage, operation.node.output[0], rows)
    for form in operation.results:
        if form is not None:
            form.lse = rows


def _reshaped_rows(
    stock: FormStock, stage: StageCut, weights: str, rows: tuple[Form, ...]
) -> tuple[Form, ...]:
    """What goes with weights whose leading dimensions are put otherwise."""
    shape = (*stock.specs[weights].shape[:-1], 1)
    name = f"{weights}#rows"
    stock.derived[name] = np.array(shape, np.int64)
    stock.specs[name], stock.dims[name] = TensorForm("int64", (len(shape),)), ((),)
    said = stock.constant(stage, name)
    dims = (*stock.dims[weights][:-1], ())
    made = []
    for n, row in enumerate(rows):
        spec = TensorForm(stock.specs[row.tensor].dtype, shape)
        state = row.state
        assert isinstance(state, Unfolded)
        made.append(
            stock.made(stage, "Reshape", [row, said], f"{weights}#{n}", spec, state, dims, state.axis)
        )
    return tuple(made)


def merge_parts(stock: FormStock, stage: StageCut, node: NodeProto, way: Way) -> None:
    """The product of weights over a part's keys and their values: a partial, with its lse."""
    weights = stock.obtain(stage, node.input[0], way.operands[0])
    values = stock.obtain(stage, node.input[1], way.operands[1])
    lse, seen = weights.lse
    name = node.output[0]
    if lse in stock.partials:  # two products of one softmax, as differential attention has: each has its own
        assert lse.state is not None
        lse = stock.made(
            stage,
            "Identity",
            [lse],
            f"{name}#lse",
            stock.specs[lse.tensor],
            lse.state,
            stock.dims[lse.tensor],
            way.axis,
        )
    stock.partials.add(lse)
    spec, dims, state = stock.specs[name], stock.dims[name], Unfolded(Collective.MERGE, way.axis)
    product = NodeProto()
    product.CopyFrom(node)
    product.output[0] = f"{name}#raw"
    stock.specs[f"{name}#raw"], stock.dims[f"{name}#raw"] = spec, dims
    operation = Operation(stage.number, level_of((weights, values)), product, (weights, values), {}, way.axis)
    raw = stock.finish(operation, [(f"{name}#raw", state)])[0]
    zero = stock.literal(stage, f"{name}#zero", np.array(0, spec.dtype))
    form = stock.made(stage, "Where", [seen, raw, zero], name, spec, state, dims, way.axis)
    form.lse = (lse,)
    stock.homes[name] = form
