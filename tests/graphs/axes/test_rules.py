"""The rule of each operator, held against what ONNX Runtime computes.

A factor that is carried, summed, averaged or of which the largest counts: the node is run on two ranges of
it, and what it makes is put together. Of nodes that only move: an operand is filled with each element's place
in the factor, and the results must have there what the rule says.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.axes.rule import Does, Rule
from edge_attention.graphs.axes.rules import rule_of
from tests.graphs.axes.bound_runs import run_model

Side = Sequence[tuple[int, ...]]


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def whole(*shape: int, below: int = 5, dtype: Any = np.int64) -> Array:
    return np.random.default_rng(shape).integers(0, below, shape).astype(dtype)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def levels(*shape: int) -> Array:
    return whole(*shape, below=200, dtype=np.uint8)


STEP, COARSE, ZERO = np.array(0.05, np.float32), np.array(0.9, np.float32), np.array(7, np.uint8)
STEPS, ZEROS = np.linspace(0.02, 0.1, 5, dtype=np.float32), np.full(5, 9, np.uint8)
"""Of numbers of 8 bits: scales and zero points, one and by column."""


class One:
    """A node with its inputs; those at `held` are constants of the model."""

    def __init__(
        self,
        kind: str,
        inputs: Sequence[Array | None],
        outputs: int = 1,
        held: Sequence[int] = (),
        **attributes: Any,
    ) -> None:
        self.inputs = list(inputs)
        self.held = tuple(held)
        self.domain, _, self.kind = kind.rpartition(":")
        self.outputs = outputs
        self.attributes = attributes

    def model(self, inputs: Sequence[Array | None]) -> ModelProto:
        names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
        node = helper.make_node(
            self.kind, names, [f"y{i}" for i in range(self.outputs)], domain=self.domain, **self.attributes
        )
        given = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for i, (n, x) in enumerate(zip(names, inputs, strict=True))
            if x is not None and i not in self.held
        ]
        constants = [numpy_helper.from_array(x, f"x{i}") for i in self.held if (x := inputs[i]) is not None]
        graph = helper.make_graph(
            [node], "one", given, [helper.make_empty_tensor_value_info(y) for y in node.output], constants
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def run(self, inputs: Sequence[Array | None]) -> list[Array]:
        feeds = {f"x{i}": x for i, x in enumerate(inputs) if x is not None and i not in self.held}
        found = run_model(self.model(inputs), feeds)
        return [found[f"y{i}"] for i in range(self.outputs)]

    def bound(self) -> BoundGraph:
        return bind(self.model(self.inputs), {}, fused=True)

    def rule(self) -> Rule:
        bound = self.bound()
        assert [node.op_type for node in bound.nodes] == [self.kind]
        return rule_of(bound.nodes[0], bound)


def coordinate(shape: Sequence[int], side: Side, factor: int, rule: Rule) -> Array | None:
    """Each element's place in a factor; None where the tensor does not have it."""
    for axis, factors in enumerate(side):
        if factor in factors:
            sizes = [rule.factors[f].size for f in factors]
            at = factors.index(factor)
            inner = prod(sizes[at + 1 :])
            along = np.arange(shape[axis]) // inner % sizes[at]
            return np.broadcast_to(along.reshape(-1, *[1] * (len(shape) - axis - 1)), shape)
    return None


def taken(array: Array, side: Side | None, factor: int, rule: Rule, rows: slice) -> Array:
    """A range of a factor of a tensor; all of it where it has it not."""
    for axis, factors in enumerate(side or ()):
        if factor in factors:
            sizes = [rule.factors[f].size for f in factors]
            at = factors.index(factor)
            shape = (
                *array.shape[:axis],
                prod(sizes[:at]),
                sizes[at],
                prod(sizes[at + 1 :]),
                *array.shape[axis + 1 :],
            )
            part = array.reshape(shape)[(slice(None),) * (axis + 1) + (rows,)]
            return np.ascontiguousarray(part.reshape(*array.shape[:axis], -1, *array.shape[axis + 1 :]))
    return array


