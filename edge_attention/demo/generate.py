"""`edge-attention demo generate`: a decoder that this project has trained, over one, two and three nodes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.cli.output import print_table, size
from edge_attention.client.sync import Client, ServedModel
from edge_attention.core.generation.sampling import GREEDY, Sampling
from edge_attention.demo.decoder import decoder_model
from edge_attention.demo.generate_figures import GenerateFigures, InterruptedFigures, WrittenFigures
from edge_attention.demo.local_decoder import LocalDecoder
from edge_attention.demo.show import conclude, console, json_file_option, printer, progress, verbose_option

NAME = "writer"
PROMPT = "The function "
TOKENS = 500
KILLED_AFTER = 100
NODES = ("one", "two", "three")
VICTIM = "three"
PLANS: Mapping[int, tuple[str, ...]] = {
    1: ("replicate",),
    2: ("heads", "layers"),
    3: ("heads", "layers", "tokens"),
}
"""By number of nodes, what is asked for."""
KILLS = ("heads", "tokens")
"""Plans over all nodes in whose middle one is killed."""
DRAWN = Sampling(temperature=0.7, top_p=0.95, seed=1)
DEADLINE = 300.0


@click.command(epilog="Example: edge-attention demo generate --json figures.json")
@json_file_option
@verbose_option
def generate(json_file: Path | None, verbose: bool) -> None:
    """A decoder over many boxes: each token that of one machine, whatever the cut, in a few minutes.

    A small decoder that this project has trained itself writes about the Python language. An aggregator and
    nodes start on this machine, and the model is cut over one, two and three of them; its keys and values
    stay on the nodes. Each writes 500 tokens, the likeliest ones and drawn by a seed, and each is the token
    that one machine gives. Text that repeats itself is guessed, and verified several tokens a trip. Then a
    node is killed after the hundredth token. Ends with 1 if a figure that must hold does not.
    """
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="edge-attention-") as folder,
        LocalFleet(state=Path(folder) / "state", on_line=printer(verbose)) as fleet,
    ):
        figures = GenerateDemo(fleet, Path(folder), decoder_model(), started).run()
    _report(figures)
    conclude(figures, json_file)


@dataclass(frozen=True)
class _Alone:
    """What one machine writes."""

    greedy: tuple[int, ...]
    drawn: tuple[int, ...]
    seconds: float


@dataclass(eq=False)
class GenerateDemo:
    """The demo over a fleet whose processes `run` starts.

    Args:
        folder: for files under way.
        model: a decoder's file, whose tokens are bytes.
        plans, kills: what is asked for by number of nodes, and in whose middle a node is killed.
        tokens: of each text.
    """

    fleet: LocalFleet
    folder: Path
    model: bytes
    started: float
    plans: Mapping[int, tuple[str, ...]] = field(default_factory=lambda: PLANS)
    kills: tuple[str, ...] = KILLS
    tokens: int = TOKENS
    killed_after: int = KILLED_AFTER

    def run(self) -> GenerateFigures:
        """Every figure."""
        path = self.folder / f"{NAME}.onnx"
        path.write_bytes(self.model)
        alone = self._alone()
        console.print("starting an aggregator and edge nodes")
        self.fleet.start_aggregator("--lease", "3")
        written: list[WrittenFigures] = []
        interrupted: list[InterruptedFigures] = []
        with Client(self.fleet.address, timeout=DEADLINE) as client:
            for count, plans in self.plans.items():
                self._start(NODES[:count])
                with progress(f"{count} nodes" if count > 1 else "one node", len(plans)) as (bar, task):
                    for plan in plans:
                        bar.update(task, said=f"by {plan}")
                        written.append(self._write(client, path, count, plan, alone))
                        bar.advance(task)
            for plan in self.kills:
                self._start(NODES)
                interrupted.append(self._kill(client, path, plan, alone))
        return GenerateFigures(
            self.tokens,
            PROMPT,
            bytes(alone.drawn).decode("utf-8", "replace"),
            alone.seconds,
            written,
            interrupted,
            time.perf_counter() - self.started,
        )

    def _alone(self) -> _Alone:
        decoder = LocalDecoder(self.model)
        greedy = decoder.generate(PROMPT, self.tokens, GREEDY)
        began = time.perf_counter()
        drawn = decoder.generate(PROMPT, self.tokens, DRAWN)
        return _Alone(greedy, drawn, (time.perf_counter() - began) / self.tokens)

    def _start(self, nodes: tuple[str, ...]) -> None:
        children = self.fleet.children
        new = [node for node in nodes if node not in children or not children[node].running]
        for node in new:
            store = str(self.folder / f"store-{node}")
            self.fleet.start_node(node, "--threads", "1", "--store", store, wait=False)
        for node in new:
            self.fleet.wait_ready(node)

    def _deploy(self, client: Client, path: Path, count: int, plan: str) -> ServedModel:
        model = client.deploy(path, NAME, plan=plan, nodes=NODES[:count], tokenizer="bytes")
        model.generate(PROMPT, max_tokens=2, deadline=DEADLINE).rest()  # the first one is slower
        return model

    def _write(self, client: Client, path: Path, count: int, plan: str, alone: _Alone) -> WrittenFigures:
        began = time.perf_counter()
        model = self._deploy(client, path, count, plan)
        deployed = time.perf_counter() - began
        guessed = model.generate(PROMPT, max_tokens=self.tokens, deadline=DEADLINE)
        guessed.rest()
        drawn = model.generate(
            PROMPT,
            max_tokens=self.tokens,
            temperature=DRAWN.temperature,
            top_p=DRAWN.top_p,
            seed=DRAWN.seed,
            deadline=DEADLINE,
            speculate=False,
        )
        drawn.rest()
        assert guessed.report is not None
        assert drawn.report is not None
        info = model.describe()
        held: dict[str, int] = {}
        for part in info.parts:
            for node in part.holders:
                held[node] = held.get(node, 0) + part.bytes
        return WrittenFigures(
            nodes=count,
            asked=plan,
            plan=info.plan_text,
            greedy=tuple(guessed.tokens) == alone.greedy,
            sampled=tuple(drawn.tokens) == alone.drawn,
            token_seconds=drawn.report.seconds["tokens"] / (self.tokens - 1),
            guessed_seconds=guessed.report.seconds["tokens"] / (self.tokens - 1),
            accepted=guessed.report.accepted,
            deployed=deployed,
            held=max(held.values(), default=0),
        )

    def _kill(self, client: Client, path: Path, plan: str, alone: _Alone) -> InterruptedFigures:
        """Have it write, kill -9 a node in the middle, and look at every token."""
        model = self._deploy(client, path, len(NODES), plan)
        began = last = time.perf_counter()
        longest, after = 0.0, 0
        generation = model.generate(PROMPT, max_tokens=self.tokens, deadline=DEADLINE)
        for _ in generation:
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
            if not after and len(generation.tokens) >= self.killed_after:
                after = len(generation.tokens)
                console.print(f"killing node {VICTIM} (kill -9) after {after} tokens")
                self.fleet.kill(VICTIM)
        return InterruptedFigures(
            len(NODES),
            plan,
            tuple(generation.tokens) == alone.greedy,
            after,
            longest,
            time.perf_counter() - began,
        )


def _report(figures: GenerateFigures) -> None:
    console.print(f"it writes:\n\n[bold]{figures.prompt}[/bold]", end="")
    console.print(f"{figures.text}\n", markup=False)
    rows = [("one machine, no network", "", "", f"{1000 * figures.alone_seconds:.1f}", "", "", "")]
    rows += [
        (
            f"{one.nodes} nodes by {one.asked}" if one.nodes > 1 else "one node",
            str(one.greedy),
            str(one.sampled),
            f"{1000 * one.token_seconds:.1f}",
            f"{1000 * one.guessed_seconds:.1f}",
            str(one.accepted),
            size(one.held),
        )
        for one in figures.written
    ]
    print_table(
        ("", "likeliest same", "drawn same", "ms a token", "with guesses", "of them right", "weights a node"),
        rows,
        title=f"{figures.tokens} tokens, against one machine's",
    )
    print_table(
        ("", "tokens same", "longest wait, s", "all, s"),
        [
            (
                f"{one.nodes} nodes by {one.asked}, one killed after {one.after}",
                str(one.same),
                f"{one.longest:.1f}",
                f"{one.seconds:.1f}",
            )
            for one in figures.interrupted
        ],
        title="A node killed in the middle of a text",
    )
