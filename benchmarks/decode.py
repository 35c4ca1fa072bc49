"""Tokens over real processes: what one takes above its kernels, and what guesses from the text itself save.

The decoder that this project has trained, four layers of 96 numbers: its kernels take next to nothing, so
what is left is trips. Kernels are the whole model's step on one machine; each node of a cut does less.

A layer is an attention with its feed-forward layer, the pair that two trips were for. What is bounded is all
that a token takes above its kernels, its way to the client included, by the number of layers. The floor is a
trip that does nothing: messages as large, over open gRPC streams to two processes. Beside it stands what was
published of another: distributed-llama spends 75 of 244 ms a token on transfer.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from benchmarks.attend_variants import MODULE
from benchmarks.report import Figure, Report
from benchmarks.turns import Worker
from edge_attention import Client
from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.client.sync import ServedModel
from edge_attention.core.generation.sampling import GREEDY
from edge_attention.demo.decoder import BLOCKS, decoder_model
from edge_attention.demo.local_decoder import LocalDecoder

LAYER_BOUND = 1.2
"""Milliseconds a layer, by heads, above the kernels."""
BARE_BYTES = "900", "500"
"""What a trip of a token brings a node, and what comes back, about: tensors and all around them."""
BARE_TRIPS = 100
"""Trips that do nothing, in each turn."""
GUESSES_BOUND = 1 / 1.8
"""A token with guesses by one without, of text that repeats itself."""
PROMPT = "The class object is called to the first of the form the contained by " * 3
"""What it writes after that, the likeliest tokens, repeats it and itself."""
NODES = ("a", "b", "c")


def report(quick: bool) -> Report:
    """By two and three nodes, by heads and by layers; with `quick` few tokens."""
    tokens, turns = (100, 3) if quick else (200, 5)
    model = decoder_model()
    alone = LocalDecoder(model)
    alone.generate(PROMPT, tokens, GREEDY)
    began = time.perf_counter()
    expected = alone.generate(PROMPT, tokens, GREEDY)
    kernels = 1000 * (time.perf_counter() - began) / tokens
    figures = [Figure("a token on one machine, its prompt included", kernels, "ms")]
    bare = Worker(MODULE, "bare", *BARE_BYTES)
    bares: list[float] = []
    with (
        closing(bare),
        tempfile.TemporaryDirectory() as folder,
        LocalFleet(state=Path(folder) / "state") as fleet,
    ):
        path = Path(folder) / "decoder.onnx"
        path.write_bytes(model)
        fleet.start_aggregator()
        for node in NODES:
            fleet.start_node(node, "--threads", "1")
        with Client(fleet.address, timeout=300.0) as client:
            for count in (2, 3):
                for plan in ("heads", "layers"):
                    served = client.deploy(path, "decoder", plan=plan, nodes=NODES[:count], tokenizer="bytes")
                    plain, guessed, floors = _measured(served, tokens, turns, expected, bare)
                    bares += floors
                    trips = BLOCKS if plan == "heads" else count  # nodes begin a token where they end one
                    what = f"{count} nodes by {plan}"
                    figures += _figures(what, plan, trips, kernels, plain, guessed, floors)
    figures.append(Figure("a trip to two processes that do nothing", statistics.median(bares), "ms"))
    figures.append(Figure("distributed-llama, published: transfer by all of a token", 75 / 244, ""))
    return Report("Decoding", tuple(figures))


def _measured(
    model: ServedModel, tokens: int, turns: int, expected: tuple[int, ...], bare: Worker
) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds a token in turns, one token a trip and with guesses; and of a trip that does nothing."""
    found: dict[bool, list[float]] = {False: [], True: []}
    floors: list[float] = []
    bare.turn(BARE_TRIPS)
    model.generate(PROMPT, max_tokens=tokens).rest()  # loads what it needs, and measures its trips
    for _ in range(turns):
        floors.append(statistics.median(took for took, _ in bare.turn(BARE_TRIPS)))
        for speculate, taken in found.items():
            generation = model.generate(PROMPT, max_tokens=tokens, speculate=speculate)
            generation.rest()
            if tuple(generation.tokens) != expected or generation.report is None:
                raise SystemExit("the fleet wrote other tokens than one machine does")
            taken.append(1000 * generation.report.seconds["tokens"] / (tokens - 1))
    return found[False], found[True], floors


def _figures(
    what: str,
    plan: str,
    trips: int,
    kernels: float,
    plain: list[float],
    guessed: list[float],
    floors: list[float],
) -> list[Figure]:
    usual = statistics.median(plain)
    above = max(usual - kernels, 0.0)
    ratio = statistics.median(with_guesses / one for with_guesses, one in zip(guessed, plain, strict=True))
    bound = LAYER_BOUND if plan == "heads" else None
    return [
        Figure(f"{what}: a token", usual, "ms"),
        Figure(f"{what}: above its kernels", above, "ms"),
        Figure(f"{what}: above its kernels, a layer", above / BLOCKS, "ms", bound),
        Figure(f"{what}: above its kernels, each of its {trips} trips", above / trips, "ms"),
        Figure(
            f"{what}: that by a trip that does nothing", above / trips / statistics.median(floors), "times"
        ),
        Figure(f"{what}: above its kernels, by all of a token", above / usual, ""),
        Figure(f"{what}: with guesses by without, text that repeats itself", ratio, "", GUESSES_BOUND),
    ]
