"""One attention model over many small machines. `Client` is where a program begins; see docs/client.md.

Names load when they are first used: the daemons import their parts of this package and never the client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edge_attention.core.errors import (
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    DuplicateContribution,
    EdgeAttentionError,
    EmptyContext,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    InvalidGraph,
    InvalidProgram,
    InvalidTensor,
    MessageTooLarge,
    NodeLost,
    NotFound,
    OutOfMemory,
    PermissionDenied,
    PrivateTensor,
    ResourceExhausted,
    StaleVersion,
    Unavailable,
)

if TYPE_CHECKING:
    from edge_attention.aio import AsyncClient as AsyncClient
    from edge_attention.client import Client as Client
    from edge_attention.core.jobs import MissingSamples as MissingSamples
    from edge_attention.core.jobs import OptimizerSpec as OptimizerSpec
    from edge_attention.job import Encoder as Encoder
    from edge_attention.job import FusionJob as FusionJob
    from edge_attention.job import Head as Head
    from edge_attention.job import QueriesSpec as QueriesSpec
    from edge_attention.parameters import Parameters as Parameters
    from edge_attention.results import Answer as Answer

__all__ = [
    "AlreadyExists",
    "Answer",
    "AsyncClient",
    "Cancelled",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "DuplicateContribution",
    "EdgeAttentionError",
    "EmptyContext",
    "Encoder",
    "FailedPrecondition",
    "FusionJob",
    "Head",
    "Internal",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProgram",
    "InvalidTensor",
    "MessageTooLarge",
    "MissingSamples",
    "NodeLost",
    "NotFound",
    "OptimizerSpec",
    "OutOfMemory",
    "Parameters",
    "PermissionDenied",
    "PrivateTensor",
    "QueriesSpec",
    "ResourceExhausted",
    "StaleVersion",
    "Unavailable",
]

_HOME = {
    "Answer": "results",
    "AsyncClient": "aio",
    "Client": "client",
    "Encoder": "job",
    "FusionJob": "job",
    "Head": "job",
    "MissingSamples": "core.jobs",
    "OptimizerSpec": "core.jobs",
    "Parameters": "parameters",
    "QueriesSpec": "job",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"edge_attention.{_HOME[name]}"), name)
    raise AttributeError(f"module 'edge_attention' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
