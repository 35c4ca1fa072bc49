"""What the rules say of axes is so: each node of random transformers, run on a range of each of its factors.

Operands are cut where the rule has the factor, and results must be the same ranges of what the whole node
makes; or add up to it, or be its largest or smallest, as the rule says.
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from edge_attention.core.schedule.extents import AxisSpan, extent_shape, take
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.rule import Does
from edge_attention.graphs.axes.rules import rule_of
from tests.graphs.axes.random_transformers import feeds_of, recipe_of, sizes_of, transformer

LOCAL = ("Reshape", "Expand")
"""Operators whose second input says the shape they make: a part's is its own."""


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def info(name, array):
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def form(bound, name):
    spec = bound.specs[name]
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape
    )


def opsets(bound):
    return [helper.make_opsetid(domain, version) for domain, version in bound.opsets.items()]


def values_of(model, bound, feeds):
    """Every tensor of the bound graph."""
    file = {one.name: one for one in model.graph.initializer}
    fixed = {name: numpy_helper.to_array(file[of]) for name, of in bound.weights.items()}
    fixed |= {name: np.asarray(value) for name, value in (bound.literals | bound.derived).items()}
    made = [name for node in bound.nodes for name in node.output if name]
    graph = helper.make_graph(
        list(bound.nodes),
        "bound",
        [form(bound, name) for name in bound.inputs],
        [form(bound, name) for name in made],
        [numpy_helper.from_array(np.array(value, order="C"), name) for name, value in fixed.items()],
    )
    whole = helper.make_model(graph, opset_imports=opsets(bound), ir_version=bound.ir_version)
    return fixed | feeds | dict(zip(made, session(whole).run(made, feeds), strict=True))


def node_alone(bound, node, inputs):
    """What one node makes of these arrays, by its inputs' names."""
    graph = helper.make_graph(
        [node],
        "alone",
        [info(name, array) for name, array in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    model = helper.make_model(graph, opset_imports=opsets(bound), ir_version=bound.ir_version)
    return session(model).run(None, inputs)


def extent(side, rule, factor, start, stop):
    """Where the factor is in a tensor with these dimensions."""
    spans = []
    for axis, factors in enumerate(side or ()):
        if factor in factors:
            sizes = [rule.factors[f].size for f in factors]
            at = factors.index(factor)
            outer, inner = int(np.prod(sizes[:at])), int(np.prod(sizes[at + 1 :]))
            spans.append(AxisSpan(axis, start, stop, sizes[at], outer, inner))
    return tuple(spans)


def check(bound, node, rule, factor, values):
    """The node on two ranges of the factor, against the whole."""
    size, does = rule.factors[factor].size, rule.factors[factor].does
    names = [name for name in node.output if name]
    sides = [side for name, side in zip(node.output, rule.results, strict=True) if name]
    middle = max(1, size // 3)
    pieces = []
    for start, stop in ((0, middle), (middle, size)):
        inputs = {}
        for position, (name, side) in enumerate(zip(node.input, rule.operands, strict=True)):
            if name:
                piece = take(values[name], extent(side, rule, factor, start, stop))
                if position == 1 and node.op_type in LOCAL:
                    shape = extent_shape(values[names[0]].shape, extent(sides[0], rule, factor, start, stop))
                    piece = np.array(shape, np.int64)
                inputs[name] = np.array(piece, order="C")
        pieces.append(((start, stop), node_alone(bound, node, inputs)))
    for n, (name, side) in enumerate(zip(names, sides, strict=True)):
        whole = values[name]
        tolerance = 2e-6 * max(1.0, float(np.abs(whole).max())) if whole.dtype.kind == "f" else 0
        if does is Does.CARRY:
            for (start, stop), made in pieces:
                wanted = take(whole, extent(side, rule, factor, start, stop))
                assert made[n].shape == wanted.shape
                np.testing.assert_allclose(made[n], wanted, rtol=0, atol=tolerance)
        else:
            a, b = (made[n] for _, made in pieces)
            folded = {
                Does.SUM: lambda a=a, b=b: a + b,
                Does.MEAN: lambda a=a, b=b: a * (middle / size) + b * (1 - middle / size),
                Does.MAX: lambda a=a, b=b: np.maximum(a, b),
                Does.MIN: lambda a=a, b=b: np.minimum(a, b),
            }[does]()
            np.testing.assert_allclose(folded, whole, rtol=0, atol=tolerance)


MODELS = int(os.environ.get("EXAMPLES", "6"))
CHECKED = (Does.CARRY, Does.SUM, Does.MEAN, Does.MAX, Does.MIN)
SKIPPED = ("Slice", "Split", "Concat", "Gemm")
"""Of these a factor may be a range that the node itself takes or joins, or a summand has a bias that only one
part may add: what is made local for a part is tried where models are cut."""


@pytest.mark.parametrize("seed", range(MODELS))
def test_each_node_does_to_its_axes_what_its_rule_says(seed):
    recipe = recipe_of(seed)
    model = transformer(recipe)
    bound = bind(model, sizes_of(recipe))
    values = values_of(model, bound, feeds_of(recipe, seed))
    kinds = Counter()
    for node in bound.nodes:
        rule = rule_of(node, bound)
        for factor, of in enumerate(rule.factors):
            if of.does not in CHECKED or (
                node.op_type in SKIPPED and (rule.localised or of.does is not Does.CARRY)
            ):
                continue
            if node.op_type == "Split":
                continue
            carried = any(factor in f for side in rule.operands for f in side or ())
            if not carried and node.op_type not in LOCAL:
                continue
            kinds[of.does] += 1
            try:
                check(bound, node, rule, factor, values)
            except Exception as error:
                raise AssertionError(
                    f"{node.op_type} {node.name}: factor {factor} of {rule}: {error}"
                ) from error
    assert kinds[Does.CARRY] > 50
