"""What `edge-attention generate` asks for and prints, whatever the generation was."""

from __future__ import annotations

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from edge_attention.cli import generate as command
from edge_attention.client.generation import GeneratedPiece
from edge_attention.core.messages.inference import GenerateReport, TokenValue, ToldToken

EXACT = GenerateReport("length", 2, 1, 7, 1, 0, 0, {"tokens": 0.1})
ROUNDED = GenerateReport("length", 2, 1, 7, 1, 0, 0, {"tokens": 0.1}, False, "activations are rounded")
SO = GeneratedPiece("so", (5,))


class Generated(list):
    """Its pieces."""

    report = EXACT


def generate(monkeypatch, report, *options, prompt=("text",), pieces=(SO,)):
    """What is printed, and what was asked for."""
    asked = {}

    def model(name):
        def generates(prompt, **more):
            asked.update(more, model=name, prompt=prompt)
            found = Generated(pieces)
            found.report = report
            return found

        return SimpleNamespace(generate=generates)

    client = contextlib.nullcontext(SimpleNamespace(model=model))
    monkeypatch.setattr(command, "connect", lambda address: client)
    done = CliRunner().invoke(command.generate, ["writer", *prompt, *options], obj="nowhere:1")
    assert done.exit_code == 0, done.output
    return done, asked


@pytest.mark.parametrize("report", [EXACT, ROUNDED])
def test_logits_that_are_not_the_whole_model_s_are_told_of(monkeypatch, report):
    done, _ = generate(monkeypatch, report)
    assert done.stdout == "so\n"
    assert ("NOT EXACT: activations are rounded" in done.stderr) is not report.exact
    done, _ = generate(monkeypatch, report, "--json")
    told = json.loads(done.stdout.splitlines()[-1])["report"]
    assert (told["exact"], told["lacking"]) == (report.exact, report.lacking)


def test_penalties_bias_and_log_probabilities_are_asked_for(monkeypatch):
    asked = generate(monkeypatch, EXACT)[1]
    assert (asked["logit_bias"], asked["logprobs"], asked["echo"]) == ({}, None, False)
    told = ToldToken(5, -0.5, (TokenValue(5, -0.5), TokenValue(9, -math.inf)))
    pieces = (GeneratedPiece("so", (), (ToldToken(4),)), GeneratedPiece("", (5,), (told,)))
    flags = ("--frequency-penalty", "0.5", "--presence-penalty", "-1", "--logit-bias", "7=-100")
    flags += ("--logit-bias", "8=1.5", "--logprobs", "2", "--echo", "--max-tokens", "0", "--json")
    done, asked = generate(monkeypatch, EXACT, *flags, pieces=pieces)
    assert (asked["frequency_penalty"], asked["presence_penalty"]) == (0.5, -1.0)
    assert (asked["logit_bias"], asked["max_tokens"]) == ({7: -100.0, 8: 1.5}, 0)
    assert (asked["logprobs"], asked["echo"]) == (2, True)
    first, second, _ = map(json.loads, done.stdout.splitlines())
    assert first["told"] == [{"token": 4, "logprob": None, "likeliest": []}]
    likeliest = [{"token": 5, "logprob": -0.5}, {"token": 9, "logprob": None}]
    assert second["told"] == [{"token": 5, "logprob": -0.5, "likeliest": likeliest}]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--logit-bias", "7"), "'7' is not ID=BIAS"),
        (("--logit-bias", "7=1", "--logit-bias", "7=2"), "7 is given twice"),
        (("--logprobs", "2"), "--logprobs goes with --json"),
        (("--logprobs", "21", "--json"), "21 is not in the range"),
    ],
)
def test_options_that_say_nothing_are_refused(flags, said):
    done = CliRunner().invoke(command.generate, ["writer", "text", *flags], obj="127.0.0.1:1")
    assert done.exit_code == 2
    assert said in done.output


def test_the_priority_is_asked_for(monkeypatch):
    assert generate(monkeypatch, EXACT)[1]["priority"] == 8
    assert generate(monkeypatch, EXACT, "--priority", "1")[1]["priority"] == 1


@pytest.mark.parametrize(
    ("texts", "printed"),
    [
        (["", "\N{ARABIC LETTER HEH}", "", "a"], "\N{ARABIC LETTER HEH}a\n"),  # half a character has no text
        (["", ""], "0 1 \n"),
        ([""] * 12, "".join(f"{n} " for n in range(12)) + "\n"),
    ],
)
def test_who_asks_by_ids_reads_the_text_where_there_is_one_and_else_ids(monkeypatch, texts, printed):
    pieces = [GeneratedPiece(text, (number,)) for number, text in enumerate(texts)]
    done, _ = generate(monkeypatch, EXACT, prompt=("--ids", "1,2"), pieces=pieces)
    assert done.stdout == printed