def check_shapes(one: One, rule: Rule) -> None:
    """Each dimension is as large as the product of its factors."""
    results = one.run(one.inputs)
    sides = [*zip(one.inputs, rule.operands, strict=True), *zip(results, rule.results, strict=True)]
    for array, side in sides:
        if array is None:
            assert side is None
            continue
        assert side is not None
        assert len(side) == array.ndim
        for size, factors in zip(array.shape, side, strict=True):
            told = prod(rule.factors[f].size for f in factors)
            assert told == size or not factors


def combined(does: Does, parts: list[Array], shares: list[float]) -> Array:
    match does:
        case Does.MEAN:
            return np.sum([share * part for share, part in zip(shares, parts, strict=True)], axis=0)
        case Does.MAX:
            return np.maximum(*parts)
        case Does.MIN:
            return np.minimum(*parts)
    return np.sum(parts, axis=0)


COMPUTED = {
    "add": (One("Add", [floats(2, 3, 4), floats(3, 1)]), "cc c"),
    "where": (One("Where", [whole(4, below=2).astype(bool), floats(2, 3, 4), floats(1, 1)]), "ccc"),
    "clip": (One("Clip", [floats(2, 3), np.array(-0.5, np.float32)]), "cc"),
    "cast": (One("Cast", [floats(2, 3)], to=7), "cc"),
    "prelu": (One("PRelu", [floats(2, 3, 4), floats(3, 1)]), "ccc"),
    "bias gelu": (One("com.microsoft:BiasGelu", [floats(2, 3, 4), floats(4)]), "ccc"),
    "matmul": (One("MatMul", [floats(2, 3, 4), floats(4, 5)]), "csc c"),
    "matmul, broadcast": (One("MatMul", [floats(2, 3, 3, 4), floats(2, 1, 4, 5)]), "ccsc c"),
    "matmul by a vector": (One("MatMul", [floats(2, 3, 4), floats(4)]), "scc"),
    "vector by matmul": (One("MatMul", [floats(4), floats(2, 4, 5)]), "scc"),
    "vectors": (One("MatMul", [floats(4), floats(4)]), "s"),
    "gemm": (One("Gemm", [floats(3, 4), floats(4, 5)], alpha=0.5), "scc"),
    "gemm, turned": (One("Gemm", [floats(4, 3), floats(5, 4)], transA=1, transB=1), "scc"),
    "gemm, kept with its bias": (One("Gemm", [floats(3, 4), floats(4, 5), floats(5)]), "cwc"),
    "fused matmul": (
        One("com.microsoft:FusedMatMul", [floats(2, 4, 3), floats(2, 5, 4)], transA=1, transB=1, alpha=0.3),
        "scc c",
    ),
    "integers": (
        One(
            "MatMulInteger",
            [
                whole(2, 3, 4, below=200, dtype=np.uint8),
                whole(4, 5, below=200, dtype=np.uint8),
                np.array(100, np.uint8),
                whole(5, below=99, dtype=np.uint8),
            ],
        ),
        "csc c",
    ),
    "einsum": (One("Einsum", [floats(2, 3, 4), floats(2, 4, 5)], equation="bij,bjk->bik"), "ccsc"),
    "einsum with dots": (
        One("Einsum", [floats(2, 6, 3, 4), floats(4, 5)], equation="...j,jk->...k"),
        "cccsc",
    ),
    "einsum that sums": (One("Einsum", [floats(2, 3, 4)], equation="abc->b"), "scs"),
    "softmax": (One("Softmax", [floats(2, 3, 4)], axis=1), "ccf"),
    "log softmax": (One("LogSoftmax", [floats(2, 3, 4)]), "ccw"),
    "layer norm": (One("LayerNormalization", [floats(2, 3, 4), floats(4), floats(4)], axis=-1), "ccm"),
    "norm of two axes": (One("LayerNormalization", [floats(2, 3, 4), floats(3, 4)], 3, axis=1), "cmm"),
    "simplified norm": (One("SimplifiedLayerNormalization", [floats(2, 3, 4), floats(4)], axis=-1), "ccm"),
    "norm of a sum": (
        One(
            "com.microsoft:SkipLayerNormalization",
            [floats(2, 3, 4), floats(3, 4), floats(4), floats(4, seed=1), floats(4, seed=2)],
        ),
        "ccm",
    ),
    "simplified norm of a sum": (
        One(
            "com.microsoft:SkipSimplifiedLayerNormalization",
            [floats(2, 3, 4), floats(2, 3, 4, seed=1), floats(4)],
        ),
        "ccm",
    ),
    "instance norm": (One("InstanceNormalization", [floats(2, 3, 4, 5), floats(3), floats(3)]), "ccmm"),
    "batch norm": (
        One(
            "BatchNormalization",
            [floats(2, 3, 4), floats(3), floats(3, seed=1), floats(3, seed=2), np.abs(floats(3, seed=3))],
        ),
        "ccc",
    ),
    "sum": (One("ReduceSum", [floats(2, 3, 4), ints(1)], held=[1], keepdims=0), "csc"),
    "sum of all": (One("ReduceSum", [floats(2, 3)], keepdims=0), "ss"),
    "mean": (One("ReduceMean", [floats(2, 3, 4), ints(-1, 0)], held=[1]), "aca"),
    "max": (One("ReduceMax", [floats(2, 3, 4), ints(2)], held=[1]), "ccx"),
    "min": (One("ReduceMin", [floats(2, 3, 4), ints(0)], held=[1]), "ncc"),
    "squares": (One("ReduceSumSquare", [floats(2, 3), ints(1)], held=[1]), "cs"),
    "length": (One("ReduceL2", [floats(2, 3), ints(1)], held=[1]), "cw"),
    "which is largest": (One("ArgMax", [floats(2, 3, 4)], axis=1), "ccw"),
    "pool": (One("GlobalAveragePool", [floats(2, 3, 4, 5)]), "ccaa"),
    "quantize": (
        One("QuantizeLinear", [floats(2, 3, 4), np.abs(floats(3)), whole(3, dtype=np.uint8)], axis=1),
        "ccc",
    ),
    "dequantize": (One("DequantizeLinear", [whole(3, 4, dtype=np.int8), np.array(0.1, np.float32)]), "cc"),
    "range": (One("DynamicQuantizeLinear", [floats(2, 3)], 3), "rr"),
    "running sum": (One("CumSum", [floats(2, 3), np.array(1, np.int64)], held=[1]), "cw"),
    "lookup": (One("Gather", [floats(6, 3), whole(2, 4)]), "pccc"),
    "lookup along an axis": (One("Gather", [floats(2, 6, 3), whole(4)], axis=1), "cpcc"),
    "one row": (One("Gather", [floats(2, 6, 3), np.array(0, np.int64)], held=[1], axis=1), "cpc"),
    "all rows": (One("Gather", [floats(2, 4, 3), np.arange(4)], held=[1], axis=1), "cpcc"),
    "elements": (One("GatherElements", [floats(2, 6, 3), whole(2, 4, 3)], axis=1), "cpcc"),
    "rows of batches": (One("GatherND", [floats(2, 3, 6, 5), whole(2, 3, 4, 1)], batch_dims=2), "cccpc"),
    "writes": (One("ScatterElements", [floats(2, 6, 3), whole(2, 4, 3), floats(2, 4, 3)], axis=1), "cwcw"),
    "writes rows": (One("ScatterND", [floats(6, 3), whole(4, 1), floats(4, 3)]), "wcw"),
    "largest": (One("TopK", [floats(2, 6), ints(3)], 2, held=[1], axis=1), "cww"),
    "one hot": (
        One("OneHot", [whole(2, 3), np.array(5, np.int64), np.array([0, 1], np.float32)], held=[1]),
        "ccw",
    ),
    "triangle": (One("Trilu", [floats(2, 3, 3)]), "cww"),
    "join": (One("Concat", [floats(2, 3, 4), floats(2, 5, 4)], axis=1), "ccwww"),
    "pad": (One("Pad", [floats(2, 3), ints(0, 1, 0, 2)], held=[1]), "cw w"),
    "patches": (
        One("Conv", [floats(2, 3, 8, 4), floats(5, 3, 2, 4)], kernel_shape=[2, 4], strides=[2, 4]),
        "cscwc w",
    ),
    "kernel of one": (One("Conv", [floats(2, 3, 8), floats(5, 3, 1)], kernel_shape=[1]), "csc c"),
    "kernel that overlaps": (
        One("Conv", [floats(2, 3, 8), floats(5, 3, 3), floats(5)], kernel_shape=[3], pads=[1, 1]),
        "cwcwww",
    ),
    "pooling": (One("MaxPool", [floats(2, 3, 8)], kernel_shape=[2], strides=[2]), "ccww"),
    "lstm": (
        One("LSTM", [floats(5, 2, 3), floats(1, 16, 3), floats(1, 16, 4)], 2, hidden_size=4),
        "cwwwwwwwww",
    ),
    "quantised product": (
        One("QLinearMatMul", [levels(2, 3, 4), STEP, ZERO, levels(4, 5), STEPS, ZEROS, COARSE, ZERO]),
        "ccwc",
    ),
    "quantised gemm": (
        One(
            "com.microsoft:QGemm",
            [levels(3, 4), STEP, ZERO, levels(5, 4), STEP, ZERO, whole(5, dtype=np.int32), COARSE, ZERO],
            transB=1,
        ),
        "cwc",
    ),
    "quantised sum": (
        One(
            "com.microsoft:QLinearAdd", [levels(2, 3, 4), STEP, ZERO, levels(3, 1), STEP, ZERO, COARSE, ZERO]
        ),
        "ccc",
    ),
    "quantised times": (
        One("com.microsoft:QLinearMul", [levels(2, 3, 4), STEP, ZERO, levels(4), STEP, ZERO, COARSE, ZERO]),
        "ccc",
    ),
    "quantised sigmoid": (
        One("com.microsoft:QLinearSigmoid", [levels(2, 3), STEP, ZERO, STEP, ZERO]),
        "cc",
    ),
    "quantised softmax": (
        One("com.microsoft:QLinearSoftmax", [levels(2, 3), STEP, ZERO, STEP, ZERO], axis=-1, opset=13),
        "cf",
    ),
    "quantised softmax of old": (
        One("com.microsoft:QLinearSoftmax", [levels(2, 3, 4), STEP, ZERO, STEP, ZERO], axis=1, opset=12),
        "wwwwww",
    ),
    "quantised where": (
        One(
            "com.microsoft:QLinearWhere",
            [
                whole(3, 4, below=2).astype(bool),
                levels(4),
                STEP,
                ZERO,
                levels(3, 1),
                STEP,
                ZERO,
                COARSE,
                ZERO,
            ],
        ),
        "cc",
    ),
    "quantised join": (
        One(
            "com.microsoft:QLinearConcat",
            [COARSE, ZERO, levels(2, 3, 4), STEP, ZERO, levels(2, 5, 4), STEP, ZERO],
            axis=1,
        ),
        "ccwww",
    ),
    "quantised patches": (
        One(
            "QLinearConv",
            [
                levels(2, 3, 8, 4),
                STEP,
                ZERO,
                levels(5, 3, 2, 4),
                STEPS,
                ZEROS,
                COARSE,
                ZERO,
                whole(5, dtype=np.int32),
            ],
            kernel_shape=[2, 4],
            strides=[2, 4],
        ),
        "cwccww",
    ),
    "quantised pool": (
        One("com.microsoft:QLinearGlobalAveragePool", [levels(2, 3, 4, 5), STEP, ZERO, STEP, ZERO]),
        "ccww",
    ),
    "convolution of integers": (
        One("ConvInteger", [levels(2, 3, 8), levels(5, 3, 1), ZERO, ZERO], kernel_shape=[1]),
        "cscc",
    ),
    "fused convolution": (
        One(
            "com.microsoft:FusedConv",
            [floats(2, 3, 8, 1), floats(5, 3, 1, 1), floats(5)],
            kernel_shape=[1, 1],
            activation="Relu",
        ),
        "cwcc",
    ),
}
_LETTERS = {
    "c": Does.CARRY,
    "s": Does.SUM,
    "a": Does.MEAN,
    "x": Does.MAX,
    "n": Does.MIN,
    "f": Does.SOFTMAX,
    "m": Does.MOMENTS,
    "w": Does.WHOLE,
    "r": Does.RANGE,
    "p": Does.PICK,
}


