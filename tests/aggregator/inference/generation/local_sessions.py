"""Sessions of decoders within the process, as `decoding` has them over nodes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_attention.core.errors import DeadlineExceeded, NotFound
from edge_attention.demo.local_decoder import LocalDecoder
from edge_attention.graphs.builders import attention_decoder, attention_sequences


def whole_model(length, vocabulary=256, seed=0):
    """The model of `random_decoder`, of all tokens at once."""
    return attention_sequences(vocabulary, length, 24, 3, 2, causal=True, rotary=True, hidden=32, seed=seed)


def exact_log_probabilities(tokens, whole):
    """By the model `whole`, of all tokens at once, in float64: [tokens, vocabulary], of each one's next."""
    model = onnx.load_from_string(whole)

    def widened(tensor):
        values = numpy_helper.to_array(tensor)
        return numpy_helper.from_array(values.astype(np.float64), tensor.name)

    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(widened(tensor))
    for node in model.graph.node:
        for one in node.attribute:
            if one.HasField("t") and one.t.data_type == onnx.TensorProto.FLOAT:
                one.t.CopyFrom(widened(one.t))
    logits = ReferenceEvaluator(model).run(["logits"], {"tokens": np.array([tokens], np.int64)})[0][0]
    assert logits.dtype == np.float64
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def random_decoder(vocabulary=256, seed=0):
    """A small decoder whose weights say nothing."""
    file = whole_model(8, vocabulary, seed)
    weights = {one.name: numpy_helper.to_array(one) for one in onnx.load_from_string(file).graph.initializer}
    return attention_decoder(weights, 3, 2048)


@dataclass
class LocalSession:
    """`slow`: seconds of each extend."""

    decoder: LocalDecoder
    open: bool = True
    priority: int = 0
    greedy: bool = False
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
        session = LocalSession(LocalDecoder(self._models[model]), priority=priority, greedy=greedy)
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
