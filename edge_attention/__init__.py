"""One attention model over many small machines. `Client` is where a program begins; see docs/client.md.

Names load when they are first used: the daemons import their parts of this package and never the client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_attention.aio import AsyncClient as AsyncClient
    from edge_attention.client import Client as Client
    from edge_attention.core.errors import *  # noqa: F403
    from edge_attention.core.jobs import MissingSamples as MissingSamples
    from edge_attention.core.jobs import OptimizerSpec as OptimizerSpec
    from edge_attention.job import Encoder as Encoder
    from edge_attention.job import FusionJob as FusionJob
    from edge_attention.job import Head as Head
    from edge_attention.job import QueriesSpec as QueriesSpec
    from edge_attention.parameters import Parameters as Parameters
    from edge_attention.results import Answer as Answer

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
    if name.startswith("_"):
        raise AttributeError(name)
    errors = import_module("edge_attention.core.errors")
    if name in errors.__all__:
        return getattr(errors, name)
    if name in _HOME:
        return getattr(import_module(f"edge_attention.{_HOME[name]}"), name)
    raise AttributeError(f"module 'edge_attention' has no attribute {name!r}")


def __dir__() -> list[str]:
    errors = import_module("edge_attention.core.errors")
    return sorted({*globals(), *_HOME, *errors.__all__})
