"""One graph behind another: the second reads what the first writes, and names both made up are kept apart."""

from __future__ import annotations

from onnx import GraphProto, ModelProto

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.onnx_file import rename_values

__all__ = ["append"]


def append(model: ModelProto, graph: GraphProto, prefix: str, aside: str) -> ModelProto:
    """A copy of `model` with the nodes of `graph` behind its own; its outputs are those of `graph`.

    An input of `graph` is the value of `model` that has its name: an output, or one of the inputs `x/<i>` and
    `anchor/<i>`. Other inputs are added. Inner names of `graph` get `prefix`, those of `model` in the
    way of a name of `graph` get `aside`.

    Raises:
        InvalidGraph: an input of `model` has the name of something else in `graph`.
    """
    result = ModelProto()
    result.CopyFrom(model)
    first = result.graph
    second = GraphProto()
    second.CopyFrom(graph)
    made = {name for node in second.node for name in node.output} | {t.name for t in second.initializer}
    made -= {value.name for value in second.output}
    rename_values(second, {name: prefix + name for name in made})

    inputs = {value.name for value in first.input}
    outputs = {value.name for value in first.output}
    wanted = {value.name for value in second.input}
    shared = (wanted & outputs) | {name for name in wanted if name.startswith(("x/", "anchor/"))}
    ours = wanted - shared | {value.name for value in second.output} | {prefix + name for name in made}
    if clash := sorted(inputs & ours):
        raise InvalidGraph(f"the model's input {clash[0]!r} has a name that local steps use; rename it")
    rename_values(first, {name: f"{aside}{name}" for name in ours})

    for node in second.node:
        node.ClearField("name")  # which must be unique too, and no node needs one
    first.ClearField("output")
    first.output.extend(second.output)
    first.input.extend(v for v in second.input if v.name not in inputs and v.name not in outputs)
    first.initializer.extend(second.initializer)
    first.node.extend(second.node)
    first.name = second.name
    return result
