"""An ensemble's inputs and outputs, as its members' models say theirs."""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.inference.ensembles.asking_members import FLOAT32, MASS, outputs_of
from aggregator.inference.protocol.data_plane import DataPlane
from edge_attention.core.ensembles.ensemble import EnsembleSpec, How
from edge_attention.core.errors import FailedPrecondition, InvalidArgument, NotFound
from edge_attention.core.messages.open_inference import ModelMetadata, TensorMetadata

__all__ = ["EnsembleTensors", "tensors_of"]


@dataclass(frozen=True)
class EnsembleTensors:
    """Attributes:
    shapes: member -> of its output that meets, -1 where it is open; not of ATTENTION.
    """

    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    shapes: dict[str, tuple[int, ...]]


def tensors_of(ensemble: EnsembleSpec, plane: DataPlane) -> EnsembleTensors:
    """What it takes and gives.

    Raises:
        FailedPrecondition: a member's model is not deployed.
        InvalidArgument: members do not fit together; names them.
    """
    inputs: dict[str, TensorMetadata] = {}
    met: dict[str, list[TensorMetadata]] = {}
    for member in ensemble.members:
        model = _metadata(plane, member.model, member.version, f"member '{member.name}'")
        known = [one.name for one in model.inputs]
        if unknown := sorted(set(member.inputs) - set(known)):
            raise InvalidArgument(
                f"member '{member.name}': model '{member.model}' has no input '{unknown[0]}'; it has "
                f"{', '.join(known)}"
            )
        for one in model.inputs:
            _add(inputs, member.inputs.get(one.name, one.name), one, member.name)
        by_name = {one.name: one for one in model.outputs}
        met[member.name] = [by_name[name] for name in outputs_of(ensemble, member, list(by_name))]
    if ensemble.how is How.ATTENTION:
        return EnsembleTensors(_with_queries(ensemble, inputs), _attended(ensemble, plane, met), {})
    shapes = {name: tensors[0].shape for name, tensors in met.items()}
    first = next(iter(met.values()))[0]
    for name, (one,) in met.items():
        if one.datatype != first.datatype or len(one.shape) != len(first.shape):
            raise InvalidArgument(
                f"member '{name}' answers {one.datatype} {list(one.shape)} and '{ensemble.members[0].name}' "
                f"{first.datatype} {list(first.shape)}: they do not meet"
            )
    shape = [_common([one[n] for one in shapes.values()]) for n in range(len(first.shape))]
    if ensemble.how is How.CONCATENATE:
        if not -len(shape) <= ensemble.axis < len(shape):
            raise InvalidArgument(f"axis is {ensemble.axis}; what meets has {len(shape)} dimensions")
        along = [one[ensemble.axis] for one in shapes.values()]
        shape[ensemble.axis] = sum(along) if min(along) >= 0 else -1
    elif not first.datatype.startswith(("FP", "BF")):
        raise InvalidArgument(f"members answer {first.datatype}, of which there is no mean")
    return EnsembleTensors(
        tuple(inputs.values()),
        (TensorMetadata(ensemble.output, first.datatype, tuple(shape)),),
        shapes,
    )


def _metadata(plane: DataPlane, model: str, version: str, who: str) -> ModelMetadata:
    try:
        return plane.model_metadata(model, version)
    except NotFound:
        at = f" version {version}" if version else ""
        raise FailedPrecondition(f"{who}: model '{model}'{at} is not deployed; deploy it first") from None


def _add(inputs: dict[str, TensorMetadata], name: str, one: TensorMetadata, member: str) -> None:
    known = inputs.get(name)
    if known is None:
        inputs[name] = TensorMetadata(name, one.datatype, one.shape)
        return
    fits = len(known.shape) == len(one.shape) and all(
        a == b or -1 in (a, b) for a, b in zip(known.shape, one.shape, strict=True)
    )
    if known.datatype != one.datatype or not fits:
        raise InvalidArgument(
            f"input '{name}' is {known.datatype} {list(known.shape)} of one member and {one.datatype} "
            f"{list(one.shape)} of '{member}': give the members' inputs names of their own, as inputs"
        )
    shape = tuple(max(a, b) for a, b in zip(known.shape, one.shape, strict=True))
    inputs[name] = TensorMetadata(name, one.datatype, shape)


def _with_queries(ensemble: EnsembleSpec, inputs: dict[str, TensorMetadata]) -> tuple[TensorMetadata, ...]:
    if isinstance(ensemble.queries, str):
        queries = TensorMetadata(ensemble.queries, FLOAT32.value, (-1, -1, -1, -1))
        _add(inputs, ensemble.queries, queries, "the ensemble itself")
    return tuple(inputs.values())


def _attended(
    ensemble: EnsembleSpec, plane: DataPlane, met: dict[str, list[TensorMetadata]]
) -> tuple[TensorMetadata, ...]:
    for name, tensors in met.items():
        for one in tensors:
            if one.datatype != FLOAT32.value or len(one.shape) != 4:
                raise InvalidArgument(
                    f"member '{name}' answers '{one.name}' as {one.datatype} {list(one.shape)}; keys and "
                    "values are FP32 [batch, tokens, heads, dim]"
                )
    masses = TensorMetadata(MASS, FLOAT32.value, (-1, len(ensemble.members)))
    if ensemble.head:
        head = _metadata(plane, ensemble.head, "", "the head")
        if len(head.inputs) != 1:
            raise InvalidArgument(f"head '{ensemble.head}' takes {len(head.inputs)} inputs; one it may take")
        if any(one.name == MASS for one in head.outputs):
            raise InvalidArgument(f"head '{ensemble.head}' has an output '{MASS}', which is the ensemble's")
        return (*head.outputs, masses)
    values = _common([tensors[1].shape[3] for tensors in met.values()])
    queries, heads = (-1, -1) if isinstance(ensemble.queries, str) else ensemble.queries.shape[:2]
    return TensorMetadata(ensemble.output, FLOAT32.value, (-1, queries, heads, values)), masses


def _common(sizes: list[int]) -> int:
    return sizes[0] if len(set(sizes)) == 1 else -1
