"""OpenAI's form: what is read of requests, and what answers and their chunks say."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from aggregator.http.completion_answers import DONE, AnswerForm, ChoiceAnswer, UsageOfChoices, error_body
from aggregator.http.completion_requests import ChatMessage, WrongParameter, chat_of, completion_of
from aggregator.inference.generation.request import GenerationUsage
from edge_attention.core.errors import NotFound

HELLO = [{"role": "user", "content": "hello"}]
NO_TEXTS = ({}, {"text": None}, {"text": 5}, {"text": {"a": 1}}, {"text": ["a"]})
"""Of a part of type text: put into the prompt as Python shows them they would be answered."""


def complete(**more):
    return completion_of({"model": "m", "prompt": "a", **more})


def chat(**more):
    return chat_of({"model": "m", "messages": HELLO, **more})


def test_what_is_not_said_is_as_openai_has_it():
    asked = complete().generations[0]
    assert (asked.max_tokens, asked.temperature, asked.top_p) == (16, 1.0, 1.0)
    assert (asked.seed, asked.stop, asked.priority) == (None, (), 0)
    assert not complete().stream
    assert chat().messages == (ChatMessage("user", "hello"),)
    assert chat(max_tokens=3, max_completion_tokens=5).generations[0].max_tokens == 5
    assert (
        complete(
            n=1, best_of=1, echo=False, logprobs=None, presence_penalty=0.0, frequency_penalty=0, user="u"
        ).stream
        is False
    )


def test_what_is_said_is_taken():
    asked = complete(
        max_tokens=7, temperature=0, top_p=0.5, top_k=4, min_p=0.1, seed=-1, stop="x", stream=True,
        stream_options={"include_usage": True}, priority=2,
    )  # fmt: skip
    one = asked.generations[0]
    assert (one.max_tokens, one.temperature, one.top_p, one.top_k, one.min_p) == (7, 0.0, 0.5, 4, 0.1)
    assert (one.seed, one.stop, one.priority) == (-1, ("x",), 2)
    assert (asked.stream, asked.usage) == (True, True)
    assert complete(prompt=[1, 2]).generations[0].prompt == (1, 2)
    assert complete(prompt=["a"]).generations[0].prompt == "a"
    assert complete(prompt=[[3]]).generations[0].prompt == (3,)
    assert [one.prompt for one in complete(prompt=["a", [3, 4]]).generations] == ["a", (3, 4)]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages == (ChatMessage("user", "ab"),)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": None}, "model"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a", "b"], "n": 65}, "n"),
        ({"prompt": ["a", [1]], "best_of": 2}, "best_of"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "half of \ud83d"}, "prompt"),
        ({"stop": "\ud83d"}, "stop"),
        ({"stop": "x" * 300}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"temperature": -1}, "temperature"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"priority": 17}, "priority"),
        ({"priority": -1}, "priority"),
        ({"priority": "first"}, "priority"),
        ({"n": True}, "n"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 1.0}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": 5, "max_tokens": 16_000, "n": 3}, "logprobs"),
        ({"logprobs": 5, "prompt": [[1] * 20_000] * 3, "echo": True}, "logprobs"),
        ({"echo": 0}, "echo"),
        ({"echo": True, "prompt": "a" * 20_000, "n": 128}, "echo"),
        ({"echo": True, "max_tokens": -1}, "max_tokens"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"frequency_penalty": "much"}, "frequency_penalty"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": True}}, "logit_bias"),
        ({"logit_bias": {"1": 10**400}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1, "01": 2}}, "logit_bias"),
        ({"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": 1 << 64}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 20}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"nonsense": 1}, "nonsense"),
        ({"messages": HELLO}, "messages"),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(more, param):
    with pytest.raises(WrongParameter, match=re.escape(param)) as raised:
        complete(**more)
    assert raised.value.param == param
    assert error_body(400, raised.value)["error"]["param"] == param


def test_what_is_offered_instead_is_said_as_json_has_it():
    with pytest.raises(WrongParameter, match=r"other values than false$"):
        chat(echo=True)
    with pytest.raises(WrongParameter, match=r'other values than "none" or "auto"$'):
        chat(tool_choice="required")


def test_log_probabilities_penalties_and_bias_are_taken():
    (one,) = complete(
        logprobs=5, echo=True, max_tokens=0, frequency_penalty=0.5, presence_penalty=-2,
        logit_bias={"7": 1.5, "3": -100},
    ).generations  # fmt: skip
    assert (one.logprobs, one.echo, one.max_tokens) == (5, True, 0)
    assert (one.frequency_penalty, one.presence_penalty) == (0.5, -2.0)
    assert one.logit_bias == ((7, 1.5), (3, -100.0))
    one.check()
    assert [complete(logprobs=said).generations[0].logprobs for said in (None, False, 0)] == [None, None, 0]
    assert chat().generations[0].logprobs is None
    assert chat(logprobs=False, top_logprobs=0).generations[0].logprobs is None
    assert chat(logprobs=True).generations[0].logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).generations[0].logprobs == 20
    assert chat(presence_penalty=1, logit_bias={}).generations[0].presence_penalty == 1.0


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 20, "logprobs": True, "max_tokens": 16_000}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
    ],
)
def test_of_a_chat_other_log_probabilities_are_refused_by_name(more, param):
    with pytest.raises(WrongParameter) as raised:
        chat(**more)
    assert raised.value.param == param


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        [{"role": "king", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        *([{"role": "user", "content": [{"type": "text", **text}]}] for text in NO_TEXTS),
        [{"role": "assistant", "content": "", "tool_calls": [{}]}],
        HELLO * 2000,
        [{"role": "user", "content": "half of \ud83d"}],
        [{"role": "user", "content": "x", "name": 3}],
        [{"role": "user", "content": [{"type": "text", "text": "a", "weight": 2}]}],
    ],
)
def test_chats_that_are_none_are_refused(messages):
    with pytest.raises(WrongParameter, match="messages"):
        chat(messages=messages)


def test_choices_of_a_prompt_have_the_next_seeds():
    asked = complete(prompt=["a", "b"], n=2, best_of=2, seed=(1 << 63) - 1).asked()
    assert [(one.prompt, one.seed) for one in asked] == [
        ("a", (1 << 63) - 1),
        ("a", -(1 << 63)),
        ("b", (1 << 63) - 1),
        ("b", -(1 << 63)),
    ]
    assert [one.seed for one in complete(n=2).asked()] == [None, None]
    assert len(chat(n=3).asked()) == 3


def test_a_prompt_counts_once_of_however_many_choices():
    usages = UsageOfChoices(2)
    assert usages.all() is None
    for place in range(4):
        usages.add(place, replace(USAGE, lacking="rounded" if place == 3 else ""))
        usages.add(place, None)
    assert usages.all() == replace(USAGE, prompt_tokens=6, completion_tokens=8, lacking="rounded")


def events(data):
    return [json.loads(one.removeprefix("data: ")) for one in data.decode().split("\n\n") if "{" in one]


USAGE = GenerationUsage(3, 2, 0)


def test_a_stream_of_a_chat_says_role_text_finish_and_usage():
    form = AnswerForm("id", "m", 7, True, usage=True)
    data = form.begin() + form.chunk("a", "") + form.chunk("", "stop") + form.end(USAGE)
    role, text, last, usage = events(data)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text["choices"][0] == {
        "index": 0,
        "delta": {"content": "a"},
        "logprobs": None,
        "finish_reason": None,
    }
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert {one["object"] for one in (role, text, last, usage)} == {"chat.completion.chunk"}
    assert role["usage"] is None
    assert data.endswith(DONE)


def test_a_stream_of_a_completion_says_text_and_finish():
    form = AnswerForm("id", "m", 7, False)
    data = form.begin() + form.chunk("a", "") + form.chunk("b", "length") + form.end(USAGE)
    first, last = events(data)
    assert (first["choices"][0]["text"], first["choices"][0]["finish_reason"]) == ("a", None)
    assert (last["choices"][0]["text"], last["choices"][0]["finish_reason"]) == ("b", "length")
    assert first["object"] == "text_completion"
    assert "usage" not in first
    assert data.endswith(DONE)


def test_whole_answers():
    told = json.loads(AnswerForm("id", "m", 7, True).whole([ChoiceAnswer("text", "length")], USAGE))
    assert told["choices"][0]["message"] == {"role": "assistant", "content": "text", "refusal": None}
    assert told["choices"][0]["finish_reason"] == "length"
    assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    inexact = replace(USAGE, lacking="rounded")
    told = json.loads(AnswerForm("id", "m", 7, True).whole([ChoiceAnswer("text", "length")], inexact))
    assert (told["usage"]["exact"], told["usage"]["lacking"]) == (False, "rounded")
    told = json.loads(AnswerForm("id", "m", 7, False).whole([ChoiceAnswer("text", "stop")], USAGE))
    assert (told["object"], told["choices"][0]["text"]) == ("text_completion", "text")
    assert told["choices"][0]["logprobs"] is None


def test_errors_are_in_openais_form():
    kinds = {405: "invalid_request_error", 413: "invalid_request_error", 503: "server_error"}
    for status, kind in kinds.items():
        assert error_body(status, NotFound("x"))["error"]["type"] == kind
    assert error_body(404, NotFound("no such model")) == {
        "error": {
            "message": "no such model",
            "type": "invalid_request_error",
            "param": None,
            "code": "model_not_found",
        }
    }
