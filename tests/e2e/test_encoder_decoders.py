"""Encoders with decoders over real nodes: what one machine's files give, token by token, for every door."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from decoder_runs import WholeEncoderDecoder
from fleets import Fleet

from edge_attention.core.errors import FailedPrecondition, InvalidTensor
from edge_attention.core.generation.sampling import Sampling, choose

pytestmark = pytest.mark.e2e

EXPORTS = Path(__file__).parent.parent / "graphs/decoding/exports"


def expected(name, given, begins, count, sampling=None):
    """Tokens of the files, run whole."""
    whole, sampling = WholeEncoderDecoder(EXPORTS, name), sampling or Sampling()
    whole.encode(given)
    tokens = list(begins)
    for token in begins:
        logits = whole.step(token)
    found = []
    for _ in range(count):
        found.append(choose(logits, sampling, len(tokens), ()))
        tokens.append(found[-1])
        logits = whole.step(found[-1])
    return found


def deploy(client, name, called, plan, folder=None, merged=False, **options):
    kinds = ("_merged",) if merged else ("", "_with_past")
    decoder = [EXPORTS / f"{name}_decoder{kind}.onnx" for kind in kinds]
    return client.deploy(
        EXPORTS / f"{name}_encoder.onnx", called, plan=plan, decoder=decoder, tokenizer=folder, **options
    )


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"edge_attention": "bytes"}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 0}))
    return tmp_path


def test_tokens_are_the_files_by_every_plan_and_with_a_node_killed(tmp_path, texts):
    ids = [int(one) for one in np.random.default_rng(3).integers(1, 32, size=21)]
    with Fleet(tmp_path / "fleet", "--lease", "3", "--metrics-port", "0") as fleet:
        for node in "abc":
            fleet.start_node(node, "--threads", "1", wait=False)
        for node in "abc":
            fleet.wait_ready(node)
        with fleet.client() as client:
            wanted = expected("t5", np.array([ids]), [0], 12)
            for plan in ("heads", "layers", "tokens", "replicate"):
                model = deploy(client, "t5", f"t5-{plan}", plan, texts, merged=plan == "layers")
                generation = model.generate(ids, max_tokens=12)
                generation.rest()
                assert generation.tokens == wanted, plan
                assert generation.report.prompt_tokens == 22
                if plan in ("layers", "replicate"):
                    model.undeploy()
            # Text, sampled; and over HTTP as OpenAI has it.
            prompt = bytes(ids).decode()
            sampling = Sampling(temperature=1.3, seed=5)
            sampled = expected("t5", np.array([ids]), [0], 10, sampling)
            asked = {"max_tokens": 10, "temperature": 1.3, "seed": 5}
            generation = client.model("t5-heads").generate(prompt, **asked)
            text = generation.rest()
            assert generation.tokens == sampled
            assert text == bytes(sampled).decode()
            address = fleet.child("aggregator").wait_for(r"metrics on (\S+:\d+)")[1]
            body = json.dumps({"model": "t5-heads", "prompt": prompt, **asked}).encode()
            request = urllib.request.Request(
                f"http://{address}/v1/completions", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["choices"][0]["text"] == text
            # Features, and how the decoder begins; a node goes in the middle.
            mel = np.random.default_rng(4).normal(size=(8, 24)).astype(np.float32)
            model = deploy(client, "whisper", "whisper", "heads")
            wanted = expected("whisper", mel[None], [1, 7, 5], 16)
            generation = model.generate([1, 7, 5], inputs={"input_features": mel}, max_tokens=16)
            tokens = []
            for number, piece in enumerate(generation):
                tokens += piece.tokens
                if number == 3:
                    fleet.kill("b")
            assert tokens == wanted
            with pytest.raises(FailedPrecondition, match="decoder_start_token_id"):
                model.generate(inputs={"input_features": mel}).rest()
            with pytest.raises(FailedPrecondition, match="give inputs"):
                model.generate([1, 2]).rest()
            with pytest.raises(InvalidTensor, match="one row"):
                model.generate([1], inputs={"input_features": np.zeros((2, 8, 24), np.float32)}).rest()
