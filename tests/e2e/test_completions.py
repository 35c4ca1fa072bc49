"""A decoder over real nodes, asked as OpenAI's service is: what one machine makes, token by token."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import onnx
import pytest
from fleets import until
from onnx import numpy_helper

from edge_attention.core.generation.sampling import Sampling
from edge_attention.demo.local_decoder import LocalDecoder
from edge_attention.graphs.builders import attention_decoder, attention_sequences
from tests.aggregator.inference.generation.local_sessions import exact_log_probabilities

PROMPT = "to be, or not to be: "


def whole_model(length):
    return attention_sequences(256, length, 24, 2, 2, causal=True, rotary=True, hidden=32, seed=5)


@pytest.fixture(scope="module")
def decoder():
    file = whole_model(8)
    initializers = onnx.load_from_string(file).graph.initializer
    return attention_decoder({one.name: numpy_helper.to_array(one) for one in initializers}, 2, 512)


@pytest.fixture(scope="module")
def base(shared, client, decoder, tmp_path_factory):
    """The port that serves the decoder, which is deployed by heads over a and b."""
    path = tmp_path_factory.mktemp("talker") / "decoder.onnx"
    path.write_bytes(decoder)
    served = client.deploy(path, "writer", plan="heads", nodes=["a", "b"], tokenizer="bytes")
    address = shared.child("aggregator").wait_for(r"metrics on (\S+:\d+)")[1]
    yield f"http://{address}"
    served.undeploy()


def post(url, asked):
    """The open answer to a JSON body."""
    request = urllib.request.Request(url, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=60)


def test_a_completion_is_what_one_machine_makes(base, decoder):
    expected = LocalDecoder(decoder).generate(PROMPT, 30, Sampling(temperature=1.2, top_k=40, seed=11))
    text = bytes(expected).decode("utf-8", "replace")
    asked = {
        "model": "writer",
        "prompt": PROMPT,
        "max_tokens": 30,
        "temperature": 1.2,
        "top_k": 40,
        "seed": 11,
    }
    with post(f"{base}/v1/completions", asked) as answer:
        whole = json.load(answer)
    assert whole["choices"][0]["text"] == text
    assert whole["usage"]["completion_tokens"] == 30
    with post(f"{base}/v1/completions", asked | {"stream": True}) as answer:
        lines = [line.decode().strip() for line in answer]
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "".join(one["choices"][0]["text"] for one in chunks) == text
    with urllib.request.urlopen(f"{base}/metrics", timeout=120) as page:
        told = page.read().decode()
    assert 'edge_attention_aggregator_generation_tokens_total{kind="completion"} ' in told


@pytest.mark.parametrize("plan", ["heads", "layers", "tokens", "replicate"])
def test_log_probabilities_and_penalties_are_the_whole_models_by_each_plan(
    plan, shared, client, base, decoder, tmp_path
):
    """Greedy without penalties too, where nodes begin the next token by themselves."""
    path = tmp_path / "decoder.onnx"
    path.write_bytes(decoder)
    served = client.deploy(path, f"writer-{plan}", plan=plan, nodes=["a", "b"], tokenizer="bytes")
    try:
        for settings in (
            {},
            {"frequency_penalty": 0.4, "presence_penalty": 0.3},
            {"temperature": 0.9, "seed": 5, "frequency_penalty": -0.2},
        ):
            expected = LocalDecoder(decoder).generate(PROMPT, 40, Sampling(**settings))
            tokens = [*PROMPT.encode(), *expected]
            asked = {"model": served.name, "prompt": PROMPT, "max_tokens": 40, "temperature": 0, **settings}
            with post(f"{base}/v1/completions", asked | {"logprobs": 1, "echo": True}) as answer:
                choice = json.load(answer)["choices"][0]
            assert choice["text"] == PROMPT + bytes(expected).decode("utf-8", "replace")
            exact = exact_log_probabilities(tokens, whole_model(len(tokens)))
            told = choice["logprobs"]["token_logprobs"]
            assert told[0] is None
            right = [exact[place - 1][tokens[place]] for place in range(1, len(tokens))]
            assert max(abs(one - other) for one, other in zip(told[1:], right, strict=True)) < 1e-5
    finally:
        served.undeploy()


def test_who_goes_away_in_the_middle_leaves_no_session(base):
    asked = {"model": "writer", "prompt": PROMPT, "max_tokens": 400, "temperature": 1.5, "stream": True}
    answer = post(f"{base}/v1/completions", asked)
    assert answer.readline().startswith(b"data:")
    answer.close()

    def under_way():
        with urllib.request.urlopen(f"{base}/metrics", timeout=120) as page:
            found = [line for line in page.read().decode().splitlines() if "generations_under_way " in line]
        return float(found[-1].split()[1])

    until(lambda: under_way() == 0, "the generation has ended")


def test_errors_are_in_openais_form(base):
    with pytest.raises(urllib.error.HTTPError) as raised:
        post(
            f"{base}/v1/chat/completions", {"model": "nobody", "messages": [{"role": "user", "content": "x"}]}
        )
    assert raised.value.code == 404
    assert json.load(raised.value)["error"]["code"] == "model_not_found"