@pytest.mark.parametrize("name", list(COMPUTED))
def test_a_rule_holds_where_a_node_is_run_in_parts(name):
    one, _ = COMPUTED[name]
    rule = one.rule()
    check_shapes(one, rule)
    results = one.run(one.inputs)
    tried = 0
    for number, factor in enumerate(rule.factors):
        local = factor.does in (Does.CARRY, Does.SUM, Does.MEAN, Does.MAX, Does.MIN)
        if not local or not any(number in d for side in rule.operands for d in side or ()):
            continue
        tried += 1
        cut = max(factor.size // 2, 1)
        ranges = [slice(0, cut), slice(cut, factor.size)]
        made = []
        for rows in ranges:
            part = [
                x if x is None else taken(x, side, number, rule, rows)
                for x, side in zip(one.inputs, rule.operands, strict=True)
            ]
            made.append(one.run(part))
        shares = [cut / factor.size, 1 - cut / factor.size]
        for position, (result, side) in enumerate(zip(results, rule.results, strict=True)):
            parts = [outputs[position] for outputs in made]
            if any(number in d for d in side):
                for rows, part in zip(ranges, parts, strict=True):
                    np.testing.assert_allclose(
                        part, taken(result, side, number, rule, rows), rtol=1e-5, atol=1e-5
                    )
            else:
                found = combined(factor.does, parts, shares)
                np.testing.assert_allclose(found, result, rtol=1e-5, atol=1e-5)
    assert tried or name == "range" or "c" not in COMPUTED[name][1]


@pytest.mark.parametrize("name", list(COMPUTED))
def test_what_a_rule_says_of_each_factor(name):
    one, letters = COMPUTED[name]
    rule = one.rule()
    wanted = sorted(_LETTERS[letter].value for letter in letters.replace(" ", ""))
    assert sorted(factor.does.value for factor in rule.factors) == wanted
    whole_ones = any(factor.does is Does.WHOLE for factor in rule.factors)
    assert not whole_ones or rule.why or name in _KNOWN_BY_THE_OPERATOR


_KNOWN_BY_THE_OPERATOR = ("one hot",)

MOVED = {
    "transpose": One("Transpose", [floats(2, 3, 4)], perm=[2, 0, 1]),
    "split": One("Reshape", [floats(2, 3, 24), ints(2, 3, 4, 6)], held=[1]),
    "join": One("Reshape", [floats(2, 3, 4, 6), ints(0, 0, -1)], held=[1]),
    "join and split": One("Reshape", [floats(2, 6, 4, 5), ints(3, 4, 20)], held=[1]),
    "across a boundary": One("Reshape", [floats(4, 6, 5), ints(2, 12, 5)], held=[1]),
    "of equal sizes": One("Reshape", [floats(2, 2, 4), ints(4, 2, 2)], held=[1]),
    "flatten": One("Flatten", [floats(2, 3, 4)], axis=2),
    "squeeze": One("Squeeze", [floats(2, 1, 4), ints(1)], held=[1]),
    "unsqueeze": One("Unsqueeze", [floats(2, 4), ints(0, 2)], held=[1]),
    "expand": One("Expand", [floats(3, 1), ints(2, 3, 4)], held=[1]),
    "tile": One("Tile", [floats(2, 3), ints(2, 4)], held=[1]),
    "range": One("Slice", [floats(2, 7), ints(2), ints(5), ints(1)], held=[1, 2, 3]),
    "every other": One("Slice", [floats(2, 8), ints(1), ints(99), ints(1), ints(2)], held=[1, 2, 3, 4]),
    "even pieces": One("Split", [floats(2, 12), ints(4, 4, 4)], 3, held=[1], axis=1),
    "uneven pieces": One("Split", [floats(2, 12), ints(6, 2, 4)], 3, held=[1], axis=-1),
}


@pytest.mark.parametrize("name", list(MOVED))
def test_axes_go_where_a_rule_says(name):
    one = MOVED[name]
    rule = one.rule()
    check_shapes(one, rule)
    operand = rule.operands[0]
    assert operand is not None
    assert one.inputs[0] is not None
    shape = one.inputs[0].shape
    # Between them, factors that are in both say all of the operand's places, but for what is picked.
    for number in range(len(rule.factors)):
        places = coordinate(shape, operand, number, rule)
        if places is None:
            continue
        moved = one.run([places.astype(np.float32), *one.inputs[1:]])
        for result, side in zip(moved, rule.results, strict=True):
            there = coordinate(result.shape, side, number, rule)
            if there is not None:
                assert np.array_equal(result, there), (number, side)
    carried = {f for f, factor in enumerate(rule.factors) if factor.does is Does.CARRY}
    assert carried


def test_what_reshape_cannot_carry_is_whole_and_says_so():
    rule = One("Reshape", [floats(2, 6, 4, 5), ints(2, 8, 3, 5)], held=[1]).rule()
    carried, left = Does.CARRY, Does.WHOLE
    assert [(factor.size, factor.does) for factor in rule.factors] == [
        *((2, carried), (6, left), (4, left), (8, left), (3, left), (5, carried))
    ]
    assert "makes [8, 3] of [6, 4]" in rule.why


def test_slices_into_all_pieces_are_as_a_split():
    """Halves of a head that are turned: each half is carried. A slice alone is a range."""

    def sliced(*starts: int) -> list[Rule]:
        nodes = [
            helper.make_node("Slice", ["x", f"s{i}", f"e{i}", "axis"], [f"y{i}"]) for i in range(len(starts))
        ]
        constants = {"axis": ints(1)}
        for i, start in enumerate(starts):
            constants |= {f"s{i}": ints(start), f"e{i}": ints(start + 4)}
        graph = helper.make_graph(
            nodes,
            "slices",
            [helper.make_tensor_value_info("x", 1, [3, 8])],
            [helper.make_empty_tensor_value_info(f"y{i}") for i in range(len(starts))],
            [numpy_helper.from_array(x, n) for n, x in constants.items()],
        )
        bound = bind(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), {})
        return [rule_of(node, bound) for node in bound.nodes]

    for rule in sliced(0, 4):
        assert [(f.size, f.does) for f in rule.factors] == [(3, Does.CARRY), (2, Does.PICK), (4, Does.CARRY)]
    for rule in sliced(0):
        assert [(f.size, f.does) for f in rule.factors] == [(3, Does.CARRY), (8, Does.PICK), (4, Does.CARRY)]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("points", [False, True])
