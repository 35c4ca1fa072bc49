"""Models in this process, as a source of the data plane: what the door before it does is not theirs to "
"know."""

from __future__ import annotations

import asyncio
from types import MappingProxyType

import numpy as np

from aggregator.inference.protocol.served import ModelAnswered
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.open_inference import (
    ConfiguredInput,
    ConfiguredOutput,
    Datatype,
    ModelConfig,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ModelVersionPolicy,
    TensorMetadata,
)


class PocketModel:
    """`work(feeds) -> results`; `inputs` and `outputs`: name -> (datatype, shape without the batch)."""

    version, ready = "1", True
    joined = MappingProxyType({})

    def __init__(self, name, inputs, outputs, work, rows=0):
        self.name, self.inputs, self.outputs, self.work, self.rows = name, inputs, outputs, work, rows
        self.asked, self.cancelled = [], 0

    def metadata(self):
        first = (-1,) if self.rows else ()

        def told(tensors):
            return tuple(TensorMetadata(n, d.value, first + shape) for n, (d, shape) in tensors.items())

        return ModelMetadata(self.name, ("1",), "onnxruntime_onnx", told(self.inputs), told(self.outputs))

    def config(self):
        return ModelConfig(
            self.name,
            "onnxruntime_onnx",
            ModelVersionPolicy(),
            self.rows,
            tuple(ConfiguredInput(n, d, shape) for n, (d, shape) in self.inputs.items()),
            tuple(ConfiguredOutput(n, d, shape) for n, (d, shape) in self.outputs.items()),
        )

    async def infer(self, request):
        self.asked.append(request)
        try:
            results = self.work(request.feeds)
            if asyncio.iscoroutine(results):
                results = await results
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return ModelAnswered({name: results[name] for name in request.outputs})


class PocketModels:
    """A source."""

    def __init__(self, *models):
        self.models = {model.name: model for model in models}
        self.changed = []

    def find(self, name, version):
        return self.models.get(name) if version in ("", "1") else None

    def index(self):
        return [ModelIndex(name, "1", "READY") for name in self.models]

    def statistics(self, name, version):
        found = [model for model in self.models if name in ("", model) and version in ("", "1")]
        return [ModelStatistics(one, "1", inference_count=len(self.models[one].asked)) for one in found]

    async def load(self, name, parameters, caller):
        self.changed.append(("load", name, dict(parameters), caller))
        return name in self.models

    async def unload(self, name):
        self.changed.append(("unload", name))
        return self.models.pop(name, None) is not None


def simple():
    """INT32 [-1, 16] twice: their sum and their difference, as Triton's example has it."""
    two = {"INPUT0": (Datatype.INT32, (16,)), "INPUT1": (Datatype.INT32, (16,))}
    out = {"OUTPUT0": (Datatype.INT32, (16,)), "OUTPUT1": (Datatype.INT32, (16,))}

    def work(feeds):
        a, b = feeds["INPUT0"], feeds["INPUT1"]
        return {"OUTPUT0": a + b, "OUTPUT1": a - b}

    return PocketModel("simple", two, out, work, rows=8)


def echo(datatype, name="echo"):
    """Gives back what it is given, of any length."""
    return PocketModel(
        name, {"x": (datatype, (-1,))}, {"y": (datatype, (-1,))}, lambda feeds: {"y": feeds["x"]}
    )


def waits(name="waits"):
    """Never answers."""

    async def work(feeds):
        await asyncio.Event().wait()

    return PocketModel(name, {"x": (Datatype.FP32, (-1,))}, {"y": (Datatype.FP32, (-1,))}, work)


def fails(error: EdgeAttentionError, name="fails"):
    """Answers with that error."""

    def work(feeds):
        raise error

    return PocketModel(name, {"x": (Datatype.FP32, (-1,))}, {"y": (Datatype.FP32, (-1,))}, work)


def twos(shape):
    return np.full(shape, 2, np.int32)
