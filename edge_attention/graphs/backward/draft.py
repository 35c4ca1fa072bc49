"""A segment of a training schedule while it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, helper

from edge_attention.core.schedule.schedule import Constant, Contributed, Kept, Source, TensorForm, Weight
from edge_attention.graphs.backward.ordered_names import name_in_order
from edge_attention.graphs.onnx_file import keep, made_in, rename_values, serialize
from edge_attention.graphs.reading.needed import graphs_in

__all__ = ["SegmentDraft", "one_of"]


@dataclass(eq=False)
class SegmentDraft:
    """What becomes a ModelSegment.

    Attributes:
        graph: the bytes of its graph, while `model` is None.
        model: its graph, which may be changed.
    """

    part: int
    inputs: dict[str, Source]
    kept: dict[str, str] = field(default_factory=dict)
    contributions: list[Contributed] = field(default_factory=list)
    graph: bytes = b""
    model: ModelProto | None = None

    def data(self) -> bytes:
        return self.graph if self.model is None else serialize(self.model)

    def changed(self) -> ModelProto:
        """The graph, to be changed."""
        if self.model is None:
            self.model = ModelProto.FromString(self.graph)
        return self.model

    def keep(self, value: str, form: TensorForm, name: str) -> str:
        """Have a value of the graph kept as `name`, or as what it is kept as already; which it is."""
        graph = self.changed().graph
        made = {output.name for output in graph.output}
        output = value
        if value not in made:
            output = f"y{len(made)}"
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
            graph.output.append(helper.make_tensor_value_info(output, kind, [None] * len(form.shape)))
            if value in self.inputs:
                graph.node.append(helper.make_node("Identity", [value], [output]))
            else:
                rename_values(graph, {value: output})
        return self.kept.setdefault(output, name)


def one_of(forward: SegmentDraft, back: SegmentDraft) -> SegmentDraft | None:
    """Both passes of a part in one segment, where the backward pass waits for nobody else; None: it does.

    What `back` was to take of what `forward` keeps is not kept any more.
    """
    own = {name: output for output, name in forward.kept.items()}
    if not all(isinstance(source, Kept | Weight | Constant) for source in back.inputs.values()):
        return None
    model = ModelProto()
    model.CopyFrom(forward.changed())
    behind = ModelProto()
    behind.CopyFrom(back.changed())
    graph = model.graph
    there = {source: name for name, source in forward.inputs.items()}
    inputs, renamed = dict(forward.inputs), {}
    declared = {value.name: value for value in behind.graph.input}
    for name, source in back.inputs.items():
        if isinstance(source, Kept) and source.name in own:
            renamed[name] = own[source.name]
        elif source in there:
            renamed[name] = there[source]
        else:
            renamed[name] = f"back/{name}"
            inputs[f"back/{name}"] = source
            graph.input.append(declared[name])
            graph.input[-1].name = f"back/{name}"
    for node in behind.graph.node:
        renamed |= {name: f"back/{name}" for name in node.output if name}
        renamed |= {own: f"back/{own}" for inner in graphs_in(node) for own in made_in(inner)}
    renamed |= {tensor.name: f"back/{tensor.name}" for tensor in behind.graph.initializer}
    rename_values(behind.graph, renamed)
    sent = {one.output for one in forward.contributions}
    keep(graph.output, sent)
    graph.node.extend(behind.graph.node)
    graph.initializer.extend(behind.graph.initializer)
    graph.output.extend(behind.graph.output)
    known = {one.domain for one in model.opset_import}
    model.opset_import.extend(one for one in behind.opset_import if one.domain not in known)
    called = name_in_order(model, {name: _letter(source) for name, source in inputs.items()})
    return SegmentDraft(
        forward.part,
        {called[name]: source for name, source in inputs.items()},
        {called[renamed[name]]: to for name, to in back.kept.items()},
        [
            *(Contributed(called[one.output], one.boundary, one.extent) for one in forward.contributions),
            *(Contributed(called[renamed[o.output]], o.boundary, o.extent) for o in back.contributions),
        ],
        model=model,
    )


def _letter(source: Source) -> str:
    letters: Mapping[type, str] = {Weight: "w", Constant: "c"}
    return letters.get(type(source), "x")
