"""Decoders as decoupled models of the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from house import until

from aggregator.bounds.bounds import GENERATIONS
from aggregator.bounds.budget import Budgets
from aggregator.inference.generation import service
from aggregator.inference.generation.generator import Generator
from aggregator.inference.generation.metrics import GenerationMetrics
from aggregator.inference.generation.request import PROMPT_TOKENS, GenerationRequest
from aggregator.inference.generation.streamed_models import ServedDecoder, StreamedDecoders
from aggregator.inference.generation.texts import DeploymentTexts
from aggregator.inference.protocol import streaming
from aggregator.inference.protocol.data_plane import DataPlane
from aggregator.inference.protocol.statistics import InferenceCounts
from aggregator.inference.protocol.streaming import RequestStream
from aggregator.observe.metrics import Metrics
from edge_attention.core.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from edge_attention.core.generation.sampling import Sampling
from edge_attention.core.messages.inference import GenerateRequest
from edge_attention.core.messages.open_inference import InferenceRequest, NamedTensor, TensorMetadata
from edge_attention.demo.local_decoder import LocalDecoder
from tests.aggregator.inference.generation.local_sessions import LocalSessions, random_decoder

PROMPT = "to be, or not"


def plane(folder, text):
    decoder = random_decoder()
    return parts(folder, text, decoder)[0], decoder


def parts(folder, text, decoder=None):
    """The plane, the generator behind it, its sessions and the budgets."""
    decoder = decoder or random_decoder()
    if text:
        (folder / "tokenizer.json").write_text(json.dumps({"edge_attention": "bytes"}))
    budgets = Budgets()
    texts = DeploymentTexts(lambda name: ("small-1", folder))
    sessions = LocalSessions({"small": decoder})
    generator = Generator(sessions, texts, budgets, GenerationMetrics(Metrics()))
    source = StreamedDecoders(generator, lambda name: ServedDecoder("3", text))
    return DataPlane([source], budgets), generator, sessions, budgets


def text_of(prompt):
    array = np.empty(1, object)
    array[0] = prompt.encode()
    return NamedTensor("text_input", "BYTES", (1,), array)


async def answers(made, tensor, **parameters):
    request = InferenceRequest("small.generate", inputs=(tensor,), id="7", parameters=parameters)
    return [answer async for answer in made.stream(request, "me")]


async def gone(sessions):
    """Until the session of the generation is closed."""
    await until(lambda: sessions.opened and not any(session.open for session in sessions.opened))


def test_the_priority_is_the_sessions_and_the_last_answer_is_labelled(tmp_path):
    made, _, sessions, _ = parts(tmp_path, text=True)
    told = asyncio.run(answers(made, text_of(PROMPT), max_tokens=3, priority=2))[-1].parameters
    assert "exact" not in told
    assert "lacking" not in told
    sessions.inexact = "activations are rounded"
    told = asyncio.run(answers(made, text_of(PROMPT), max_tokens=3))[-1].parameters
    assert (told["exact"], told["lacking"]) == (False, "activations are rounded")
    assert [session.priority for session in sessions.opened] == [2, 0]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"max_tokens": "4"}, "parameter 'max_tokens' is '4'; it must be a whole number"),
        ({"top_k": True}, "parameter 'top_k' is 'True'; it must be a whole number"),
        ({"temperature": "hot"}, "parameter 'temperature' is 'hot'; it must be a number"),
        ({"speculate": 1}, "parameter 'speculate' is '1'; it must be true or false"),
        ({"stop": 1}, "parameter 'stop' is '1'; it must be a text"),
        ({"nonsense": 1}, "parameter 'nonsense' is none of max_tokens,.* priority"),
    ],
)
def test_a_parameter_that_is_wrong_is_named_with_what_it_must_be(parameters, said, tmp_path):
    made, *_ = parts(tmp_path, text=True)
    with pytest.raises(InvalidArgument, match=said):
        asyncio.run(answers(made, text_of(PROMPT), **parameters))


def test_a_stream_that_nobody_reads_ends_and_gives_back_what_it_held(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "UNREAD_SECONDS", 0.05)
    monkeypatch.setattr(streaming, "AT_ONCE", 2)
    made, _, sessions, budgets = parts(tmp_path, text=True)

    async def requests():
        asked = {"max_tokens": 100, "speculate": False}
        yield InferenceRequest("small.generate", inputs=(text_of(PROMPT),), id="7", parameters=asked)

    async def run():
        stream = RequestStream(made, budgets, "me")
        async with aclosing(stream.answers(requests())) as answers:
            await anext(answers)
            await gone(sessions)  # while nobody reads
            rest = [answer async for answer in answers]
        assert "nobody has read" in rest[-1].error
        assert not budgets[GENERATIONS].used

    asyncio.run(run())


def test_a_generation_that_nobody_reads_ends_after_its_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "UNREAD_SECONDS", 0.05)
    _, generator, sessions, _ = parts(tmp_path, text=True)
    said = []

    async def abort(code, details, metadata):
        said.append((code, details))

    call = SimpleNamespace(time_remaining=lambda: None, peer=lambda: "me", abort=abort)
    request = GenerateRequest("small", PROMPT, max_tokens=100, deadline_seconds=2.0)

    async def unread():
        async for _ in service.GenerationApi(generator).generate(request, call):
            await asyncio.Event().wait()

    async def run():
        reader = asyncio.create_task(unread())
        await asyncio.wait([reader], timeout=180)
        assert reader.cancelled()
        await gone(sessions)
        await until(lambda: said)

    asyncio.run(run())
    ((code, details),) = said
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "was not read to its end" in details


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
    *before, last = [answer.parameters for answer in found]
    assert before == [{"triton_final_response": False}] * (len(found) - 1)
    assert last == said | {"triton_final_response": True}
    assert {answer.model for answer in found} == {"small.generate"}
    assert [(one.name, one.state) for one in made.repository_index()] == [("small.generate", "READY")]
    assert made.model_config("small.generate").model_transaction_policy.decoupled


def test_penalties_count_what_has_come(tmp_path):
    made, decoder = plane(tmp_path, text=True)
    penalties = {"frequency_penalty": 0.5, "presence_penalty": -0.25}
    found = asyncio.run(answers(made, text_of(PROMPT), max_tokens=20, **penalties))
    ids = np.concatenate(outputs(found, "output_ids")).tolist()
    assert tuple(ids) == LocalDecoder(decoder).generate(PROMPT, 20, Sampling(**penalties))
    assert tuple(ids) != LocalDecoder(decoder).generate(PROMPT, 20)


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
    with pytest.raises(Unimplemented, match="ModelInfer RPC doesn't support models with decoupled"):
        asyncio.run(made.infer(InferenceRequest("small.generate", inputs=(text_of(PROMPT),)), "me"))
    for name in ("small", "other.generate"):
        with pytest.raises(NotFound):
            made.require(name, "")


def test_where_an_encoder_takes_arrays_these_are_the_inputs(tmp_path):
    """And how the decoder begins is a parameter, or its files say so."""
    decoder = random_decoder()
    _, generator, sessions, budgets = parts(tmp_path, text=False, decoder=decoder)
    form, sessions_open, opened = sessions.form, sessions.open, []
    sessions.form = lambda model: SimpleNamespace(**{**vars(form(model)), "states": "states"})

    async def opens(model, owner, seconds, inputs=None, ids=(), priority=0, greedy=False):
        opened.append(inputs)
        return await sessions_open(model, owner, seconds)

    sessions.open = opens
    features = TensorMetadata("input_features", "FP32", (-1, 8, 24))
    source = StreamedDecoders(generator, lambda name: ServedDecoder("3", False, (features,)))
    made = DataPlane([source], budgets)
    given = NamedTensor("input_features", "FP32", (1, 8, 24), np.ones((1, 8, 24), np.float32))
    assert source.find("small.generate", "").metadata().inputs == (features,)
    begun = LocalDecoder(decoder).generate("BC", 6, Sampling())
    found = asyncio.run(answers(made, given, max_tokens=6, decoder_input_ids="66,67"))
    assert tuple(int(t) for one in outputs(found, "output_ids") for t in one) == begun
    assert opened[0]["input_features"].shape == (1, 8, 24)
    with pytest.raises(InvalidArgument, match="no list of token ids"):
        asyncio.run(answers(made, given, decoder_input_ids="x"))
    with pytest.raises(InvalidArgument, match="bound prompt-tokens"):
        asyncio.run(answers(made, given, decoder_input_ids="66," * PROMPT_TOKENS + "67"))
    padded = "66" + " " * 20 * PROMPT_TOKENS + ",67"  # what is behind so many characters counts, too
    found = asyncio.run(answers(made, given, max_tokens=6, decoder_input_ids=padded))
    assert tuple(int(t) for one in outputs(found, "output_ids") for t in one) == begun
    with pytest.raises(FailedPrecondition, match="decoder_start_token_id"):
        asyncio.run(answers(made, given))


def test_what_clients_of_triton_send_beside_says_nothing_of_a_text(tmp_path):
    """Who asks for an empty last answer has it: it may drop whatever that brings."""
    made, decoder = plane(tmp_path, text=True)
    sequence = {"sequence_id": 7, "sequence_start": True, "sequence_end": False}
    asked = {"max_tokens": 6, "triton_enable_empty_final_response": True, **sequence}
    *found, last = asyncio.run(answers(made, text_of(PROMPT), **asked))
    tokens = np.concatenate(outputs(found, "output_ids")).tolist()
    assert tuple(tokens) == LocalDecoder(decoder).generate(PROMPT, 6)
    assert not any(answer.parameters["triton_final_response"] for answer in found)
    assert found[-1].parameters["finish_reason"] == "length"
    assert (last.outputs, last.parameters, last.id) == ((), {"triton_final_response": True}, "7")


def test_it_is_loaded_unloaded_and_counted_with_its_decoder(tmp_path):
    _, generator, _, budgets = parts(tmp_path, text=True)
    counts, serving = InferenceCounts(), [ServedDecoder("3", True)]
    source = StreamedDecoders(generator, lambda name: serving[0] if serving else None, counts)
    made = DataPlane([source], budgets)
    counts.failed("small.generate", 3, 0.5)
    for name, version in (("", ""), ("small.generate", ""), ("small.generate", "3")):
        (told,) = made.model_statistics(name, version)
        assert (told.name, told.version, told.inference_stats.fail.count) == ("small.generate", "3", 1)
    asyncio.run(made.load("small.generate"))
    with pytest.raises(FailedPrecondition, match="goes with its decoder; unload 'small'"):
        asyncio.run(made.unload("small.generate"))
    serving.clear()  # the decoder was unloaded
    with pytest.raises(FailedPrecondition, match="goes with its decoder; load 'small'"):
        asyncio.run(made.load("small.generate"))
    assert not made.model_ready("small.generate")
    assert made.repository_index() == ()
    for name in ("small", "nobody.generate"):
        with pytest.raises(NotFound):
            asyncio.run(made.load(name))
        with pytest.raises(NotFound):
            asyncio.run(made.unload(name))


def test_whoever_ends_a_generation_it_is_told(tmp_path):
    _, generator, _, _ = parts(tmp_path, text=True)
    told = []
    generator._ended = lambda model, seconds, usage: told.append((model, usage and usage.completion_tokens))

    async def run():
        request = GenerationRequest("small", PROMPT, 5)
        async for _ in generator.generate(request, "me", 60.0):
            pass
        async with aclosing(generator.generate(request, "me", 60.0)) as events:
            await anext(events)
        with pytest.raises(InvalidArgument):
            await anext(generator.generate(GenerationRequest("small", PROMPT * 1000, 5), "me", 60.0))

    asyncio.run(run())
    assert told == [("small", 5), ("small", None), ("small", None)]


def test_answers_are_of_the_version_that_they_say(tmp_path):
    async def run():
        asked, _, sessions, _ = parts(tmp_path, True)
        model = asked.require("small.generate", "3")
        sessions.version = lambda model: "small-4"
        checked = SimpleNamespace(
            feeds={"text_input": text_of(PROMPT).data}, parameters={}, priority=0, caller="me", seconds=60.0,
            outputs=("output_ids",),
        )  # fmt: skip
        with pytest.raises(Unavailable, match="another version of model 'small' serves by now: ask again"):
            [answer async for answer in model.stream(checked)]
        assert not sessions.opened

    asyncio.run(run())
