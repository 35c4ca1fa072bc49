"""A decoder asked as people ask it: from Python, with and without an event loop, and on the command line."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from fleets import until
from onnx import numpy_helper

from edge_attention import AsyncClient
from edge_attention.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from edge_attention.core.generation.sampling import Sampling
from edge_attention.demo.local_decoder import LocalDecoder
from edge_attention.graphs.builders import attention_decoder, attention_sequences
from tests.aggregator.inference.generation.local_sessions import exact_log_probabilities

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "decoders.md").read_text()
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^edge-attention .*", PAGE, re.MULTILINE)]
PROMPT = "to be, or not to be: "


def whole_model(length):
    return attention_sequences(256, length, 24, 2, 2, causal=True, rotary=True, hidden=32, seed=5)


def random_decoder():
    file = whole_model(8)
    initializers = onnx.load_from_string(file).graph.initializer
    return attention_decoder({one.name: numpy_helper.to_array(one) for one in initializers}, 2, 512)


@pytest.fixture(scope="module")
def decoder():
    return random_decoder()


@pytest.fixture(scope="module")
def model(shared, client, decoder, tmp_path_factory):
    """Deployed as the page says."""
    folder = tmp_path_factory.mktemp("decoder")
    (folder / "decoder.onnx").write_bytes(decoder)
    status, _, said = command(shared, *COMMANDS[0], folder=folder)
    assert status == 0, said
    served = client.model("writer")
    yield served
    served.undeploy()


def no_tokenizer(folder):
    path = folder / "tokenizer.json"
    path.write_text('{"model": {"type": "BPE", "vocab": 3}}')
    return path


def command(fleet, *arguments, folder=None):
    done = subprocess.run(
        [sys.executable, "-m", "edge_attention.cli.entry", "--aggregator", fleet.address, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout, done.stderr


def test_what_the_page_says_is_done(shared, model, capsys):
    for words in COMMANDS[1:]:
        status, out, said = command(shared, *words)
        assert status == 0, said
        assert out
    names = {}
    streams, likely = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    exec(streams.replace("127.0.0.1:50051", shared.address), names)
    assert capsys.readouterr().out.endswith("length 60\n")
    exec(likely.replace("127.0.0.1:50051", shared.address), names)
    tokens = list(b"The function ")
    exact = exact_log_probabilities(tokens, whole_model(len(tokens)))
    expected = sum(exact[place - 1][tokens[place]] for place in range(1, len(tokens)))
    assert abs(float(capsys.readouterr().out) - expected) < 1e-4


def test_tokens_come_as_one_machine_gives_them(shared, model, decoder):
    sampling = Sampling(temperature=1.2, top_k=40, seed=11)
    expected = LocalDecoder(decoder).generate(PROMPT, 40, sampling)
    text = bytes(expected).decode("utf-8", "replace")
    asked = {"max_tokens": 40, "temperature": 1.2, "top_k": 40, "seed": 11}
    generation = model.generate(PROMPT, **asked)
    pieces = list(generation)
    assert len(pieces) > 20
    assert tuple(generation.tokens) == expected == tuple(t for piece in pieces for t in piece.tokens)
    assert generation.text == text == "".join(map(str, pieces))
    report = generation.report
    assert (report.finish, report.prompt_tokens, report.completion_tokens) == ("length", len(PROMPT), 40)
    assert report.seed == 11
    assert report.seconds["all"] > 0
    with pytest.raises(InvalidArgument, match="once"):
        list(generation)
    by_ids = model.generate(list(PROMPT.encode()), **asked)
    by_ids.rest()
    assert tuple(by_ids.tokens) == expected

    async def several():
        async with AsyncClient(shared.address) as client:
            other = await client.model("writer")
            found = await asyncio.gather(
                *(other.generate(PROMPT, **{**asked, "seed": seed}).rest() for seed in (11, 12, 11))
            )
            assert found[0] == found[2] == text
            assert found[1] != text

    asyncio.run(several())


def test_penalties_bias_and_log_probabilities_are_those_of_one_machine(model, decoder):
    settings = {"frequency_penalty": 0.3, "presence_penalty": 0.2, "temperature": 0.8, "seed": 4}
    expected = LocalDecoder(decoder).generate(PROMPT, 40, Sampling(**settings, logit_bias=((101, -100.0),)))
    asked = {**settings, "max_tokens": 40, "logit_bias": {101: -100}}
    generation = model.generate(PROMPT, **asked, logprobs=3, echo=True)
    pieces = list(generation)
    assert tuple(generation.tokens) == expected
    assert 101 not in expected
    assert generation.text == PROMPT + bytes(expected).decode("utf-8", "replace")
    tokens = [*PROMPT.encode(), *expected]
    assert [one.token for one in generation.told] == tokens
    assert generation.told == [one for piece in pieces for one in piece.told]
    exact = exact_log_probabilities(tokens, whole_model(len(tokens)))
    assert generation.told[0].logprob is None
    for place, told in enumerate(generation.told[1:], start=1):
        assert abs(told.logprob - exact[place - 1][told.token]) < 1e-5
        for other in told.likeliest:
            assert abs(other.value - exact[place - 1][other.token]) < 1e-5
        assert len(told.likeliest) == 3
    assert set(generation.report.heeded) == {*settings, "logit_bias", "logprobs", "echo"} - {
        "temperature", "seed"
    }  # fmt: skip
    for wrong, said in (
        ({"logit_bias": {256: 1}}, "logit_bias has token 256; the model knows 0 to 255"),
        ({"logit_bias": {1: 101}}, "a logit_bias is 101"),
        ({"logprobs": 21}, "logprobs is 21; it must be 0 to 20"),
        ({"frequency_penalty": 3}, "frequency_penalty is 3"),
    ):
        with pytest.raises(InvalidArgument, match=re.escape(said)):
            model.generate(PROMPT, **wrong).rest()
    for wrong, said in (
        ({"logit_bias": [1]}, "logit_bias is"),
        ({"logit_bias": {"a": 1}}, "a token of logit_bias"),
        ({"logprobs": -1}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            model.generate(PROMPT, **wrong)


def test_the_command_prints_text_as_it_comes(shared, model, decoder):
    expected = LocalDecoder(decoder).generate(PROMPT, 20, Sampling(temperature=1.0, seed=3))
    flags = ("--max-tokens", "20", "--temperature", "1", "--seed", "3")
    status, out, _ = command(shared, "generate", "writer", PROMPT, *flags, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [token for line in lines[:-1] for token in line["tokens"]] == list(expected)
    assert lines[-1]["report"]["completion_tokens"] == 20
    status, out, said = command(shared, "generate", "writer", PROMPT, *flags)
    assert status == 0
    assert "20 tokens after 21, ended by length" in said
    ids = ",".join(map(str, PROMPT.encode()))
    status, out, _ = command(shared, "generate", "writer", "--ids", ids, *flags, "--json")
    assert [token for line in out.splitlines()[:-1] for token in json.loads(line)["tokens"]] == list(expected)


def late(model, seconds):
    """What is said where 400 tokens take longer."""
    with pytest.raises(DeadlineExceeded) as caught:
        model.generate(PROMPT, max_tokens=400, speculate=False, temperature=2.0, deadline=seconds).rest()
    return caught.value.message


def test_what_ends_it(client, model, decoder):
    expected = bytes(LocalDecoder(decoder).generate(PROMPT, 200, Sampling(temperature=1.5, seed=2)))
    word = expected.decode("utf-8", "replace")[20:22]
    stopped = model.generate(PROMPT, max_tokens=200, temperature=1.5, seed=2, stop=word)
    assert stopped.rest() == expected.decode("utf-8", "replace").partition(word)[0]
    assert stopped.report.finish == "stop"
    assert any("of 400 tokens" in late(model, 0.2 * 4**more) for more in range(5)), "it had begun"
    for _ in model.generate(PROMPT, max_tokens=400):
        break  # who leaves has ended it
    until = time.monotonic() + 120
    while client.model("writer").info.in_flight and time.monotonic() < until:
        time.sleep(0.05)
    assert client.model("writer").info.in_flight == 0


def test_what_is_refused(client, model, decoder, tmp_path):
    with pytest.raises(InvalidArgument, match="temperature"):
        model.generate(PROMPT, temperature=1000.0).rest()
    with pytest.raises(InvalidArgument, match="token 256"):
        model.generate([256]).rest()
    with pytest.raises(InvalidArgument, match="empty"):
        model.generate("")
    path = tmp_path / "decoder.onnx"
    path.write_bytes(decoder)
    with pytest.raises(InvalidArgument, match=r"tokenizer.json|tokenizer: "):
        client.deploy(path, "dumb", plan="layers", nodes=["a", "b"], tokenizer=no_tokenizer(tmp_path))
    assert "dumb" not in [one.name for one in client.models()]
    dumb = client.deploy(path, "dumb", plan="layers", nodes=["a", "b"])
    try:
        with pytest.raises(FailedPrecondition, match="no tokenizer"):
            dumb.generate(PROMPT).rest()
        assert len(LocalDecoder(decoder).generate(PROMPT, 5)) == 5
        ids = dumb.generate(list(PROMPT.encode()), max_tokens=5)
        assert ids.rest() == ""
        assert tuple(ids.tokens) == LocalDecoder(decoder).generate(PROMPT, 5)
    finally:
        dumb.undeploy()
    with pytest.raises(NotFound):
        client.model("nobody")


@pytest.mark.parametrize("apart", [False, True])
def test_tritons_client_is_told_when_it_ends_and_what_was_counted(shared, model, apart):
    came = queue.Queue()
    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([PROMPT.encode()], object))
    asked = {"parameters": {"max_tokens": 6}, "enable_empty_final_response": apart, "sequence_id": 7}
    with triton.InferenceServerClient(shared.address) as client:
        before = counted(client)
        client.start_stream(lambda result, error: came.put((result, error)))
        client.async_stream_infer("writer.generate", [text], request_id="q", **asked)
        tokens, last = [], False
        while not last:
            result, error = came.get(timeout=60)
            assert error is None
            last = result.get_response().parameters["triton_final_response"].bool_param
            ids = result.as_numpy("output_ids")
            assert (ids is None) == (last and apart)
            tokens += [] if ids is None else ids.tolist()
        client.stop_stream()
        assert tokens == model_tokens(model, 6)
        until(lambda: counted(client) == before + 2, "both are counted, whichever door they came by")


def model_tokens(model, count):
    generation = model.generate(PROMPT, max_tokens=count)
    generation.rest()
    return generation.tokens


def counted(client):
    (told,) = client.get_inference_statistics("writer.generate").model_stats
    return told.inference_stats.success.count


def test_no_model_takes_the_name_of_a_stream(client, decoder):
    with pytest.raises(InvalidArgument, match=r"'writer\.generate' ends in '\.generate'.*another name"):
        client.deploy(decoder, "writer.generate", tokenizer="bytes")
    assert "writer.generate" not in [one.name for one in client.models()]
