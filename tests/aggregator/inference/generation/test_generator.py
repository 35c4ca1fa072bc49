"""Generations over sessions within the process: what comes is what one machine gives, and nothing stays."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import time
from contextlib import aclosing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from aggregator.bounds.budget import Budgets
from aggregator.inference.generation import generator as generators
from aggregator.inference.generation import texts as generation_texts
from aggregator.inference.generation.coders import BytesCoder, read_begins
from aggregator.inference.generation.generator import Generator
from aggregator.inference.generation.metrics import GenerationMetrics
from aggregator.inference.generation.request import GenerationRequest, PromptTooLong
from aggregator.inference.generation.texts import DeploymentTexts
from aggregator.observe.metrics import Metrics
from edge_attention.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Overloaded,
)
from edge_attention.core.generation.course import GenerationCourse
from edge_attention.core.generation.sampling import Sampling
from edge_attention.demo.local_decoder import LocalDecoder
from tests.aggregator.inference.generation.local_sessions import LocalSessions, random_decoder

PROMPT = "to be, or not to be, that is the question: to be, or not"


@pytest.fixture(scope="module")
def decoder():
    return random_decoder()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"edge_attention": "bytes"}))
    return tmp_path


def generator_of(decoder, folder, **settings):
    sessions = LocalSessions({"small": decoder}, **settings)
    texts = DeploymentTexts(lambda name: ("small-1", folder))
    return Generator(sessions, texts, Budgets(), GenerationMetrics(Metrics())), sessions


async def everything(generator, request, seconds=60.0):
    return [event async for event in generator.generate(request, "owner", seconds)]


def test_what_is_left_is_told_to_who_encodes_and_decodes(decoder, folder, monkeypatch):
    left = []

    class Told(BytesCoder):
        async def encode(self, text, special=True, seconds=0.0):
            left.append(seconds)
            return await super().encode(text, special)

        async def decode(self, windows, seconds=0.0):
            left.append(seconds)
            if len(left) > 5:
                raise DeadlineExceeded("others ask it, too")
            return await super().decode(windows)

    monkeypatch.setattr(generation_texts, "BytesCoder", Told)
    generator, sessions = generator_of(decoder, folder)
    with pytest.raises(DeadlineExceeded, match=r"had written 4 of 40 tokens at the deadline \(others ask"):
        asyncio.run(everything(generator, GenerationRequest("small", PROMPT, 40, speculate=False)))
    assert all(0 < seconds <= 60 for seconds in left)
    assert left == sorted(left, reverse=True)
    assert not any(session.open for session in sessions.opened)


@pytest.mark.parametrize("words", [(), ("never said",)])
def test_a_deadline_between_two_tokens_is_said_once(decoder, folder, monkeypatch, words):
    generator, sessions = generator_of(decoder, folder)
    late = [0.0]
    monkeypatch.setattr(generators, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late[0]))
    request = GenerationRequest("small", PROMPT, 40, speculate=False, stop=words)

    async def until_late():
        async for _ in generator.generate(request, "owner", 60.0):
            late[0] = 100.0

    with pytest.raises(DeadlineExceeded) as raised:
        asyncio.run(until_late())
    assert re.fullmatch(
        r"model 'small' had written \d+ of 40 tokens at the deadline \([^()]+\); ask for fewer, or with a "
        r"longer one",
        raised.value.message,
    )
    assert not any(session.open for session in sessions.opened)


def alone(decoder, prompt, count, sampling):
    local = LocalDecoder(decoder)
    course = GenerationCourse(list(prompt), sampling, count)
    while not course.finish:
        course.take(local.extend(np.array(course.ask())))
    return tuple(course.tokens[len(prompt) :])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.2, "seed": 4},
        {"temperature": 1.0, "top_p": 0.8, "seed": -9},
        {"frequency_penalty": 0.02},
        {"presence_penalty": -1.5, "temperature": 0.3, "seed": 2},
        {"logit_bias": ((116, 3.0), (111, 3.0), (32, -100.0)), "repetition_penalty": 1.05},
    ],
)
def test_it_gives_what_one_machine_gives_with_guesses_and_without(decoder, folder, settings):
    expected = alone(decoder, PROMPT.encode(), 120, Sampling(**settings))
    for speculate in (True, False):
        generator, sessions = generator_of(decoder, folder)
        request = GenerationRequest("small", PROMPT, 120, speculate=speculate, **settings)
        events = asyncio.run(everything(generator, request))
        assert tuple(token for event in events for token in event.tokens) == expected
        assert "".join(event.text for event in events) == bytes(expected).decode("utf-8", "replace")
        usage = events[-1].usage
        assert events[-1].finish == "length"
        assert [event.usage for event in events[:-1]] == [None] * (len(events) - 1)
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(PROMPT), 120)
        assert usage.trips == len(sessions.opened[0].sizes)
        assert not sessions.opened[0].open
        if not speculate:
            assert usage.guessed == 0


def test_nodes_go_ahead_with_the_likeliest_token_only_where_that_is_the_rule(decoder, folder):
    for settings, greedy in (
        ({}, True),
        ({"logprobs": 2, "echo": True}, True),
        ({"presence_penalty": 0.1}, False),
        ({"frequency_penalty": -0.1}, False),
        ({"logit_bias": ((0, 1.0),)}, False),
        ({"temperature": 1.0}, False),
    ):
        generator, sessions = generator_of(decoder, folder)
        asyncio.run(everything(generator, GenerationRequest("small", PROMPT, 4, **settings)))
        assert [session.greedy for session in sessions.opened] == [greedy], settings


def test_the_session_has_the_priority_and_the_usage_says_what_the_logits_lack(decoder, folder):
    for inexact, priority in (("", 0), ("activations are rounded", 3)):
        generator, sessions = generator_of(decoder, folder)
        sessions.inexact = inexact
        events = asyncio.run(everything(generator, GenerationRequest("small", PROMPT, 4, priority=priority)))
        assert [session.priority for session in sessions.opened] == [priority]
        assert events[-1].usage.lacking == inexact
    for priority in (-1, 17):
        with pytest.raises(InvalidArgument, match=r"priority is -?\d+; 1 goes first, 16 last, 0 is 8"):
            asyncio.run(everything(generator, GenerationRequest("small", PROMPT, 4, priority=priority)))


def test_the_seed_that_was_chosen_gives_the_same_again(decoder, folder):
    generator, _ = generator_of(decoder, folder)
    first = asyncio.run(everything(generator, GenerationRequest("small", PROMPT, 40, temperature=2.0)))
    seed = first[-1].usage.seed
    again = asyncio.run(
        everything(generator, GenerationRequest("small", PROMPT, 40, temperature=2.0, seed=seed))
    )
    tokens = [t for event in first for t in event.tokens]
    assert tokens == [t for event in again for t in event.tokens]
    other = asyncio.run(
        everything(generator, GenerationRequest("small", PROMPT, 40, temperature=2.0, seed=seed ^ 1))
    )
    assert tokens != [t for event in other for t in event.tokens]


def test_token_ids_need_no_tokenizer(decoder, tmp_path):
    generator, _ = generator_of(decoder, tmp_path)
    events = asyncio.run(everything(generator, GenerationRequest("small", tuple(PROMPT.encode()), 10)))
    assert tuple(t for e in events for t in e.tokens) == alone(decoder, PROMPT.encode(), 10, Sampling())
    assert {event.text for event in events} == {""}
    with pytest.raises(FailedPrecondition, match="no tokenizer"):
        asyncio.run(everything(generator, GenerationRequest("small", "a text", 10)))


def test_a_stop_word_ends_it_and_is_not_given_out(decoder, folder):
    whole = alone(decoder, PROMPT.encode(), 200, Sampling(temperature=1.5, seed=1))
    text = bytes(whole).decode("utf-8", "replace")
    word = text[50:53]
    generator, sessions = generator_of(decoder, folder)
    request = GenerationRequest("small", PROMPT, 200, temperature=1.5, seed=1, stop=(word,))
    events = asyncio.run(everything(generator, request))
    assert "".join(event.text for event in events) == text[: text.index(word)]
    assert events[-1].finish == "stop"
    assert events[-1].usage.completion_tokens < 100
    assert not sessions.opened[0].open


def test_a_token_that_ends_the_text_ends_it(decoder, folder):
    whole = alone(decoder, PROMPT.encode(), 100, Sampling(temperature=1.5, seed=1))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [whole[30], 300]}))
    generator, _ = generator_of(decoder, folder)
    request = GenerationRequest("small", PROMPT, 100, temperature=1.5, seed=1)
    events = asyncio.run(everything(generator, request))
    expected = whole[: whole.index(whole[30])]
    assert tuple(t for e in events for t in e.tokens) == expected
    assert events[-1].finish == "stop"
    assert "".join(e.text for e in events) == bytes(expected).decode("utf-8", "replace")


def test_a_session_ends_at_its_longest(decoder, folder):
    generator, _ = generator_of(decoder, folder, length=len(PROMPT) + 20)
    events = asyncio.run(everything(generator, GenerationRequest("small", PROMPT, 500)))
    assert events[-1].finish == "length"
    assert events[-1].usage.completion_tokens == 21
    with pytest.raises(PromptTooLong, match=r"session of model 'small' has .*; send a shorter one"):
        asyncio.run(everything(generator, GenerationRequest("small", PROMPT * 2, 1)))
    generator, _ = generator_of(decoder, folder, length=len(PROMPT))
    (event,) = asyncio.run(everything(generator, GenerationRequest("small", PROMPT, 5)))
    assert (len(event.tokens), event.finish) == (1, "length")  # it needs no place itself


def test_a_deadline_says_how_far_it_came(decoder, folder):
    generator, sessions = generator_of(decoder, folder, slow=0.05)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(everything(generator, GenerationRequest("small", PROMPT, 1000), 0.4))
    assert not sessions.opened[0].open


def test_who_leaves_frees_the_session_at_once(decoder, folder):
    generator, sessions = generator_of(decoder, folder)

    async def leave():
        async with aclosing(
            generator.generate(GenerationRequest("small", PROMPT, 1000), "owner", 60.0)
        ) as events:
            async for _ in events:
                break
        assert not sessions.opened[0].open

        async def read():
            await everything(generator, GenerationRequest("small", PROMPT, 1000))

        sessions.slow = 60.0
        reading = asyncio.create_task(read())
        async with asyncio.timeout(180):
            while len(sessions.opened) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not sessions.opened[1].open

    asyncio.run(leave())


@pytest.mark.parametrize("settings", [{}, {"speculate": True}, {"temperature": 1.0, "seed": 3}])
def test_the_next_trip_is_under_way_when_a_token_is_told(decoder, folder, settings):
    generator, sessions = generator_of(decoder, folder, slow=0.01)
    begun: list[int] = []
    extend = sessions.extend

    async def counted(session, ids, seconds):
        begun.append(len(ids))
        return await extend(session, ids, seconds)

    sessions.extend = counted

    async def read(request):
        found, behind = [], []
        begun.clear()
        async with aclosing(generator.generate(request, "owner", 60.0)) as events:
            async for event in events:
                found.append(event)
                behind.append(len(begun) - len(sessions.opened[-1].sizes))
        return found, behind

    _, behind = asyncio.run(read(GenerationRequest("small", PROMPT, 30, **settings)))
    assert behind[-1] == 0, "the last one has none behind it"
    assert sum(behind[:-1]) == len(behind) - 1
    # What it has to look for in the text may end it: then no trip is made that may be for nothing.
    _, behind = asyncio.run(read(GenerationRequest("small", PROMPT, 30, stop=("no such text",), **settings)))
    assert not any(behind)


def test_a_trip_that_nobody_waits_for_any_more_may_fail(decoder, folder, caplog):
    generator, sessions = generator_of(decoder, folder)

    async def leave():
        async with aclosing(
            generator.generate(GenerationRequest("small", PROMPT, 1000), "owner", 60.0)
        ) as events:
            async for _ in events:
                sessions.opened[0].open = False  # the trip under way meets an error
                await asyncio.sleep(0.01)
                break
        gc.collect()

    asyncio.run(leave())
    assert not caplog.records


def test_what_goes_on_at_once_has_a_bound(decoder, folder):
    generator, _ = generator_of(decoder, folder, slow=0.01)

    async def many():
        async with asyncio.TaskGroup() as tasks:
            found = [
                tasks.create_task(everything(generator, GenerationRequest("small", PROMPT, 2)))
                for _ in range(100)
            ]
        return found

    assert len(asyncio.run(many())) == 100

    async def refused():
        streams = [
            generator.generate(GenerationRequest("small", (1,), 100), "owner", 60.0) for _ in range(200)
        ]
        try:
            for stream in streams[:128]:
                await anext(stream)
            with pytest.raises(Overloaded, match="generations"):
                await anext(streams[128])
        finally:
            for stream in streams:
                await stream.aclose()

    asyncio.run(refused())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "generation-tokens"),
        ({"prompt": ""}, "empty"),
        ({"prompt": (256,)}, "token 256"),
        ({"prompt": (1,) * 40_000}, "prompt-tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"repetition_penalty": 1e-310}, "repetition_penalty"),
        ({"stop": ("",)}, "stop word"),
    ],
)
def test_what_no_model_could_do_is_refused(decoder, folder, settings, words):
    generator, sessions = generator_of(decoder, folder)
    request = GenerationRequest(**{"model": "small", "prompt": PROMPT, "max_tokens": 5, **settings})
    with pytest.raises(InvalidArgument, match=words):
        asyncio.run(everything(generator, request))
    assert not sessions.opened
    with pytest.raises(NotFound):
        asyncio.run(everything(generator, GenerationRequest("other", PROMPT, 5)))


def test_with_what_a_decoder_beside_an_encoder_begins_is_said_by_its_files(tmp_path):
    config = tmp_path / "generation_config.json"
    assert read_begins(tmp_path) == ()
    for said, begins in (
        ({"eos_token_id": 1}, ()),
        ({"decoder_start_token_id": 7}, (7,)),
        ({"decoder_start_token_id": 7, "forced_decoder_ids": [[1, 3], [2, 4]]}, (7, 3, 4)),
        ({"decoder_start_token_id": 7, "forced_decoder_ids": [[1, None], [2, 4]]}, (7,)),
        ({"decoder_start_token_id": 7, "forced_decoder_ids": [[2, 4]]}, (7,)),
        ({"decoder_start_token_id": 7, "forced_bos_token_id": 0}, (7, 0)),
        ({"decoder_start_token_id": 7, "forced_bos_token_id": None}, (7,)),
        ({"decoder_start_token_id": 7, "forced_bos_token_id": 0, "forced_decoder_ids": [[1, 3]]}, (7, 3)),
        ({"decoder_start_token_id": 7, "forced_bos_token_id": 0, "forced_decoder_ids": [[1, None]]}, (7, 0)),
        ({"forced_bos_token_id": 0}, ()),
    ):
        config.write_text(json.dumps(said))
        assert read_begins(tmp_path) == begins
    for wrong in (-1, "7", 1.5, True):
        config.write_text(json.dumps({"decoder_start_token_id": wrong}))
        with pytest.raises(InvalidArgument, match="decoder_start_token_id"):
            read_begins(tmp_path)
        config.write_text(json.dumps({"decoder_start_token_id": 7, "forced_bos_token_id": wrong}))
        with pytest.raises(InvalidArgument, match="forced_bos_token_id"):
            read_begins(tmp_path)


def test_a_prompt_or_inputs_go_to_the_encoder_and_the_decoder_begins_as_it_must(decoder, folder):
    generator, sessions = generator_of(decoder, folder)
    opened, form, sessions_open = [], sessions.form, sessions.open
    sessions.form = lambda model: SimpleNamespace(**{**vars(form(model)), "states": "encoder_hidden_states"})

    async def opens(model, owner, seconds, inputs=None, ids=(), priority=0, greedy=False):
        opened.append((inputs, tuple(ids)))
        return await sessions_open(model, owner, seconds)

    sessions.open = opens
    features = np.zeros((8, 24), np.float32)

    async def scenario():
        request = GenerationRequest("small", PROMPT, 5)
        with pytest.raises(FailedPrecondition, match="decoder_start_token_id"):
            await everything(generator, request)
        (folder / "generation_config.json").write_text('{"decoder_start_token_id": 65}')
        begun = LocalDecoder(decoder).generate("A", 5, Sampling())
        (*_, last) = events = await everything(generator, request)
        assert tuple(t for event in events for t in event.tokens) == begun
        assert last.usage.prompt_tokens == len(PROMPT) + 1
        assert opened.pop() == (None, tuple(PROMPT.encode()))
        asked = GenerationRequest("small", "", 5, inputs={"input_features": features})
        events = await everything(generator, asked)
        assert tuple(t for event in events for t in event.tokens) == begun
        assert opened.pop() == ({"input_features": features}, ())
        events = await everything(generator, replace(asked, prompt=(66, 67)))
        assert tuple(t for event in events for t in event.tokens) == LocalDecoder(decoder).generate(
            "BC", 5, Sampling()
        )
        sessions.form = form
        with pytest.raises(InvalidArgument, match="no encoder"):
            await everything(generator, replace(asked, prompt=(66, 67)))
        with pytest.raises(InvalidArgument, match="prompt is empty"):
            await everything(generator, replace(asked, inputs={}))

    asyncio.run(scenario())


def test_a_prompt_is_read_anew_where_another_version_serves_by_then(decoder, folder):
    """With the tokens of the one before, the model would go on from another text without a word."""
    serves = ["small-1"]

    class Shifted(BytesCoder):
        async def encode(self, text, special=True, seconds=0.0):
            return tuple(byte ^ 1 for byte in await super().encode(text, special))

    class Swapping(BytesCoder):
        async def encode(self, text, special=True, seconds=0.0):
            serves[0] = "small-2"
            return await super().encode(text, special)

    sessions = LocalSessions({"small": decoder})
    sessions.version = lambda model: serves[0]
    texts = DeploymentTexts(lambda name: (serves[0], folder))

    async def get(model, vocabulary):
        coder = Swapping() if serves[0] == "small-1" else Shifted()
        return replace(await DeploymentTexts.get(texts, model, vocabulary), coder=coder)

    texts.get = get
    generator = Generator(sessions, texts, Budgets(), GenerationMetrics(Metrics()))
    events = asyncio.run(everything(generator, GenerationRequest("small", PROMPT, 20)))
    expected = alone(decoder, [byte ^ 1 for byte in PROMPT.encode()], 20, Sampling())
    assert tuple(token for event in events for token in event.tokens) == expected
    assert len(sessions.opened) == 1
