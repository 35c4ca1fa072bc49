"""An ensemble's inputs and outputs, as its members' models say theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aggregator.inference.ensembles.asking_members import FLOAT32, MASS, outputs_of
from aggregator.inference.protocol.data_plane import DataPlane
from edge_attention.core.ensembles.ensemble import Absent, EnsembleSpec, How
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
        InvalidArgument: a model answers on streams alone, or members do not fit together; names them.
    """
    _require_of_its_kind(ensemble)
    inputs: dict[str, TensorMetadata] = {}
    met: dict[str, tuple[TensorMetadata, ...]] = {}
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
        met[member.name] = tuple(by_name[name] for name in outputs_of(ensemble, member, list(by_name)))
    if ensemble.how is How.ATTENTION:
        return EnsembleTensors(_with_queries(ensemble, inputs), _attended(ensemble, plane, met), {})
    shapes = {name: tensors[0].shape for name, tensors in met.items()}
    output = TensorMetadata(ensemble.output, next(iter(met.values()))[0].datatype, _met(ensemble, met))
    return EnsembleTensors(tuple(inputs.values()), (output,), shapes)


def _require_of_its_kind(ensemble: EnsembleSpec) -> None:
    """Refuse what says something of another kind of meeting: it would be passed over."""
    queries = ensemble.queries
    said = {
        How.CONCATENATE: {"absent": ensemble.absent is not Absent.REFUSE},
        How.ATTENTION: {
            "queries": not isinstance(queries, str) or bool(queries),
            "scale": ensemble.scale is not None,
            "head": bool(ensemble.head),
        },
    }
    for how, given in said.items():
        for name, there in given.items():
            if there and ensemble.how is not how:
                raise InvalidArgument(
                    f"{name} is of how = '{how.value}', and this ensemble's is '{ensemble.how.value}': leave "
                    "it out, or say how"
                )


def _met(ensemble: EnsembleSpec, met: Mapping[str, tuple[TensorMetadata, ...]]) -> tuple[int, ...]:
    """The shape of what a MEAN or CONCATENATE makes."""
    first_name, (first,) = next(iter(met.items()))
    rank, side_by_side = len(first.shape), ensemble.how is How.CONCATENATE
    if side_by_side and not -rank <= ensemble.axis < rank:
        raise InvalidArgument(f"axis is {ensemble.axis}; what meets has {rank} dimensions")
    if not side_by_side and not first.datatype.startswith("FP"):
        raise InvalidArgument(f"members answer {first.datatype}, of which there is no mean")
    axis = ensemble.axis % rank if side_by_side else None
    shape = list(first.shape)
    for name, (one,) in met.items():
        fits = len(one.shape) == rank and all(
            at == axis or _alike(known, size)
            for at, (known, size) in enumerate(zip(shape, one.shape, strict=True))
        )
        if one.datatype != first.datatype or not fits:
            raise InvalidArgument(
                f"member '{name}' answers {one.datatype} {list(one.shape)} and '{first_name}' "
                f"{first.datatype} {list(first.shape)}: they do not meet"
            )
        shape = [max(known, size) for known, size in zip(shape, one.shape, strict=True)]
    sizes = list(zip(*(one.shape for (one,) in met.values()), strict=True))
    return tuple(_sum(along) if at == axis else _common(along) for at, along in enumerate(sizes))


def _common(sizes: Sequence[int]) -> int:
    """The one size of all; -1 where it may be any."""
    return sizes[0] if len(set(sizes)) == 1 else -1


def _sum(sizes: Sequence[int]) -> int:
    return sum(sizes) if min(sizes) >= 0 else -1


def _alike(one: int, other: int) -> bool:
    """Whether two sizes may be one; -1 is any."""
    return one == other or -1 in (one, other)


def _metadata(plane: DataPlane, model: str, version: str, who: str) -> ModelMetadata:
    """Of a model that gives an answer to a request."""
    try:
        found = plane.require(model, version)
    except NotFound:
        at = f" version {version}" if version else ""
        raise FailedPrecondition(f"{who}: model '{model}'{at} is not deployed; deploy it first") from None
    except InvalidArgument as error:  # of the version
        raise InvalidArgument(f"{who}: {error.message}") from None
    if found.config().model_transaction_policy.decoupled:
        raise InvalidArgument(
            f"{who}: model '{model}' gives its answer piece by piece, on streams alone: name one that gives "
            "one answer to a request"
        )
    return found.metadata()


def _add(inputs: dict[str, TensorMetadata], name: str, one: TensorMetadata, member: str) -> None:
    known = inputs.get(name)
    if known is None:
        inputs[name] = TensorMetadata(name, one.datatype, one.shape)
        return
    fits = len(known.shape) == len(one.shape) and all(map(_alike, known.shape, one.shape))
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
    ensemble: EnsembleSpec, plane: DataPlane, met: Mapping[str, tuple[TensorMetadata, ...]]
) -> tuple[TensorMetadata, ...]:
    queries, asked, dim = (-1, -1, -1) if isinstance(ensemble.queries, str) else ensemble.queries.shape
    heads, width = asked, -1
    for name, tensors in met.items():
        for one in tensors:
            if one.datatype != FLOAT32.value or len(one.shape) != 4:
                raise InvalidArgument(
                    f"member '{name}' answers '{one.name}' as {one.datatype} {list(one.shape)}; keys and "
                    "values are FP32 [batch, tokens, heads, dim]"
                )
        keys, values = (one.shape for one in tensors)
        wanted = (-1, values[1], heads, dim), (-1, keys[1], heads, width)
        if not (all(map(_alike, keys, wanted[0])) and all(map(_alike, values, wanted[1]))):
            raise InvalidArgument(
                f"member '{name}' answers keys {list(keys)} and values {list(values)}; to the queries, and "
                f"the members before it, fit keys {list(wanted[0])} and values {list(wanted[1])}"
            )
        heads, dim, width = max(heads, keys[2], values[2]), max(dim, keys[3]), max(width, values[3])
    if ensemble.output == MASS and not ensemble.head:
        raise InvalidArgument(
            f"output is '{MASS}', which the members' shares are called: give it another name"
        )
    fused = (-1, queries, heads, width)
    masses = TensorMetadata(MASS, FLOAT32.value, (-1, len(ensemble.members)))
    if not ensemble.head:
        said = _common([tensors[1].shape[3] for tensors in met.values()])
        return TensorMetadata(ensemble.output, FLOAT32.value, (-1, queries, asked, said)), masses
    head = _metadata(plane, ensemble.head, "", "the head")
    if len(head.inputs) != 1:
        raise InvalidArgument(f"head '{ensemble.head}' takes {len(head.inputs)} inputs; one it may take")
    (one,) = head.inputs
    if one.datatype != FLOAT32.value or len(one.shape) != 4 or not all(map(_alike, one.shape, fused)):
        raise InvalidArgument(
            f"head '{ensemble.head}' takes {one.datatype} {list(one.shape)}; what was attended to is FP32 "
            f"{list(fused)}, [batch, queries, heads, value_dim]"
        )
    if any(one.name == MASS for one in head.outputs):
        raise InvalidArgument(f"head '{ensemble.head}' has an output '{MASS}', which is the ensemble's")
    return (*head.outputs, masses)
