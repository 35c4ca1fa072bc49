"""Ensembles: models whose members are asked at once, and whose outputs meet (docs/ensembles.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from edge_attention.client.connection import DEADLINE_MARGIN, ClientConnection
from edge_attention.core.arrays import as_dtype
from edge_attention.core.datatypes import NUMPY
from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.messages import ensembles as wire
from edge_attention.core.messages.ensembles import DeployedEnsemble
from edge_attention.core.messages.open_inference import (
    Datatype,
    InferenceRequest,
    NamedTensor,
    RequestedOutput,
)
from edge_attention.core.tensors import Array
from edge_attention.jobs import values
from edge_attention.wire import services
from edge_attention.wire.open_inference import MODEL_INFER

__all__ = ["AsyncEnsemble", "EnsembleResult", "ensemble_text"]

INFER_SECONDS = 60.0
MAX_DEADLINE = 3600.0


@dataclass(frozen=True, eq=False)
class EnsembleResult(Mapping[str, Array]):
    """What an ensemble answers: its outputs by name.

    Attributes:
        exact: all members answered, and each exactly.
        coverage: the share of the members that it stands on.
        lacking: in words, who did not answer, and why; empty: nobody.
    """

    version: int
    exact: bool
    coverage: float
    lacking: str
    outputs: Mapping[str, Array] = field(repr=False)

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


def ensemble_text(file: str | Path) -> str:
    """The text of an ensemble's file, which may be given as such. Blocks.

    Raises:
        InvalidArgument: it is neither a text nor a path, or cannot be read.
    """
    if isinstance(file, str) and "\n" in file:
        return values.text(file, "file")
    path = values.path(file, "file")
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidArgument(f"the ensemble's file {str(path)!r} cannot be read: {why}") from None


class AsyncEnsemble:
    """An ensemble on the aggregator. `info`: what it is, as last heard."""

    def __init__(self, connection: ClientConnection, info: DeployedEnsemble) -> None:
        self._connection = connection
        self.info = info

    @property
    def name(self) -> str:
        return self.info.name

    def __repr__(self) -> str:
        return f"AsyncEnsemble({self.name!r}, {self.info.how} of {', '.join(self.info.members)})"

    async def infer(
        self,
        inputs: Mapping[str, ArrayLike],
        *,
        deadline: float | None = None,
        outputs: Sequence[str] = (),
    ) -> EnsembleResult:
        """The ensemble's answer to `inputs`, name -> array.

        Args:
            deadline: seconds; None: 60. Members that have not answered a little before are absent.
            outputs: those that are wanted; (): all.

        Raises:
            InvalidTensor, InvalidArgument: an input is missing, or not what a member takes; names it. float64
                is rounded to float32.
            DeadlineExceeded: a member that is needed has not answered.
            Unavailable: no member has.
        """
        if not isinstance(inputs, Mapping):
            raise InvalidArgument(
                f"inputs is {values.said(inputs)}; give arrays by input, as "
                f"{{{next((one.name for one in self.info.inputs), 'x')!r}: array}}"
            )
        seconds = INFER_SECONDS
        if deadline is not None:
            seconds = values.above(deadline, "deadline", MAX_DEADLINE)
        tensors = tuple(
            self._tensor(values.text(name, "a name in inputs"), value) for name, value in inputs.items()
        )
        wanted = tuple(map(RequestedOutput, values.several(outputs, "outputs")))
        request = InferenceRequest(self.name, "", "", {}, tensors, wanted, seconds)
        reply = await self._connection.caller.unary(MODEL_INFER, request, seconds + DEADLINE_MARGIN)
        said = reply.parameters
        return EnsembleResult(
            int(reply.version),
            bool(said.get("exact", True)),
            float(said.get("coverage", 1.0)),
            str(said.get("lacking", "")),
            {one.name: one.data for one in reply.outputs if isinstance(one.data, np.ndarray)},
        )

    async def undeploy(self) -> DeployedEnsemble:
        """End it; its members stay."""
        request = wire.UndeployEnsembleRequest(self.name)
        reply = await self._connection.caller.unary(
            services.UNDEPLOY_ENSEMBLE, request, self._connection.timeout
        )
        self.info = reply.ensemble
        return self.info

    def _tensor(self, name: str, value: ArrayLike) -> NamedTensor:
        wanted = next((one for one in self.info.inputs if one.name == name), None)
        if wanted is None:
            known = ", ".join(one.name for one in self.info.inputs) or "none"
            raise InvalidTensor(f"ensemble {self.name!r} has no input {name!r}; its inputs: {known}")
        what = f"input {name!r} of ensemble {self.name!r}"
        kind = NUMPY[Datatype(wanted.datatype)]
        array = np.asarray(
            np.asarray(value, object) if kind.hasobject else as_dtype(value, kind, what), order="C"
        )
        return NamedTensor(name, wanted.datatype, tuple(array.shape), array)
