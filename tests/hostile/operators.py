"""Every operator of the list with extreme values: from ONNX's own tests of it, or made up from its schema."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_attention.graphs.reading.bounds import MAX_IR_VERSION
from edge_attention.graphs.reading.operators import DOMAINS, OPERATORS
from hostile.extremes import INTEGERS, REALS, SHAPES, Array, array, splashed
from hostile.files import Hostile

Case = tuple[ModelProto, dict[str, Array]]

_ONNX_TYPES = {
    f"tensor({name})": kind
    for name, kind in (
        ("float", TensorProto.FLOAT),
        ("double", TensorProto.DOUBLE),
        ("float16", TensorProto.FLOAT16),
        ("int8", TensorProto.INT8),
        ("int16", TensorProto.INT16),
        ("int32", TensorProto.INT32),
        ("int64", TensorProto.INT64),
        ("uint8", TensorProto.UINT8),
        ("uint16", TensorProto.UINT16),
        ("uint32", TensorProto.UINT32),
        ("uint64", TensorProto.UINT64),
        ("bool", TensorProto.BOOL),
    )
}
_TEXTS = (
    b"",
    b"linear",
    b"nearest",
    b"cubic",
    b"constant",
    b"reflect",
    b"wrap",
    b"SAME_UPPER",
    b"NOTSET",
    b"gelu",
    b"none",
    b"bidirectional",
    b"DCR",
    b"add",
    b"bilinear",
)


@cache
def cases() -> dict[tuple[str, str], list[Case]]:
    """Operator to graphs of it that are right, with arrays to feed them: ONNX's own tests."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        loaded = load_model_tests(kind="node")
    found = defaultdict(list)
    for case in loaded:
        made = case.model
        if any(opset.domain not in DOMAINS for opset in made.opset_import):
            continue
        names = [value.name for value in made.graph.input]
        arrays = case.data_sets[0][0]
        if len(names) != len(arrays) or not all(_plain(given) for given in arrays):
            continue
        read = ModelProto.FromString(made.SerializeToString())
        for opset in read.opset_import:  # that of the operator's last change: long ago, or not yet read
            first, last = DOMAINS[opset.domain]
            opset.version = min(max(opset.version, first), last)
        read.ir_version = min(read.ir_version, MAX_IR_VERSION)
        for key in {(node.domain, node.op_type) for node in read.graph.node}:
            if key[1] in OPERATORS.get(key[0], ()):
                found[key].append((read, dict(zip(names, map(np.asarray, arrays), strict=True))))
    # First those of the operator alone, then those of operators that are made of it.
    return {key: sorted(made, key=lambda case: len(case[0].graph.node))[:24] for key, made in found.items()}


def _plain(given: Any) -> bool:
    return isinstance(given, np.ndarray | np.generic) and given.dtype.kind in "biuf" and given.size <= 1 << 16