def test_weights_in_blocks_of_bits(bits, points):
    """Columns are carried, blocks of rows summed where no two zero points share a byte."""
    rows, columns, block = 64, 6, 16
    blocks = rows // block
    inputs: list[Array | None] = [
        floats(2, 3, rows),
        whole(columns, blocks, block * bits // 8, below=256, dtype=np.uint8),
        np.abs(floats(columns * blocks)),
        whole(columns * blocks * bits // 8, below=256, dtype=np.uint8) if points else None,
    ]
    one = One(
        "com.microsoft:MatMulNBits",
        inputs[: 4 if points else 3],
        N=columns,
        K=rows,
        bits=bits,
        block_size=block,
    )
    rule = one.rule()
    check_shapes(one, rule)
    results = one.run(one.inputs)
    column = next(f for f, factor in enumerate(rule.factors) if (rule.results[0][-1]) == (f,))
    assert rule.localised
    for number, letter in ((column, Does.CARRY),):
        assert rule.factors[number].does is letter
        part = One("com.microsoft:MatMulNBits", one.inputs, N=2, K=rows, bits=bits, block_size=block)
        cut = [
            x if x is None else taken(x, side, number, rule, slice(1, 3))
            for x, side in zip(one.inputs, rule.operands, strict=True)
        ]
        np.testing.assert_allclose(part.run(cut)[0], results[0][..., 1:3], rtol=1e-5, atol=1e-5)
    summed = [f for f, factor in enumerate(rule.factors) if factor.does is Does.SUM]
    assert len(summed) == (0 if points and bits < 8 else 1)
    for number in summed:
        parts = []
        for rows_of in (slice(0, 1), slice(1, blocks)):
            count = len(range(blocks)[rows_of]) * block
            cut = [
                x if x is None else taken(x, side, number, rule, rows_of)
                for x, side in zip(one.inputs, rule.operands, strict=True)
            ]
            part = One("com.microsoft:MatMulNBits", cut, N=columns, K=count, bits=bits, block_size=block)
            parts.append(part.run(cut)[0])
        np.testing.assert_allclose(sum(parts), results[0], rtol=1e-4, atol=1e-4)


def test_an_operator_without_a_rule_must_be_whole():
    rule = One("Det", [floats(2, 3, 3)]).rule()
    assert {factor.does for factor in rule.factors} == {Does.WHOLE}
    assert "Det 'y0' is not known here" in rule.why
