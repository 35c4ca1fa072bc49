"""Log probabilities in OpenAI's form, with echo or not: against the whole model in float64."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from text_port import PROMPT, streamed

from aggregator.http import told_tokens
from aggregator.http.told_tokens import LogprobsText, TokenWords, ToldText, chat_logprobs, completion_logprobs
from aggregator.inference.generation.coders import BytesCoder, TokenText
from aggregator.inference.generation.generator import Generator
from aggregator.inference.generation.request import GenerationEvent
from edge_attention.core.generation.speculation import SpeculationRule
from edge_attention.core.messages.inference import TokenValue, ToldToken
from tests.aggregator.inference.generation.local_sessions import exact_log_probabilities, whole_model

CLOSE = 1e-5
UNTIL = math.inf


class Always(SpeculationRule):
    """Verifies all guesses, however long trips take: how many rows a trip has changes the last digits."""

    def guesses(self, known, right):
        return known


@pytest.fixture(autouse=True)
def rule(monkeypatch):
    """Sets how many guesses there are; none, as it begins."""

    def is_now(rule):
        monkeypatch.setattr(Generator, "_rule", lambda self, model: rule)

    is_now(None)
    return is_now


def name(data):
    """A byte as OpenAI names a token."""
    return bytes([data]).decode() if data < 128 else f"bytes:\\x{data:02x}"


def check(said, tokens, first, count):
    """That `said`, a completion's logprobs, are right: of `tokens` from `first` on."""
    exact = exact_log_probabilities(tokens, whole_model(len(tokens)))
    assert said["tokens"] == [name(token) for token in tokens[first:]]
    for place, logprob, top in zip(
        range(first, len(tokens)), said["token_logprobs"], said["top_logprobs"], strict=True
    ):
        if place == 0:
            assert logprob is None
            assert top is None
            continue
        row = exact[place - 1]
        assert abs(logprob - row[tokens[place]]) < CLOSE
        likeliest = sorted(range(256), key=lambda one, row=row: -row[one])[:count]
        assert top.keys() == {name(one) for one in (*likeliest, tokens[place])}
        assert top[name(tokens[place])] == logprob
        for one in likeliest:
            assert abs(top[name(one)] - row[one]) < CLOSE


def joined(chunks):
    """The text and the logprobs of a streamed choice."""
    text, said = "", {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for one in (chunk["choices"][0] for chunk in chunks):
        text += one["text"]
        for field in said if one["logprobs"] else ():
            said[field] += one["logprobs"][field]
    return text, said


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.2, "seed": 4, "top_k": 9}])
@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("guesses", [None, Always()])
def test_a_completions_are_the_whole_models_whatever_the_draw(made, settings, count, guesses, rule):
    rule(guesses)

    async def scenario(port):
        asked = {"model": "small", "prompt": PROMPT, "max_tokens": 40, "logprobs": count} | settings
        (plain,) = (await port.post("/v1/completions", json=asked | {"logprobs": None})).json["choices"]
        assert plain["logprobs"] is None
        (choice,) = (await port.post("/v1/completions", json=asked)).json["choices"]
        assert choice["text"] == plain["text"], "what is told changes nothing"
        said = choice["logprobs"]
        tokens = [*PROMPT.encode(), *(told_byte(one) for one in said["tokens"])]
        assert len(tokens) == len(PROMPT) + 40
        check(said, tokens, len(PROMPT), count)
        chunks = streamed((await port.post("/v1/completions", json=asked | {"stream": True})).body)
        assert joined(chunks) == (choice["text"], said)
        assert any(max(session.sizes[1:]) > 1 for session in made.sessions.opened) == (guesses is not None)

    made.run(scenario)


def told_byte(name):
    return int(name[len("bytes:\\x") :], 16) if name.startswith("bytes:") else ord(name)


