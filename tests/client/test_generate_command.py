"""What `edge-attention generate` asks for and prints, whatever the generation was."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from edge_attention.cli import generate as command
from edge_attention.client.generation import GeneratedPiece
from edge_attention.core.messages.inference import GenerateReport

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
