"""`edge-attention generate`: a deployed decoder goes on from a text, as its tokens come."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import click

from edge_attention.cli.array_files import read_inputs
from edge_attention.cli.connection import connect
from edge_attention.cli.output import plain, print_json, say, say_on
from edge_attention.client.generation import MAX_DEADLINE
from edge_attention.core.generation.log_probabilities import MAX_LIKELIEST
from edge_attention.core.messages.inference import ToldToken
from edge_attention.failing import json_option

TEXTLESS = 8
"""Tokens that came without a text, from which on it is taken that there is no tokenizer, and ids are printed.
Fewer may be half a character, or a stop word's beginning."""


@click.command(
    epilog='\b\nExamples:\n  edge-attention generate writer "The function " --max-tokens 200\n  '
    'edge-attention generate writer "The function " --temperature 0.7 --top-p 0.9 --seed 1\n  '
    "edge-attention generate writer --ids 12,7,9 --json"
)
@click.argument("name")
@click.argument("prompt", required=False)
@click.option("--ids", metavar="ID,ID,...", help="The prompt as token ids, instead of a text.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="INPUT=FILE.npy",
    help="Of a model with an encoder: an input of that, as of infer. Then the prompt, if there is one, is "
    "what the decoder begins with.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=0), default=128, help="Tokens that may come; 0 with --echo alone."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    help="0: always the likeliest token; from there on tokens are drawn, above 1 rarer ones more often.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=0),
    default=0,
    help="Draw among this many of the likeliest tokens; 0: among all.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    help="Draw among the likeliest tokens that together have this probability.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Draw among tokens of at least this share of the likeliest's probability.",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    help="Above 1, tokens that were there before are less likely.",
)
@click.option(
    "--frequency-penalty",
    type=click.FloatRange(-2, 2),
    default=0.0,
    help="Subtracted from a token's logit as often as it has come.",
)
@click.option(
    "--presence-penalty",
    type=click.FloatRange(-2, 2),
    default=0.0,
    help="Subtracted once from the logit of each token that has come.",
)
@click.option(
    "--logit-bias",
    "biases",
    multiple=True,
    metavar="ID=BIAS",
    help="Added to a token's logit, -100 to 100: -100 forbids it. May be repeated.",
)
@click.option(
    "--logprobs",
    type=click.IntRange(0, MAX_LIKELIEST),
    help="With --json: log probabilities of each token and of so many of the likeliest in its place.",
)
@click.option("--echo", is_flag=True, help="The prompt comes first, with --logprobs its tokens, too.")
@click.option("--seed", type=int, help="The same seed, prompt and model give the same tokens.")
@click.option("--stop", multiple=True, metavar="TEXT", help="A text that ends it; may be repeated.")
@click.option(
    "--deadline",
    type=click.FloatRange(0, MAX_DEADLINE, min_open=True),
    help="Seconds for all of it; then it ends with an error that says how far it came. By default 300.",
)
@click.option(
    "--priority",
    type=click.IntRange(1, 16),
    default=8,
    show_default=True,
    help="Among generations of the model that wait: 1 goes first.",
)
@click.option(
    "--no-speculation", is_flag=True, help="One token a trip, even where the text suggests several."
)
@json_option
@click.pass_obj
def generate(
    address: str,
    /,
    name: str,
    prompt: str | None,
    ids: str | None,
    inputs: tuple[str, ...],
    biases: tuple[str, ...],
    no_speculation: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Have the decoder NAME go on from PROMPT. Its text is printed as it comes; Ctrl-C ends it.

    With --json: one object a line with `text` and `tokens` as they come, with --logprobs also `told`, the
    last one with `report`: why it ended, whether its logits are the whole model's, the seed, tokens, trips,
    and how many were guesses.
    """
    if options["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs goes with --json")
    if (prompt is None) == (ids is None) and not (inputs and prompt is None):
        raise click.UsageError("give a PROMPT, or --ids; one of both")
    given = prompt if prompt is not None else _ids(ids or "")
    options["logit_bias"] = _biases(biases)
    arrays = read_inputs(inputs) if inputs else None
    with connect(address) as client:
        model = client.model(name)
        generation = model.generate(given, inputs=arrays, speculate=not no_speculation, **options)
        textless: list[int] | None = [] if prompt is None else None  # None: its tokens have text
        sure = False
        for piece in generation:
            if as_json:
                told = {"told": [_told(one) for one in piece.told]} if piece.told else {}
                print_json({"text": piece.text, "tokens": piece.tokens, **told}, indent=None)
            elif piece.text:
                textless = None
                say_on(piece.text)
            elif textless is not None:
                textless += piece.tokens
                sure = sure or len(textless) > TEXTLESS
                if sure:
                    _say_ids(textless)
                    textless.clear()
    if textless and not as_json:
        _say_ids(textless)
    report = generation.report
    assert report is not None
    if as_json:
        end = None if report.end is None else _told(report.end)
        print_json({"report": {**plain(replace(report, end=None)), "end": end}}, indent=None)
        return
    say("")
    each = 1000 * report.seconds.get("tokens", 0.0) / max(report.completion_tokens - 1, 1)
    say(
        f"{report.completion_tokens} tokens after {report.prompt_tokens}, ended by {report.finish}: "
        f"{each:.1f} ms a token, {report.trips} trips, {report.accepted} of {report.guessed} guesses right; "
        f"seed {report.seed}",
        err=True,
    )
    if report.lacking:  # an earlier release says neither
        say(f"NOT EXACT: {report.lacking}", err=True)


def _say_ids(tokens: Iterable[int]) -> None:
    """Print token ids that others may come behind."""
    say_on("".join(f"{token} " for token in tokens))


def _told(one: ToldToken) -> dict[str, Any]:
    """As JSON, which has no infinity: what could not come has null."""
    likeliest = [{"token": other.token, "logprob": _finite(other.value)} for other in one.likeliest]
    return {"token": one.token, "logprob": _finite(one.logprob), "likeliest": likeliest}


def _finite(logprob: float | None) -> float | None:
    return logprob if logprob is not None and math.isfinite(logprob) else None


def _biases(given: Iterable[str]) -> dict[int, float]:
    biases: dict[int, float] = {}
    for text in given:
        token, _, bias = text.partition("=")
        try:
            if int(token) in biases:
                raise click.BadParameter(f"{token} is given twice", param_hint="--logit-bias")
            biases[int(token)] = float(bias)
        except ValueError:
            raise click.BadParameter(f"{text[:80]!r} is not ID=BIAS", param_hint="--logit-bias") from None
    return biases


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise click.BadParameter(f"{text[:80]!r} is not ID,ID,...", param_hint="--ids") from None