@pytest.mark.parametrize("prompt", [PROMPT, list(PROMPT.encode()), "a", "dög" * 200])
def test_echo_tells_the_prompts_tokens_and_their_places(made, prompt):
    tokens = list(prompt.encode()) if isinstance(prompt, str) else prompt
    text = bytes(tokens).decode()

    async def scenario(port):
        asked = {"model": "small", "prompt": prompt, "echo": True, "logprobs": 2, "temperature": 0}
        for most in (0, 3):
            answer = (await port.post("/v1/completions", json=asked | {"max_tokens": most})).json
            (choice,) = answer["choices"]
            said = choice["logprobs"]
            came = [told_byte(one) for one in said["tokens"][len(tokens) :]]
            check(said, tokens + came, 0, 2)
            assert len(came) == most
            assert choice["text"].startswith(text)
            assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", most)
            assert answer["usage"]["prompt_tokens"] == len(tokens)
            whole = bytes([*tokens, *came])
            assert said["text_offset"] == [
                len(whole[:at].decode("utf-8", "ignore")) for at in range(len(tokens))
            ] + [*said["text_offset"][len(tokens) :]]
            more = {"max_tokens": most, "stream": True}
            chunks = streamed((await port.post("/v1/completions", json=asked | more)).body)
            assert joined(chunks) == (choice["text"], said)
        sizes = [sum(session.sizes) for session in made.sessions.opened]
        assert sizes[0] == len(tokens) - 1, "what comes after the last is not asked"
        assert max(max(session.sizes, default=0) for session in made.sessions.opened) <= 256

    made.run(scenario)


def test_echo_alone_is_the_prompt_and_what_follows(made):
    async def scenario(port):
        asked = {"model": "small", "prompt": [PROMPT, list(b"so"), "t"], "max_tokens": 4, "n": 2, "seed": 1}
        without = (await port.post("/v1/completions", json=asked)).json
        echoed = (await port.post("/v1/completions", json=asked | {"echo": True})).json
        prompts = [one for one in (PROMPT, "so", "t") for _ in range(2)]
        assert [one["text"] for one in echoed["choices"]] == [
            prompt + one["text"] for prompt, one in zip(prompts, without["choices"], strict=True)
        ]
        assert echoed["usage"] == without["usage"]
        more = {"echo": True, "max_tokens": 0}
        alone = (await port.post("/v1/completions", json=asked | more)).json
        assert [one["text"] for one in alone["choices"]] == prompts
        assert {one["finish_reason"] for one in alone["choices"]} == {"length"}
        assert not any(session.open for session in made.sessions.opened)

    made.run(scenario)


def test_a_chat_tells_them_with_their_bytes(made):
    async def scenario(port):
        messages = [{"role": "user", "content": "hello"}]
        asked = {"model": "small", "messages": messages, "max_tokens": 30, "temperature": 1.2, "seed": 3}
        more = {"logprobs": True, "top_logprobs": 3}
        (plain,) = (await port.post("/v1/chat/completions", json=asked)).json["choices"]
        (choice,) = (await port.post("/v1/chat/completions", json=asked | more)).json["choices"]
        assert (plain["logprobs"], plain["message"]) == (None, choice["message"])
        content = choice["logprobs"]["content"]
        prompt = list(b"user: hello\nassistant:")
        tokens = prompt + [one["bytes"][0] for one in content]
        assert len(content) == 30
        exact = exact_log_probabilities(tokens, whole_model(len(tokens)))
        for place, one in enumerate(content, start=len(prompt)):
            row = exact[place - 1]
            assert abs(one["logprob"] - row[tokens[place]]) < CLOSE
            likeliest = [other["bytes"][0] for other in one["top_logprobs"]]
            assert likeliest == sorted(range(256), key=lambda token, row=row: -row[token])[:3]
            for other in one["top_logprobs"]:
                assert abs(other["logprob"] - row[other["bytes"][0]]) < CLOSE
                assert other["token"] == bytes(other["bytes"]).decode("utf-8", "replace")
        (few,) = (await port.post("/v1/chat/completions", json=asked | {"logprobs": True})).json["choices"]
        assert [one["top_logprobs"] for one in few["logprobs"]["content"]] == [[]] * 30
        answer = await port.post("/v1/chat/completions", json=asked | more | {"stream": True})
        deltas = [one["choices"][0] for one in streamed(answer.body)]
        some = [delta["logprobs"]["content"] for delta in deltas if delta["logprobs"]]
        assert [one for told in some for one in told] == content
        assert "".join(one["delta"].get("content", "") for one in deltas) == choice["message"]["content"]

    made.run(scenario)


