"""Ensembles as clients and the aggregator speak of them: `protos/edge_attention/v1/ensembles.proto`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "DeployEnsembleRequest",
    "DeployEnsembleResponse",
    "DeployedEnsemble",
    "EnsembleTensor",
    "ListEnsemblesRequest",
    "ListEnsemblesResponse",
    "UndeployEnsembleRequest",
    "UndeployEnsembleResponse",
]


@dataclass(frozen=True)
class EnsembleTensor:
    """An input or output; in `shape` -1 is a size that is left open. `datatype`: as FP32 or INT64."""

    name: str
    datatype: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class DeployedEnsemble:
    """An ensemble that serves.

    Attributes:
        how: mean, concatenate or attention.
        members: their names.
        created: seconds since 1970.
        lacking: members that could not be asked now, and why; empty: all could.
    """

    name: str
    version: int
    how: str = ""
    members: tuple[str, ...] = ()
    inputs: tuple[EnsembleTensor, ...] = ()
    outputs: tuple[EnsembleTensor, ...] = ()
    created: float = 0.0
    owner: str = ""
    lacking: str = ""


@dataclass(frozen=True)
class DeployEnsembleRequest:
    """`text`: the file's, TOML."""

    name: str
    text: str


@dataclass(frozen=True)
class DeployEnsembleResponse:
    ensemble: DeployedEnsemble


@dataclass(frozen=True)
class UndeployEnsembleRequest:
    name: str


@dataclass(frozen=True)
class UndeployEnsembleResponse:
    ensemble: DeployedEnsemble


@dataclass(frozen=True)
class ListEnsemblesRequest:
    pass


@dataclass(frozen=True)
class ListEnsemblesResponse:
    ensembles: tuple[DeployedEnsemble, ...] = ()
