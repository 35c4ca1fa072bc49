"""A model that is deployed anew under its name, with other weights, while callers ask it.

`y = x w` and `again = x`: a foreign graph in the cells of nodes, of few rows, and of so many that `y` is too
large for a cell's window. Two requests have no answer in common, nor have two versions.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edge_attention import AsyncClient
from edge_attention.core.errors import EdgeAttentionError, NotFound

__all__ = ["Products"]

NAME = "product"
WIDTH, WIDE = 32, 1024
ROWS = (1, 3, 40, 700)
UNDEPLOYED = 4
"""Each so many times it is undeployed first."""


class Products:
    """The model's versions, and what each makes of an input."""

    def __init__(self) -> None:
        self.made = 0
        """Versions that were deployed."""
        self._weights: dict[int, Any] = {}

    async def deploy(self, client: AsyncClient) -> None:
        """With weights that no version before had."""
        number = len(self._weights)
        weight = np.random.default_rng(number).standard_normal((WIDTH, WIDE)).astype(np.float32)
        self._weights[-number - 1] = weight  # until it says which version it is
        served = await client.deploy(_model(weight), NAME, plan="replicate", max_batch=1)
        self._weights[served.info.version] = self._weights.pop(-number - 1)
        self.made += 1

    async def deploy_anew(self, client: AsyncClient, pause: float, until: float) -> None:
        """Again and again, with `pause` seconds between."""
        while time.monotonic() + pause < until:
            await asyncio.sleep(pause)
            with contextlib.suppress(EdgeAttentionError):
                if self.made % UNDEPLOYED == 0:
                    with contextlib.suppress(NotFound):
                        await (await client.model(NAME)).undeploy()
                await self.deploy(client)

    async def ask(self, client: AsyncClient, numbers: np.random.Generator, deadline: float) -> str:
        """What is wrong with an answer; empty: nothing."""
        x = numbers.standard_normal((int(numbers.choice(ROWS)), WIDTH)).astype(np.float32)
        answer = await (await client.model(NAME)).infer({"x": x}, deadline=deadline)
        known = self._weights.get(answer.version)
        weights = [known] if known is not None else [w for number, w in self._weights.items() if number < 0]
        if not any(np.allclose(answer["y"], x.astype(np.float64) @ weight, atol=1e-4) for weight in weights):
            return f"{len(x)} rows by version {answer.version} are not x w"
        return "" if np.array_equal(answer["again"], x) else f"{len(x)} rows do not come back as they were"


def _model(weight: Any) -> bytes:
    value, float32 = helper.make_tensor_value_info, TensorProto.FLOAT
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Identity", ["x"], ["again"])]
    inputs = [value("x", float32, ["rows", WIDTH])]
    outputs = [value("y", float32, ["rows", WIDE]), value("again", float32, ["rows", WIDTH])]
    graph = helper.make_graph(nodes, "product", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    data: bytes = made.SerializeToString()
    return data
