"""Graphs tried out in ONNX Runtime, on the CPU, and random data for their inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.onnx_file import TensorSpec

__all__ = ["Runner", "sample"]


class Runner:
    """One graph in ONNX Runtime, on the CPU; a call binds the inputs the graph has and ignores other feeds.

    Raises InvalidGraph where ONNX Runtime cannot load or run it.
    """

    def __init__(self, graph: bytes, place: str) -> None:
        import onnxruntime  # only those who run graphs need it

        self._place = place
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise InvalidGraph(f"{place}: ONNX Runtime cannot load it: {error}") from error
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __call__(
        self, outputs: list[str], feeds: Mapping[str, NDArray[np.generic]]
    ) -> list[NDArray[np.float32]]:
        try:
            return list(self._session.run(outputs, {name: feeds[name] for name in self._inputs}))
        except Exception as error:
            raise InvalidGraph(f"{self._place}: ONNX Runtime cannot run it: {error}") from error


def sample(spec: TensorSpec, batch: int, rng: np.random.Generator) -> NDArray[np.generic]:
    """Random data of that dtype and shape: normal, or 0 and 1 for integers (valid labels and indices)."""
    dtype, shape = spec
    size = tuple(batch if dim is None else dim for dim in shape)
    return (rng.standard_normal(size) if dtype.kind == "f" else rng.integers(2, size=size)).astype(dtype)