def test_nothing_is_told_of_a_word_that_ends_the_text(made):
    async def scenario(port):
        asked = {"model": "small", "prompt": PROMPT, "max_tokens": 60, "temperature": 0, "logprobs": 0}
        text = (await port.post("/v1/completions", json=asked)).json["choices"][0]["text"]
        stop = text[5:8]
        stopped = asked | {"stop": [stop, "never said"]}
        (choice,) = (await port.post("/v1/completions", json=stopped)).json["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
        assert all(offset < len(choice["text"]) for offset in choice["logprobs"]["text_offset"])
        chunks = streamed((await port.post("/v1/completions", json=stopped | {"stream": True})).body)
        assert joined(chunks) == (choice["text"], choice["logprobs"])
        # One that never comes changes nothing in the end.
        whole = (await port.post("/v1/completions", json=asked)).json["choices"][0]
        never = (await port.post("/v1/completions", json=asked | {"stop": "never said"})).json["choices"][0]
        assert never == whole

    made.run(scenario)


def test_a_bias_forbids_and_makes_come_and_the_log_probabilities_stay_the_models(made):
    async def scenario(port):
        asked = {"model": "small", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 1}
        asked["logit_bias"] = {"120": 100}
        (choice,) = (await port.post("/v1/completions", json=asked)).json["choices"]
        assert choice["text"] == "x" * 12
        check(choice["logprobs"], [*PROMPT.encode(), *b"x" * 12], len(PROMPT), 1)
        asked["frequency_penalty"], asked["logit_bias"] = 2, {"120": 10, "121": 9}
        text = (await port.post("/v1/completions", json=asked)).json["choices"][0]["text"]
        assert {"x", "y"} <= set(text), "what came a few times gives way"
        answer = await port.post("/v1/completions", json=asked | {"logit_bias": {"256": 1}})
        assert (answer.status, "token 256; the model knows 0 to 255" in answer.text) == (400, True)

    made.run(scenario)


def test_what_an_answer_tells_is_bounded(made, monkeypatch):
    """Of a prompt that comes as a text only its tokens show how much that is."""
    monkeypatch.setattr(told_tokens, "TOLD_VALUES", 300)

    async def scenario(port):
        asked = {"model": "small", "prompt": PROMPT * 4, "echo": True, "logprobs": 2, "max_tokens": 1}
        answer = await port.post("/v1/completions", json=asked)
        assert (answer.status, "bound told-values" in answer.json["error"]["message"]) == (400, True)
        last = (await port.post("/v1/completions", json=asked | {"stream": True})).text.split("\n\n")[-2]
        assert "bound told-values" in json.loads(last.removeprefix("data: "))["error"]["message"]
        assert not any(session.open for session in made.sessions.opened)
        answer = await port.post("/v1/completions", json=asked | {"prompt": PROMPT})
        assert answer.status == 200

    made.run(scenario)


class Words(BytesCoder):
    """Tokens with the words that a test gives."""

    def __init__(self, *words):
        self.words = [one if isinstance(one, TokenText) else TokenText(one) for one in words]
        self.asked = []

    async def written(self, ids, seconds=UNTIL):
        self.asked += ids
        return tuple(self.words[one] for one in ids)


def told(coder, *events, held=False, end=True):
    """What is told after each event."""

    async def follow():
        text = ToldText(TokenWords(coder), held, end)
        return [await text.after(one, UNTIL) for one in events]

    return asyncio.run(follow())


def came(text, *tokens, finish=""):
    return GenerationEvent(text, tokens, finish, None, tuple(ToldToken(one, -0.5) for one in tokens))


def test_places_are_those_of_the_text():
    """Special tokens are none of it; the space before its first word is left out by some tokenizers."""
    coder = Words(TokenText(b"<s>", shown=False), b" to", b" b", b"\xc3", b"\xb6")
    found = told(coder, came("to b\u00f6", 0, 1, 2, 3, 4), came(" to", 1))
    assert [one.offset for some in found for one in some] == [0, 0, 2, 4, 4, 5]
    assert sorted(coder.asked) == [0, 1, 2, 3, 4], "each is asked for once"
    found = told(coder, came(" to b", 1, 2))
    assert [one.offset for one in found[0]] == [0, 3]
    said = completion_logprobs(told(coder, came("\u00f6", 3, 4))[0])
    assert said["tokens"] == ["bytes:\\xc3", "bytes:\\xb6"]


def test_tokens_wait_for_their_text_where_a_word_may_end_it():
    coder = Words(b"a", b"b", b"c")
    events = came("a", 0), came("", 1), came("", 2, finish="stop")
    assert [len(some) for some in told(coder, *events, held=True)] == [1, 0, 0]
    assert [len(some) for some in told(coder, *events)] == [1, 1, 1]
    events = came("a", 0), came("", 1), came("bc", 2, finish="length")
    assert [len(some) for some in told(coder, *events, held=True)] == [1, 0, 2]


def test_the_token_that_ended_the_text_is_told_of_completions():
    coder = Words(b"a", b"b", TokenText(b"</s>", shown=False))
    events = came("a", 0), GenerationEvent("b", (1,), "stop", None, (ToldToken(1, -0.5),), ToldToken(2, -0.1))
    for held in (False, True):
        found = told(coder, *events, held=held)
        assert [[one.text.data for one in some] for some in found] == [[b"a"], [b"b", b"</s>"]]
        found = told(coder, *events, held=held, end=False)
        assert [[one.text.data for one in some] for some in found] == [[b"a"], [b"b"]]


@pytest.mark.parametrize("stop", [None, "never said"])
def test_one_who_asks_for_one_token_is_told_one_even_if_it_ends_the_text(made, stop, tmp_path):
    """lm-evaluation-harness leaves out the last of what it is told, whatever that is."""

    async def scenario(port):
        asked = {"model": "small", "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "echo": True}
        asked |= {"logprobs": 1, "stop": stop}
        before = (await port.post("/v1/completions", json=asked)).json["choices"][0]
        (tmp_path / "generation_config.json").write_text(
            json.dumps({"eos_token_id": told_byte(before["logprobs"]["tokens"][-1])})
        )
        made.deployment = "small-1"
        answer = (await port.post("/v1/completions", json=asked)).json
        (choice,) = answer["choices"]
        assert (choice["text"], choice["finish_reason"]) == (PROMPT, "stop")
        assert choice["logprobs"] == before["logprobs"]
        assert answer["usage"]["completion_tokens"] == 0
        chunks = streamed((await port.post("/v1/completions", json=asked | {"stream": True})).body)
        assert joined(chunks) == (PROMPT, before["logprobs"])

    made.run(scenario)


def test_what_could_not_come_is_a_number_and_of_two_written_alike_the_likelier_is_told():
    coder = Words(b"a", b"a")
    never = ToldToken(1, -math.inf, (TokenValue(0, -0.1), TokenValue(1, -math.inf)))
    (found,) = told(coder, GenerationEvent("a", (1,), "", None, (never,)))
    assert completion_logprobs(found)["token_logprobs"] == [-9999.0]
    assert completion_logprobs(found)["top_logprobs"] == [{"a": -0.1}]
    (entry,) = chat_logprobs(found)["content"]
    assert [entry["logprob"], *(one["logprob"] for one in entry["top_logprobs"])] == [-9999.0, -0.1, -9999.0]


@pytest.mark.parametrize(("chat", "said"), [(False, completion_logprobs), (True, chat_logprobs)])
def test_what_is_written_as_it_comes_is_what_is_written_at_once(chat, said):
    some = told(Words(b'"', b"\xff"), came('"', 0, 1), came("a", 0), came("", finish="length"))
    text = LogprobsText(chat)
    assert json.loads(str(text)) == said(())
    for one in some:
        text.add(one)
    assert json.loads(str(text)) == said([*some[0], *some[1]])


def test_the_openai_package_reads_them(made):
    openai = pytest.importorskip("openai", reason="OpenAI's client: pip install openai")

    def work(base):
        with openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0) as client:
            asked = {"model": "small", "prompt": PROMPT, "max_tokens": 6, "temperature": 0, "logprobs": 5}
            said = client.completions.create(**asked, echo=True).choices[0].logprobs
            assert len(said.tokens) == len(said.text_offset) == len(PROMPT) + 6
            assert said.token_logprobs[0] is None
            assert len(said.top_logprobs[7]) in (5, 6)
            messages = [{"role": "user", "content": "hello"}]
            chat = {"model": "small", "messages": messages, "max_tokens": 6, "seed": 1}
            more = {
                "logprobs": True,
                "top_logprobs": 20,
                "presence_penalty": 1.5,
                "logit_bias": {"104": -100},
            }
            whole = client.chat.completions.create(**chat, **more).choices[0]
            assert all(len(one.top_logprobs) == 20 for one in whole.logprobs.content)
            assert "h" not in whole.message.content
            chunks = client.chat.completions.create(**chat, **more, stream=True)
            content = [one for chunk in chunks for one in (chunk.choices[0].logprobs or NONE).content]
            assert content == whole.logprobs.content
            streaming = client.chat.completions.stream(**chat, **more)
            with pytest.raises(openai.LengthFinishReasonError) as ended, streaming as stream:
                stream.get_final_completion()
            assert ended.value.completion.choices[0].logprobs.content == whole.logprobs.content

    made.run(lambda port: asyncio.to_thread(work, port.base))


class NONE:
    content = ()