@cache
def schemas() -> dict[tuple[str, str], Any]:
    """Operator to the newest schema of it that ONNX Runtime has."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[tuple[str, str], Any] = {}
    for schema in state.get_all_operator_schema():
        key = (schema.domain, schema.name)
        if schema.name in OPERATORS.get(schema.domain, ()) and (
            key not in found or found[key].since_version < schema.since_version
        ):
            found[key] = schema
    return found


def graphs(seed: int) -> Iterator[Hostile]:
    """Without end: every operator by turns."""
    rng = Random(f"operators {seed}")
    every = [(domain, name) for domain in OPERATORS for name in sorted(OPERATORS[domain])]
    turn = 0
    while True:
        for domain, name in every:
            right = cases().get((domain, name))
            made, feeds = (
                _copy(rng.choice(right)) if right and rng.random() < 0.85 else _made_up(rng, domain, name)
            )
            _change(rng, made, feeds)
            outputs = tuple(value.name for value in made.graph.output)
            yield Hostile(
                f"{domain or 'ai.onnx'}.{name}, turn {turn}", made.SerializeToString(), feeds, outputs
            )
        turn += 1


def _copy(case: Case) -> Case:
    made = ModelProto()
    made.CopyFrom(case[0])
    return made, dict(case[1])


def _change(rng: Random, made: ModelProto, feeds: dict[str, Array]) -> None:
    """Extreme values, attributes, and inputs that are constants, so that they are folded at load."""
    for name in feeds:
        if rng.random() < 0.6:
            feeds[name] = splashed(rng, feeds[name])
    if rng.random() < 0.7:  # arrays of other shapes get past what is declared
        for value in (*made.graph.input, *made.graph.output):
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
    if rng.random() < 0.4:
        for node in made.graph.node:
            _change_attributes(rng, node)
    if rng.random() < 0.4:
        for name in [name for name in feeds if rng.random() < 0.7]:
            made.graph.initializer.append(numpy_helper.from_array(feeds.pop(name), name))
            kept = [value for value in made.graph.input if value.name != name]
            del made.graph.input[:]
            made.graph.input.extend(kept)


def _change_attributes(rng: Random, node: NodeProto) -> None:
    for attribute in node.attribute:
        if rng.random() < 0.5:
            continue
        if attribute.type == AttributeProto.INT:
            attribute.i = rng.choice(INTEGERS)
        elif attribute.type == AttributeProto.INTS:
            size = rng.choice((len(attribute.ints), len(attribute.ints), 0, 1, 9))
            attribute.ints[:] = [rng.choice(INTEGERS) for _ in range(size)]
        elif attribute.type == AttributeProto.FLOAT:
            attribute.f = rng.choice(REALS)
        elif attribute.type == AttributeProto.FLOATS:
            attribute.floats[:] = [rng.choice(REALS) for _ in attribute.floats]
        elif attribute.type == AttributeProto.TENSOR:
            with_extremes = splashed(rng, numpy_helper.to_array(attribute.t)) if _held(attribute.t) else None
            if with_extremes is not None:
                attribute.t.CopyFrom(numpy_helper.from_array(with_extremes))


def _held(tensor: TensorProto) -> bool:
    return tensor.data_type in _ONNX_TYPES.values()


def _made_up(rng: Random, domain: str, name: str) -> Case:
    """A graph of the one operator, by what its schema says of inputs, types and attributes."""
    schema = schemas()[domain, name]
    types = {
        constraint.type_param_str: [t for t in constraint.allowed_type_strs if t in _ONNX_TYPES]
        for constraint in schema.type_constraints
    }
    chosen = {kind: rng.choice(allowed) for kind, allowed in types.items() if allowed}
    base = rng.choice(SHAPES)
    feeds, inputs, declared = {}, [], []
    for position, parameter in enumerate(schema.inputs):
        kind = _ONNX_TYPES.get(chosen.get(parameter.typeStr, parameter.typeStr))
        optional = "Optional" in str(parameter.option)
        if kind is None or (optional and rng.random() < 0.6):
            inputs.append("")
            continue
        shape = base if rng.random() < 0.6 else rng.choice(SHAPES)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
        for k in range(rng.randint(1, 3) if "Variadic" in str(parameter.option) else 1):
            inputs.append(f"i{position}_{k}")
            feeds[inputs[-1]] = array(rng, dtype, shape)
            declared.append(helper.make_tensor_value_info(inputs[-1], kind, None))
    while inputs and not inputs[-1]:
        inputs.pop()
    outputs = [f"o{k}" for k in range(max(schema.min_output, rng.randint(1, max(len(schema.outputs), 1))))]
    node = helper.make_node(name, inputs, outputs, domain=domain)
    for key, attribute in schema.attributes.items():
        if attribute.required or rng.random() < 0.4:
            _add_attribute(rng, node, key, str(attribute.type).rpartition(".")[2].partition(":")[0])
    graph = helper.make_graph(
        [node], "g", declared, [helper.make_tensor_value_info(output, 0, None) for output in outputs]
    )
    for value in graph.output:
        value.ClearField("type")
    opsets = [helper.make_opsetid("", 23)]
    opsets += [helper.make_opsetid(domain, 3 if domain == "ai.onnx.ml" else 1)] if domain else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=11), feeds


def _add_attribute(rng: Random, node: NodeProto, key: str, kind: str) -> None:
    """An attribute of that type with a value that is not meant to be one."""
    few = rng.randint(0, 4)
    some: dict[str, Any] = {
        "INT": lambda: rng.choice(INTEGERS),
        "INTS": lambda: [rng.choice(INTEGERS) for _ in range(few)],
        "FLOAT": lambda: rng.choice(REALS),
        "FLOATS": lambda: [rng.choice(REALS) for _ in range(few)],
        "STRING": lambda: rng.choice(_TEXTS),
        "STRINGS": lambda: [rng.choice(_TEXTS) for _ in range(few)],
        "TENSOR": lambda: numpy_helper.from_array(array(rng, np.dtype(np.float32), rng.choice(SHAPES))),
        "GRAPH": lambda: helper.make_graph([], "empty", [], []),
    }
    if kind in some:
        types = {
            "INTS": AttributeProto.INTS,
            "FLOATS": AttributeProto.FLOATS,
            "STRINGS": AttributeProto.STRINGS,
        }
        node.attribute.append(helper.make_attribute(key, some[kind](), attr_type=types.get(kind)))
