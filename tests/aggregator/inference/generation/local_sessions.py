"""Sessions of decoders within the process, as `decoding` has them over nodes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import onnx
from onnx import numpy_helper

from edge_attention.core.errors import DeadlineExceeded, NotFound
from edge_attention.demo.local_decoder import LocalDecoder
from edge_attention.graphs.builders import attention_decoder, attention_sequences


def random_decoder(vocabulary=256, seed=0):
    """A small decoder whose weights say nothing."""
    file = attention_sequences(vocabulary, 8, 24, 3, 2, causal=True, rotary=True, hidden=32, seed=seed)
    weights = {one.name: numpy_helper.to_array(one) for one in onnx.load_from_string(file).graph.initializer}
    return attention_decoder(weights, 3, 2048)


@dataclass
class LocalSession:
    """`slow`: seconds of each extend."""

    decoder: LocalDecoder
    open: bool = True
    priority: int = 0
    sizes: list = field(default_factory=list)


class LocalSessions:
    """`slow`: seconds that each extend takes besides; `inexact`: why logits are not the whole model's."""

    def __init__(self, models, length=2000, slow=0.0):
        self._models = models
        self._length = length
        self._vocabulary = {name: LocalDecoder(model).vocabulary for name, model in models.items()}
        self.slow = slow
        self.inexact = ""
        self.opened = []

    def models(self):
        return sorted(self._models)

    def form(self, model):
        if model not in self._models:
            raise NotFound(f"no model {model!r} is deployed")
        return SimpleNamespace(vocabulary=self._vocabulary[model], length=self._length, states="")

    def version(self, model):
        return f"{model}-1"

    async def open(self, model, owner, seconds, inputs=None, ids=(), priority=0, greedy=False):
        session = LocalSession(LocalDecoder(self._models[model]), priority=priority)
        self.opened.append(session)
        return session

    def lacking(self, session):
        return self.inexact

    async def extend(self, session, ids, seconds):
        assert session.open
        assert ids.dtype == np.int64
        if self.slow > seconds:
            await asyncio.sleep(seconds)
            raise DeadlineExceeded("the model takes its time")
        await asyncio.sleep(self.slow)
        session.sizes.append(len(ids))
        assert session.decoder.length + len(ids) <= self._length
        return session.decoder.extend(ids)

    async def truncate(self, session, length):
        assert 0 < length < session.decoder.length
        session.decoder.truncate(length)

    async def close(self, session):
        session.open = False
