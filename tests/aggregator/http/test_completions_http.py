"""OpenAI's calls over a real socket, before a real generator: what comes is what it makes; nothing stays."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import subprocess

import pytest
from ports import until
from text_port import PROMPT, streamed, text_of

from aggregator.bounds.bounds import BODIES, CALLS
from aggregator.inference.traffic import SECONDS


def test_a_completion_whole_and_streamed_is_the_same(made):
    async def scenario(port):
        asked = {"model": "small", "prompt": PROMPT, "max_tokens": 40, "temperature": 0.9, "seed": 7}
        expected = await text_of(made.generator, **asked)
        whole = (await port.post("/v1/completions", json=asked)).json
        assert whole["choices"][0]["text"] == expected
        assert whole["choices"][0]["finish_reason"] == "length"
        assert whole["usage"]["completion_tokens"] == 40
        assert whole["usage"]["prompt_tokens"] == len(PROMPT)
        made.now += 1
        assert made.traffic.rates("small")["tokens"] == (40 + 40) / SECONDS
        more = {"stream": True, "stream_options": {"include_usage": True}}
        answer = await port.post("/v1/completions", json=asked | more)
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        *chunks, usage = streamed(answer.body)
        assert "".join(one["choices"][0]["text"] for one in chunks) == expected
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert len(chunks) > 5
        assert usage["usage"] == whole["usage"]
        assert not any(session.open for session in made.sessions.opened)
        assert made.budgets[BODIES].used == made.budgets[CALLS].used == 0

    made.run(scenario)


def test_choices_are_what_each_would_be_alone(made):
    """LangChain sends its batches as one request of several prompts."""
    prompts = [PROMPT, "to be", [116, 111]]

    async def scenario(port):
        common = {"model": "small", "max_tokens": 9, "temperature": 0.9}
        expected = [
            await text_of(made.generator, prompt=tuple(p) if isinstance(p, list) else p, seed=seed, **common)
            for p in prompts
            for seed in (7, 8)
        ]
        asked = common | {"prompt": prompts, "n": 2, "seed": 7}
        whole = (await port.post("/v1/completions", json=asked)).json
        assert [(one["index"], one["text"]) for one in whole["choices"]] == list(enumerate(expected))
        assert {one["finish_reason"] for one in whole["choices"]} == {"length"}
        tokens = len(PROMPT) + 5 + 2, 6 * 9
        assert (whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"]) == tokens
        more = {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, usage = streamed((await port.post("/v1/completions", json=asked | more)).body)
        texts, ends = dict.fromkeys(range(6), ""), []
        for one in (chunk["choices"][0] for chunk in chunks):
            texts[one["index"]] += one["text"]
            ends += [one["index"]] if one["finish_reason"] else []
        assert list(texts.values()) == expected
        assert sorted(ends) == list(range(6))
        assert usage["usage"] == whole["usage"]
        messages = [{"role": "user", "content": "hello"}]
        chat = {"model": "small", "messages": messages, "n": 3, "max_tokens": 4, "seed": 1}
        found = (await port.post("/v1/chat/completions", json=chat)).json["choices"]
        alone = await port.post("/v1/chat/completions", json=chat | {"n": 1, "seed": 3})
        assert found[2]["message"] == alone.json["choices"][0]["message"]
        chunks = streamed((await port.post("/v1/chat/completions", json=chat | {"stream": True})).body)
        begun = [one["choices"][0] for one in chunks if "role" in one["choices"][0]["delta"]]
        assert [one["index"] for one in begun] == [0, 1, 2]
        assert begun == [one["choices"][0] for one in chunks[:3]], "OpenAI's package counts on their order"
        assert not any(session.open for session in made.sessions.opened)
        assert made.budgets[CALLS].used == 0

    made.run(scenario)


def test_one_choice_that_cannot_be_ends_all(made):
    async def scenario(port):
        asked = {"model": "small", "prompt": ["a"] * 20 + [[99999]], "max_tokens": 50}
        for more in ({}, {"stream": True}):
            answer = await port.post("/v1/completions", json=asked | more)
            assert "token 99999" in answer.text
        answer = await port.post("/v1/completions", json=asked)
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
        assert not any(session.open for session in made.sessions.opened)

    made.run(scenario)


def test_a_stop_word_ends_it(made):
    async def scenario(port):
        asked = {"model": "small", "prompt": PROMPT, "max_tokens": 60, "temperature": 0}
        text = (await port.post("/v1/completions", json=asked)).json["choices"][0]["text"]
        stop = text[5:7]
        choice = (await port.post("/v1/completions", json=asked | {"stop": stop})).json["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")

    made.run(scenario)


def test_models(made):
    async def scenario(port):
        listed = (await port.get("/v1/models")).json
        assert [(one["id"], one["object"]) for one in listed["data"]] == [("small", "model")]
        assert (await port.get("/v1/models/small")).json["id"] == "small"
        answer = await port.get("/v1/models/nope")
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
        for path in ("/v1/models", "/v1/models/small"):
            answer = await port.get(path, "HEAD")
            assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["Content-Length"] == str(len((await port.get("/v1/models/small")).body))

    made.run(scenario)


def test_models_without_a_tokenizer_make_no_text_and_are_not_listed(made, tmp_path):
    (tmp_path / "tokenizer.json").unlink()

    async def scenario(port):
        assert (await port.get("/v1/models")).json["data"] == []
        assert (await port.get("/v1/models/small")).status == 404

    made.run(scenario)


def test_a_body_may_begin_with_a_byte_order_mark_and_be_packed_by_gzips_old_name(made):
    async def scenario(port):
        body = json.dumps({"model": "small", "prompt": "a", "max_tokens": 2}).encode()
        assert (await port.post("/v1/completions", data=b"\xef\xbb\xbf" + body)).status == 200
        headers = {"Content-Encoding": "x-gzip"}
        answer = await port.post("/v1/completions", data=gzip.compress(body), headers=headers)
        assert answer.status == 200, answer.text

    made.run(scenario)


def test_a_chat_goes_by_the_models_template(made):
    pytest.importorskip("jinja2")
    made.config(
        bos_token="<s>",
        chat_template="{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
    )

    async def scenario(port):
        prompt = "<s>[system]Be brief.[user]hello[assistant]"
        expected = await text_of(made.generator, model="small", prompt=prompt, max_tokens=12)
        messages = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "hello"}]
        asked = {"model": "small", "messages": messages, "max_tokens": 12, "temperature": 0}
        whole = (await port.post("/v1/chat/completions", json=asked)).json
        assert whole["choices"][0]["message"]["content"] == expected
        assert whole["usage"]["prompt_tokens"] == len(prompt)
        chunks = streamed((await port.post("/v1/chat/completions", json=asked | {"stream": True})).body)
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == expected

    made.run(scenario)


def test_a_template_that_means_no_good_is_ended(made, monkeypatch):
    pytest.importorskip("jinja2")
    from aggregator.bounds.bounds import ProcessBound
    from aggregator.http import chat_prompts

    monkeypatch.setattr(chat_prompts, "TEMPLATE_PROCESS", ProcessBound("template", 4.0, 60, 1 << 28))
    every = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    templates = {
        every: "bound template-seconds",
        "{{ raise_exception('no system role') }}": "no system role",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}": "unsafe",
        "{{ 'a' * 400000000 }}": "bound template-",  # memory, or seconds where much else runs
        "{% for": "template",
    }

    async def scenario(port):
        asked = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        for number, (template, why) in enumerate(templates.items()):
            made.config(chat_template=template)
            made.deployment = f"small-{number}"
            answer = await port.post("/v1/chat/completions", json=asked)
            assert (answer.status, why in answer.json["error"]["message"]) == (400, True), answer.text

    made.run(scenario)


def test_a_chat_written_for_one_version_is_not_another_ones_prompt(made):
    """The other one's template may be another."""

    async def scenario(port):
        serves = iter(("small-0", "small-1"))
        made.sessions.version = lambda model: next(serves)
        asked = {"model": "small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
        answer = await port.post("/v1/chat/completions", json=asked)
        assert answer.status == 503
        assert "another version of model 'small' serves by now: ask again" in answer.json["error"]["message"]
        assert not made.sessions.opened

    made.run(scenario)


def test_a_chat_without_a_template_is_plain(made):
    async def scenario(port):
        prompt = "user: hello\nassistant:"
        own = {"model": "small", "prompt": prompt, "max_tokens": 12, "stop": ("\nuser:",)}
        expected = await text_of(made.generator, **own)
        asked = {"model": "small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12}
        whole = (await port.post("/v1/chat/completions", json=asked | {"temperature": 0})).json
        assert whole["choices"][0]["message"]["content"] == expected

    made.run(scenario)


def test_errors_have_openais_form(made):
    async def scenario(port):
        async def refused(body, status, why, path="/v1/completions"):
            answer = await port.post(path, **body)
            error = answer.json["error"]
            assert (answer.status, set(error)) == (status, {"message", "type", "param", "code"}), answer.text
            assert why in error["message"]

        good = {"model": "small", "prompt": "a"}
        await refused({"json": good | {"model": "nope"}}, 404, "nope")
        await refused({"json": good | {"best_of": 2}}, 400, "best_of is not served")
        await refused({"json": good | {"max_tokens": 0}}, 400, "max_tokens is 0")
        await refused({"json": good | {"prompt": ""}}, 400, "prompt is empty")
        await refused({"json": good | {"prompt": [99999]}}, 400, "token 99999")
        await refused({"json": good | {"temperature": -1}}, 400, "temperature")
        long = {"json": good | {"prompt": "a" * 2001}}
        await refused(long, 400, "has 2,000 at most; send a shorter one")
        code = (await port.post("/v1/completions", **long)).json["error"]["code"]
        assert code == "context_length_exceeded"
        await refused({"data": b"{"}, 400, "the body is no JSON")
        await refused({}, 400, "the body is no JSON: it is empty")
        await refused({"json": good | {"prompt": [1] * 70_000}}, 413, "bound asked-values")
        await refused({"json": good, "headers": {"Origin": "http://evil"}}, 403, "another site")
        for answer in (await port.get("/v1/completions"), await port.post("/v1/embeddings", json=good)):
            assert answer.json["error"]["message"]
            assert answer.json["error"]["code"] == "unknown_url"
        assert not any(session.open for session in made.sessions.opened)

    made.run(scenario)


def test_what_would_fail_again_is_no_overload(made, tmp_path):
    """Clients send again, unasked, what is answered with 503."""
    (tmp_path / "tokenizer.json").unlink()

    async def scenario(port):
        asked = {"model": "small", "prompt": "a"}
        for more in ({}, {"stream": True}):
            answer = await port.post("/v1/completions", json=asked | more)
            error = answer.json["error"]
            assert (answer.status, error["type"], error["code"]) == (400, "invalid_request_error", None)
            assert "has no tokenizer, and an answer is text" in error["message"]
        chat = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
        for path, body in (("completions", {"model": "small", "prompt": [1, 2]}), ("chat/completions", chat)):
            answer = await port.post(f"/v1/{path}", json=body)  # of which no text would come
            assert (answer.status, "small.generate" in answer.json["error"]["message"]) == (400, True)

    made.run(scenario)


def test_who_goes_away_ends_it_at_once(made):
    async def scenario(port):
        asked = {"model": "small", "prompt": PROMPT, "max_tokens": 4000, "stream": True, "temperature": 1.5}
        url = port.base + "/v1/completions"
        async with port.client.post(url, json=asked) as answer:
            await answer.content.readany()
            (session,) = made.sessions.opened
            assert session.open
            answer.close()
            await until(lambda: not session.open)
        assert made.budgets[CALLS].used == 0

    made.run(scenario)


def test_the_openai_package(made):
    openai = pytest.importorskip("openai", reason="OpenAI's client: pip install openai")

    def work(base):
        with openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0) as client:
            assert [one.id for one in client.models.list()] == ["small"]
            asked = {"model": "small", "prompt": PROMPT, "max_tokens": 20, "temperature": 0.7, "seed": 3}
            whole = client.completions.create(**asked)
            more = {"stream": True, "stream_options": {"include_usage": True}}
            chunks = list(client.completions.create(**asked, **more))
            assert "".join(one.choices[0].text for one in chunks if one.choices) == whole.choices[0].text
            assert chunks[-1].usage == whole.usage
            messages = [{"role": "user", "content": "hello"}]
            asked_chat = {"model": "small", "messages": messages, "max_tokens": 8, "seed": 1}
            chat = client.chat.completions.create(**asked_chat)
            assert chat.choices[0].finish_reason in ("length", "stop")
            deltas = client.chat.completions.create(**asked_chat, stream=True)
            said = "".join(one.choices[0].delta.content or "" for one in deltas)
            assert said == chat.choices[0].message.content
            # Its helper for streams takes an end by length for an error.
            streaming = client.chat.completions.stream(**asked_chat, n=3)
            with pytest.raises(openai.LengthFinishReasonError) as ended, streaming as stream:
                stream.get_final_completion()
            several = client.chat.completions.create(**asked_chat, n=3)
            texts = [one.message.content for one in several.choices]
            assert [one.message.content for one in ended.value.completion.choices] == texts
            with pytest.raises(openai.NotFoundError, match="nope"):
                client.completions.create(**asked | {"model": "nope"})
            with pytest.raises(openai.BadRequestError, match="logprobs is 6"):
                client.completions.create(**asked, logprobs=6)

    made.run(lambda port: asyncio.to_thread(work, port.base))


def test_curl_streams(made):
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not here: apt-get install curl")

    def work(base):
        asked = json.dumps({"model": "small", "prompt": PROMPT, "max_tokens": 8, "stream": True})
        command = [curl, "-sSN", "--max-time", "60", base + "/v1/completions", "-d", asked]
        done = subprocess.run(command, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert streamed(done.stdout)[-1]["choices"][0]["finish_reason"] == "length"

    made.run(lambda port: asyncio.to_thread(work, port.base))
