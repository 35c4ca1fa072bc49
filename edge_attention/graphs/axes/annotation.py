"""Plans as ONNX's own annotation of a model: which device has which shard of a tensor, and pipeline stages.

    annotate(model, plan, axes)          # a copy of the model that says the plan
    read_annotation(model, axes)         # the plan that a model says, ours or another's

Every node of a stage has its `pipeline_stage`; each tensor with an axis that the stage's parts share has a
`ShardingSpecProto` over the devices, which are the parts. How parts that share tokens get over an attention
is in the specs around the scores, which hold tokens twice: by their rows (keys and values gathered), by their
columns (merged), or by heads (switched). What the annotation has no words for (shares that no small fraction
is, `halves`, `mean`) is beside it, as the plan's JSON among the model's notes, which counts as long as the
annotation says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError, Message
from onnx import ModelProto

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.printable import shown
from edge_attention.core.schedule.plan import CutPlan
from edge_attention.core.schedule.saved_plan import dumps_plan, loads_plan
from edge_attention.graphs.axes.annotation_reading import AnnotationReader, said_of
from edge_attention.graphs.axes.file_view import FileView, StageOwners
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.sharding import write_spec

__all__ = ["CONFIGURATION", "annotate", "is_annotated", "loads_annotation", "read_annotation"]

CONFIGURATION = "edge-attention"
"""The name that our configuration has; a model may have others' beside it."""
NOTE = "edge_attention_plan"
IR_VERSION = 11
"""The first that has the annotation."""


def is_annotated(model: ModelProto) -> bool:
    return bool(model.configuration)


def annotate(model: ModelProto, plan: CutPlan, axes: Axes) -> ModelProto:
    """A copy of `model` that says `plan`; of another configuration that is in it nothing is changed.

    Args:
        axes: of the model, bound to any sizes.

    Raises:
        InvalidArgument: the plan is not of this model.
    """
    found = ModelProto()
    found.CopyFrom(model)
    found.ir_version = max(found.ir_version, IR_VERSION)
    _forget(found)
    devices = [f"part {part}" for part in range(plan.parts)]
    found.configuration.add(name=CONFIGURATION, num_devices=len(devices), device=devices)
    found.metadata_props.add(key=NOTE, value=dumps_plan(plan))
    view = FileView(axes)
    stages = [StageOwners(number, stage, view.owners(stage)) for number, stage in enumerate(plan.stages)]
    last = stages[-1].stage.layers.stop
    if last != view.layers:
        raise InvalidArgument(f"the plan is of {last} layers, and the model has {view.layers}")
    for node in found.graph.node:
        place = view.place(node)
        if place is None:
            continue
        stage = next(one for one in stages if view.layer(place) in one.stage.layers)
        said = node.device_configurations.add(configuration_id=CONFIGURATION, pipeline_stage=stage.number)
        for name, sharding in view.shardings(node, place, stage):
            said.sharding_spec.append(write_spec(name, view.dims(name, node, place), sharding))
    return found


def read_annotation(model: ModelProto, axes: Axes, configuration: str = "") -> CutPlan:
    """The plan that the annotation says.

    Args:
        configuration: which; it may be left out where there is one.

    Raises:
        InvalidArgument: there is none, or what it says is no plan of cuts; names the node and the reason.
    """
    names = [one.name for one in model.configuration]
    name = configuration or (CONFIGURATION if CONFIGURATION in names else names[0] if len(names) == 1 else "")
    if name not in names:
        have = ", ".join(shown(one, 60) for one in names[:8]) or "none"
        raise InvalidArgument(f"the model has {have} as device configurations: name one of these")
    if name == CONFIGURATION and (exact := _noted(model, axes)) is not None:
        return exact
    return AnnotationReader(model, axes, name).plan()


def loads_annotation(data: bytes, axes: Axes) -> CutPlan:
    """The plan that an annotated file says: the model itself, or what is left of it without initializers.

    Raises:
        InvalidArgument: it is no ONNX file, or as `read_annotation`.
    """
    try:
        model = ModelProto.FromString(data)
    except DecodeError:
        raise InvalidArgument("the plan's file is no ONNX file, or damaged") from None
    return read_annotation(model, axes)


def _forget(model: ModelProto) -> None:
    """Take our configuration out, and our note."""
    _keep(model.configuration, [one for one in model.configuration if one.name != CONFIGURATION])
    _keep(model.metadata_props, [one for one in model.metadata_props if one.key != NOTE])
    for node in model.graph.node:
        said = node.device_configurations
        _keep(said, [one for one in said if one.configuration_id != CONFIGURATION])


def _keep(field: Any, kept: Sequence[Message]) -> None:
    del field[:]
    field.extend(kept)


def _noted(model: ModelProto, axes: Axes) -> CutPlan | None:
    """The plan beside the annotation, if that is what the annotation says."""
    note = next((one.value for one in model.metadata_props if one.key == NOTE), None)
    if note is None:
        return None
    try:
        plan = loads_plan(note)
        again = annotate(model, plan, axes)
    except InvalidArgument:
        return None
    same = all(
        list(said_of(one, CONFIGURATION)) == list(said_of(other, CONFIGURATION))
        for one, other in zip(model.graph.node, again.graph.node, strict=True)
    )
    return plan if same else None
