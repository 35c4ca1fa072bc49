"""One attention model over many small machines. `Client` is where a program begins; see docs/client.md.

Names load when they are first used: the daemons import their parts of this package and never the client.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Since 1.29 ONNX Runtime's wheels for Linux report to their maker (machine, providers, names and hashes of
# graphs), and keep an id of the device in the home folder. Nothing leaves a box of ours that its operator did
# not allow. It is read once, as onnxruntime loads, so it stands before every import of ours;
# ORT_DISABLE_TELEMETRY=0 in the environment wins.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from edge_attention.core.errors import (
    AlreadyExists,
    Cancelled,
    Damaged,
    DataLoss,
    DeadlineExceeded,
    DiskFull,
    DuplicateContribution,
    EdgeAttentionError,
    EmptyContext,
    FailedPrecondition,
    GraphDied,
    Internal,
    InvalidArgument,
    InvalidGraph,
    InvalidProgram,
    InvalidTensor,
    MessageTooLarge,
    NodeFailed,
    NotFinite,
    NotFound,
    OutOfMemory,
    Overloaded,
    Overtaken,
    PermissionDenied,
    PrivateLimit,
    PrivateTensor,
    ResourceExhausted,
    Revoked,
    StaleVersion,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    UnknownProgram,
    Unreachable,
)

if TYPE_CHECKING:
    from edge_attention.client.aio import AsyncClient as AsyncClient
    from edge_attention.client.results import Answer as Answer
    from edge_attention.client.results import InexactAnswer as InexactAnswer
    from edge_attention.client.sync import Client as Client
    from edge_attention.core.messages.training import ConsensusSpec as ConsensusSpec
    from edge_attention.core.messages.training import EncodingSpec as EncodingSpec
    from edge_attention.core.messages.training import LocalSpec as LocalSpec
    from edge_attention.core.messages.training import LossSpec as LossSpec
    from edge_attention.core.messages.training import MissingSamples as MissingSamples
    from edge_attention.core.messages.training import NewHead as NewHead
    from edge_attention.core.messages.training import OptimizerSpec as OptimizerSpec
    from edge_attention.core.messages.training import PushSpec as PushSpec
    from edge_attention.core.messages.training import ScheduleSpec as ScheduleSpec
    from edge_attention.core.messages.training import SelectionSpec as SelectionSpec
    from edge_attention.core.messages.training import SplitData as SplitData
    from edge_attention.core.messages.training import StopSpec as StopSpec
    from edge_attention.core.messages.training import StrategySpec as StrategySpec
    from edge_attention.jobs.columns import JobColumn as JobColumn
    from edge_attention.jobs.federated_job import FederatedJob as FederatedJob
    from edge_attention.jobs.federated_job import FederatedModel as FederatedModel
    from edge_attention.jobs.job import Encoder as Encoder
    from edge_attention.jobs.job import FusionJob as FusionJob
    from edge_attention.jobs.job import Head as Head
    from edge_attention.jobs.job import QueriesSpec as QueriesSpec
    from edge_attention.jobs.job_file import read_job as read_job
    from edge_attention.jobs.parameters import Parameters as Parameters
    from edge_attention.jobs.split_job import SplitJob as SplitJob

__all__ = [
    "AlreadyExists",
    "Answer",
    "AsyncClient",
    "Cancelled",
    "Client",
    "ConsensusSpec",
    "Damaged",
    "DataLoss",
    "DeadlineExceeded",
    "DiskFull",
    "DuplicateContribution",
    "EdgeAttentionError",
    "EmptyContext",
    "Encoder",
    "EncodingSpec",
    "FailedPrecondition",
    "FederatedJob",
    "FederatedModel",
    "FusionJob",
    "GraphDied",
    "Head",
    "InexactAnswer",
    "Internal",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProgram",
    "InvalidTensor",
    "JobColumn",
    "LocalSpec",
    "LossSpec",
    "MessageTooLarge",
    "MissingSamples",
    "NewHead",
    "NodeFailed",
    "NotFinite",
    "NotFound",
    "OptimizerSpec",
    "OutOfMemory",
    "Overloaded",
    "Overtaken",
    "Parameters",
    "PermissionDenied",
    "PrivateLimit",
    "PrivateTensor",
    "PushSpec",
    "QueriesSpec",
    "ResourceExhausted",
    "Revoked",
    "ScheduleSpec",
    "SelectionSpec",
    "SplitData",
    "SplitJob",
    "StaleVersion",
    "StopSpec",
    "StrategySpec",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UnknownProgram",
    "Unreachable",
    "read_job",
]

_HOME = {
    "Answer": "client.results",
    "InexactAnswer": "client.results",
    "AsyncClient": "client.aio",
    "Client": "client.sync",
    "ConsensusSpec": "core.messages.training",
    "Encoder": "jobs.job",
    "EncodingSpec": "core.messages.training",
    "FederatedJob": "jobs.federated_job",
    "FederatedModel": "jobs.federated_job",
    "JobColumn": "jobs.columns",
    "FusionJob": "jobs.job",
    "Head": "jobs.job",
    "LocalSpec": "core.messages.training",
    "LossSpec": "core.messages.training",
    "MissingSamples": "core.messages.training",
    "NewHead": "core.messages.training",
    "OptimizerSpec": "core.messages.training",
    "Parameters": "jobs.parameters",
    "PushSpec": "core.messages.training",
    "QueriesSpec": "jobs.job",
    "ScheduleSpec": "core.messages.training",
    "SelectionSpec": "core.messages.training",
    "SplitData": "core.messages.training",
    "SplitJob": "jobs.split_job",
    "StopSpec": "core.messages.training",
    "StrategySpec": "core.messages.training",
    "read_job": "jobs.job_file",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"edge_attention.{_HOME[name]}"), name)
    raise AttributeError(f"module 'edge_attention' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
