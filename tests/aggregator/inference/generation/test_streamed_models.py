"""Decoders as decoupled models of the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from aggregator.bounds.budget import Budgets
from aggregator.inference.generation.generator import Generator
from aggregator.inference.generation.metrics import GenerationMetrics
from aggregator.inference.generation.streamed_models import StreamedDecoders
from aggregator.inference.generation.texts import DeploymentTexts
from aggregator.inference.protocol.data_plane import DataPlane
from aggregator.observe.metrics import Metrics
from edge_attention.core.errors import FailedPrecondition, InvalidArgument, NotFound
from edge_attention.core.generation.sampling import Sampling
from edge_attention.core.messages.open_inference import InferenceRequest, NamedTensor
from edge_attention.demo.local_decoder import LocalDecoder
from tests.aggregator.inference.generation.local_sessions import LocalSessions, random_decoder

PROMPT = "to be, or not"


def plane(folder, text):
    decoder = random_decoder()
    if text:
        (folder / "tokenizer.json").write_text(json.dumps({"edge_attention": "bytes"}))
    budgets = Budgets()
    texts = DeploymentTexts(lambda name: ("small-1", folder))
    generator = Generator(LocalSessions({"small": decoder}), texts, budgets, GenerationMetrics(Metrics()))
    source = StreamedDecoders(generator, lambda name: ("3", text))
    return DataPlane([source], budgets), decoder


def text_of(prompt):
    array = np.empty(1, object)
    array[0] = prompt.encode()
    return NamedTensor("text_input", "BYTES", (1,), array)


async def answers(made, tensor, **parameters):
    request = InferenceRequest("small.generate", inputs=(tensor,), id="7", parameters=parameters)
    return [answer async for answer in made.stream(request, "me")]


def outputs(found, name):
    return [one.data for answer in found for one in answer.outputs if one.name == name]


def test_tokens_come_one_answer_after_another(tmp_path):
    made, decoder = plane(tmp_path, text=True)
    expected = LocalDecoder(decoder).generate(PROMPT, 20, Sampling(temperature=1.0, seed=5))
    found = asyncio.run(answers(made, text_of(PROMPT), max_tokens=20, temperature=1, seed=5))
    assert len(found) > 5
    assert tuple(np.concatenate(outputs(found, "output_ids")).tolist()) == expected
    text = b"".join(one[0] for one in outputs(found, "text_output"))
    assert text.decode() == bytes(expected).decode("utf-8", "replace")
    said = {"finish_reason": "length", "prompt_tokens": 13, "completion_tokens": 20, "seed": 5}
    assert [answer.parameters for answer in found] == [{}] * (len(found) - 1) + [said]
    assert {answer.model for answer in found} == {"small.generate"}
    assert [(one.name, one.state) for one in made.repository_index()] == [("small.generate", "READY")]
    assert made.model_config("small.generate").model_transaction_policy.decoupled


def test_a_decoder_without_a_tokenizer_takes_ids(tmp_path):
    made, decoder = plane(tmp_path, text=False)
    ids = np.frombuffer(PROMPT.encode(), np.uint8).astype(np.int64)
    found = asyncio.run(answers(made, NamedTensor("input_ids", "INT64", (13,), ids), max_tokens=6))
    tokens = np.concatenate(outputs(found, "output_ids")).tolist()
    assert tuple(tokens) == LocalDecoder(decoder).generate(PROMPT, 6)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [({"max_tokens": 2.5}, "max_tokens"), ({"beams": 3}, "beams"), ({"temperature": -1.0}, "temperature")],
)
def test_parameters_that_say_nothing_are_refused(tmp_path, parameters, words):
    made, _ = plane(tmp_path, text=True)
    with pytest.raises(InvalidArgument, match=words):
        asyncio.run(answers(made, text_of(PROMPT), **parameters))


def test_it_is_for_streams_alone(tmp_path):
    made, _ = plane(tmp_path, text=True)
    with pytest.raises(FailedPrecondition, match="ModelStreamInfer"):
        asyncio.run(made.infer(InferenceRequest("small.generate", inputs=(text_of(PROMPT),)), "me"))
    for name in ("small", "other.generate"):
        with pytest.raises(NotFound):
            made.require(name, "")
