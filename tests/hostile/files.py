"""Small ONNX files, and how they are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from hostile.wire import field

FLOAT = TensorProto.FLOAT


class Hostile(NamedTuple):
    """A graph to try: `feeds` are arrays for its inputs, as far as it says what it has."""

    name: str
    data: bytes
    feeds: Mapping[str, np.ndarray[Any, Any]]
    outputs: tuple[str, ...]


node = helper.make_node
value = helper.make_tensor_value_info


def model(nodes, inputs=(), outputs=(), initializers=(), opset=21, domains=(), functions=(), **more):
    graph = helper.make_graph(
        list(nodes), "g", list(inputs), list(outputs), [constant(name, array) for name, array in initializers]
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))
    for key, given in more.items():
        setattr(made, key, given)
    return made


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def linear():
    """y = x w + b, w [4, 3]."""
    rng = np.random.default_rng(0)
    return model(
        [node("Gemm", ["x", "w", "b"], ["y"], name="dense", transB=0)],
        [value("x", FLOAT, ["batch", 4])],
        [value("y", FLOAT, ["batch", 3])],
        [("w", rng.standard_normal((4, 3)).astype(np.float32)), ("b", np.zeros(3, np.float32))],
    )


def looped():
    """A Loop whose body has an If, so that there are graphs two deep."""
    then = helper.make_graph([node("Neg", ["v"], ["t"])], "then", [], [value("t", FLOAT, [1])])
    other = helper.make_graph([node("Abs", ["v"], ["e"])], "other", [], [value("e", FLOAT, [1])])
    body = helper.make_graph(
        [
            node("Identity", ["go"], ["go_on"]),
            node("If", ["go"], ["v2"], then_branch=then, else_branch=other),
        ],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("v", FLOAT, [1])],
        [value("go_on", TensorProto.BOOL, []), value("v2", FLOAT, [1])],
    )
    return model(
        [node("Loop", ["n", "", "x"], ["y"], body=body)],
        [value("x", FLOAT, [1]), value("n", TensorProto.INT64, [])],
        [value("y", FLOAT, [1])],
    )


def function(name, nodes, inputs=("a",), outputs=("b",), domain="local", **more):
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    return helper.make_function(domain, name, list(inputs), list(outputs), list(nodes), imports, **more)


def called(*functions, name="F", **attributes):
    """y = F(x), with these functions in the file."""
    return model(
        [node(name, ["x"], ["y"], domain="local", **attributes)],
        [value("x", FLOAT, ["n"])],
        [value("y", FLOAT, ["n"])],
        domains=["local"],
        functions=functions,
    )


def external(name="w", location="secret.bin"):
    tensor = TensorProto(name=name, data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def sparse():
    return helper.make_sparse_tensor(constant("s", np.ones(1, np.float32)), constant("i", np.array([0])), [2])


def reference(name, ref, kind):
    """An attribute of a node in a function that is the function's own attribute `ref`."""
    return AttributeProto(name=name, ref_attr_name=ref, type=kind)


def wrapped(made: ModelProto, graph: bytes):
    """The model's bytes with this graph."""
    bare = ModelProto()
    bare.CopyFrom(made)
    bare.ClearField("graph")
    return bare.SerializeToString() + field(7, graph)
