"""Data outside the file: in every place that can have a tensor, and written in many ways."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
from onnx import AttributeProto, ModelProto, TensorProto, helper

from hostile import files, wire
from hostile.files import FLOAT, Hostile, model, node, value

PATHS = ("secret.bin", "../secret.bin", "/etc/hostname", "*/_ORT_MEM_ADDR_/*", "file:///etc/hostname", "")
"""Files, and how ONNX Runtime names memory of its own process."""


def external(path: str) -> TensorProto:
    """Two numbers that lie elsewhere."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, said in (("location", path), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=said)
    return tensor


def places(path: str = "secret.bin") -> dict[str, ModelProto]:
    """The same two numbers, in a file each, wherever a file can have a tensor."""
    away = external(path)
    made = {"initializer": _with([node("Add", ["x", "w"], ["y"])], [away])}
    made["attribute"] = _with([node("Constant", [], ["w"], value=away), node("Add", ["x", "w"], ["y"])])
    several = _with([node("Constant", [], ["y"], value=files.constant("v", np.ones(2, np.float32)))])
    several.graph.node[0].attribute.append(
        AttributeProto(name="more", type=AttributeProto.TENSORS, tensors=[away])
    )
    made["attribute of several"] = several
    body = helper.make_graph([node("Add", ["x", "w"], ["t"])], "b", [], [value("t", FLOAT, None)], [away])
    made["subgraph"] = _branches(body)
    deep = helper.make_graph([_if(body)], "d", [], [value("t", FLOAT, None)])
    made["subgraph of a subgraph"] = _branches(deep)
    inside = [node("Constant", [], ["c"], value=away), node("Add", ["a", "c"], ["b"])]
    negated = files.function("F", [node("Neg", ["a"], ["b"])])
    made["function"] = files.called(files.function("F", inside))
    made["function that nobody calls"] = files.called(negated, files.function("G", inside))
    made["subgraph of a function"] = files.called(
        files.function("F", [node("If", ["a"], ["b"], then_branch=body, else_branch=body)])
    )
    default = helper.make_attribute("t", away)
    made["default of a function"] = files.called(
        files.function("F", [node("Neg", ["a"], ["b"])], attribute_protos=[default])
    )
    made["attribute of a call"] = files.called(negated, t=away)
    sparse = helper.make_sparse_tensor(away, files.constant("i", np.array([0, 1])), [4])
    made["sparse attribute"] = _with([node("Constant", [], ["y"], sparse_value=sparse)])
    made["sparse initializer"] = _with([node("Neg", ["x"], ["y"])])
    made["sparse initializer"].graph.sparse_initializer.append(sparse)
    made["training"] = _with([node("Neg", ["x"], ["y"])])
    made["training"].training_info.add().initialization.initializer.append(away)
    return made


def graphs(seed: int, paths: tuple[str, ...]) -> Iterator[Hostile]:
    rng = Random(f"outside {seed}")
    for overlong in (0.0, 0.2, 1.0):
        for path in paths:
            for place, made in places(path).items():
                parts = wire.parse(made.SerializeToString())
                if overlong == 0.2:
                    _scatter(rng, parts)
                feeds = {"x": np.ones(2, np.float32), "c": np.array(True)}
                yield Hostile(
                    f"data at {path!r}, in {place}, {overlong:.0%} overlong",
                    wire.encode(parts, rng, overlong),
                    {value.name: feeds[value.name] for value in made.graph.input},
                    ("y",),
                )


def _scatter(rng: Random, parts: list[wire.Part]) -> None:
    """Split messages in two and change the order of fields: the same message for every parser."""
    for part in list(parts):
        if not isinstance(part.value, list):
            continue
        _scatter(rng, part.value)
        if part.number == 7 and len(part.value) > 1:  # the graph: given twice, it is merged
            cut = rng.randrange(1, len(part.value))
            parts.append(wire.Part(part.number, part.wire, part.value[cut:]))
            del part.value[cut:]
        if part.number == 13 and rng.random() < 0.5:  # value before key
            part.value.reverse()


def _with(nodes: list[object], initializers: list[TensorProto] | None = None) -> ModelProto:
    made = model(nodes, [value("x", FLOAT, ["n"])], [value("y", FLOAT, None)])
    made.graph.initializer.extend(initializers or [])
    return made


def _if(body: object) -> object:
    return node("If", ["c"], ["t"], then_branch=body, else_branch=body)


def _branches(body: object) -> ModelProto:
    made = _with([node("If", ["c"], ["y"], then_branch=body, else_branch=body)])
    made.graph.input.append(value("c", TensorProto.BOOL, []))
    return made
