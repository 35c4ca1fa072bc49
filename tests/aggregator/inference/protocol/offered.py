"""Models of a test's own for the data plane: one that answers when it is told to, and one of many answers."""

from __future__ import annotations

import asyncio
from types import MappingProxyType

import numpy as np

from aggregator.inference.protocol.served import ModelAnswered
from edge_attention.core.errors import Unavailable
from edge_attention.core.messages.open_inference import (
    ConfiguredInput,
    ConfiguredOutput,
    Datatype,
    InferenceRequest,
    ModelConfig,
    ModelMetadata,
    ModelTransactionPolicy,
    ModelVersionPolicy,
    NamedTensor,
    TensorMetadata,
)


class Doubler:
    """`x` [-1] of INT32 -> `y`, twice it, once the event of the request's id is set; of id "bad" an error."""

    name, version, ready = "doubler", "3", True
    decoupled = False
    joined = MappingProxyType({})

    def __init__(self):
        self.events = {}
        self.asked = []
        self.cancelled = []

    def event(self, id):
        return self.events.setdefault(id, asyncio.Event())

    def metadata(self):
        tensors = [TensorMetadata(name, "INT32", (-1,)) for name in "xy"]
        return ModelMetadata(self.name, (self.version,), "test", (tensors[0],), (tensors[1],))

    def config(self):
        policy = ModelTransactionPolicy(self.decoupled)
        given = ConfiguredInput("x", Datatype.INT32, (-1,))
        made = ConfiguredOutput("y", Datatype.INT32, (-1,))
        return ModelConfig(
            self.name, "test", ModelVersionPolicy(), 0, (given,), (made,), model_transaction_policy=policy
        )

    async def infer(self, request):
        self.asked.append(request)
        try:
            await self.event(request.id).wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        if request.id == "bad":
            raise Unavailable("no node is here")
        return ModelAnswered({"y": 2 * request.feeds["x"]})

    async def stream(self, request):
        yield await self.infer(request)


class Counting(Doubler):
    """Answers each element of `x` by itself."""

    name = "counting"
    decoupled = True

    async def stream(self, request):
        for element in request.feeds["x"]:
            yield ModelAnswered({"y": np.array([element])}, {"last": bool(element == request.feeds["x"][-1])})


class Source:
    """Where these are."""

    def __init__(self, *models):
        self.models = {model.name: model for model in models}
        self.loaded = []

    def find(self, name, version):
        found = self.models.get(name)
        return found if found is not None and version in ("", found.version) else None

    def index(self):
        return ()

    def statistics(self, name, version):
        return ()

    async def load(self, name, parameters, caller):
        self.loaded.append((name, caller))
        return name in self.models

    async def unload(self, name):
        return self.models.pop(name, None) is not None


def asked(id="1", values=(1, 2), model="doubler", **options):
    data = np.array(values, np.int32)
    return InferenceRequest(
        model, id=id, inputs=(NamedTensor("x", "INT32", data.shape, data.tobytes()),), **options
    )
