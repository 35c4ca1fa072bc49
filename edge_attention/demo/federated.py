"""`edge-attention demo federated`: every node has samples of its own; strategies against one machine."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click

# Asked for here, not when the data is loaded: without the extra the command says so at once.
import sklearn  # noqa: F401

from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.cli.output import print_table, size
from edge_attention.client.sync import Client, Run
from edge_attention.core.errors import Internal
from edge_attention.core.messages.training import RunState, TrainingRound
from edge_attention.core.optimizers import SGD
from edge_attention.demo import digits, federated_jobs, text
from edge_attention.demo import federated_yardsticks as yardsticks
from edge_attention.demo.digits import NODES, Digits
from edge_attention.demo.federated_figures import FederatedFigures, Text, Trained
from edge_attention.demo.federated_jobs import BATCH, LENGTH, ONE_MACHINE_EPOCHS, RATE, SYNCHRONOUS_ROUNDS
from edge_attention.demo.one_machine import difference
from edge_attention.demo.show import conclude, console, json_file_option, printer, progress, verbose_option
from edge_attention.graphs.models.trained import trained_onnx
from edge_attention.jobs.federated_job import FederatedJob

PROMPT, WRITTEN = "The function ", 240


@click.command(epilog="Example: edge-attention demo federated --json figures.json")
@json_file_option
@verbose_option
def federated(json_file: Path | None, verbose: bool) -> None:
    """Five nodes, each with digits and chapters of its own: in a few minutes.

    An aggregator and five edge nodes start on this machine. They train a classifier of handwritten digits by
    FedAvg, FedAdam and FedBuff, which a table compares with one machine that has all the data; one step a
    round is then held against one machine step by step. Last comes a model of English text, each node with
    other chapters, which then writes. Nothing but losses and updates leaves a node. Ends with 1 if a figure
    that must hold does not.
    """
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="edge-attention-") as folder,
        LocalFleet(state=Path(folder) / "state", on_line=printer(verbose)) as fleet,
    ):
        figures = _run(fleet, Path(folder), started)
    _report(figures)
    conclude(figures, json_file)


def _run(fleet: LocalFleet, folder: Path, started: float) -> FederatedFigures:
    data = Digits.load()
    texts, held_out = text.split(NODES)
    chapters = {node: text.Sequences.of(texts[node], LENGTH) for node in NODES}
    console.print("starting an aggregator and five edge nodes")
    fleet.start_aggregator()
    with Client(fleet.address) as client:
        _start_nodes(fleet, folder, _releases(client), data, chapters)
        _holdings(data, chapters)
        one_machine = _one_machine(data)
        strategies = {
            name: _digits(client, name, job, data) for name, job in federated_jobs.compared().items()
        }
        difference = _synchronous(client, data)
        written = _text(client, text.Sequences.of(held_out, LENGTH), text.entropy(texts, held_out))
    return FederatedFigures(
        one_machine=one_machine,
        strategies=strategies,
        synchronous_rounds=SYNCHRONOUS_ROUNDS,
        synchronous_difference=difference,
        text=written,
        seconds=time.perf_counter() - started,
    )


def _releases(client: Client) -> dict[str, list[str]]:
    """What each node's operator lets leave, by digest: losses and updates; anything else is refused.

    One job stands for all the compared ones: what a node runs is the same, whatever the aggregator does.
    """
    jobs = (
        next(iter(federated_jobs.compared().values())),
        federated_jobs.synchronous(),
        federated_jobs.next_character(),
    )
    planned = [graph for job in jobs for graph in client.plan(job)]
    return {node: sorted({g.release for g in planned if g.node == node and g.release}) for node in NODES}


def _start_nodes(
    fleet: LocalFleet,
    folder: Path,
    releases: dict[str, list[str]],
    data: Digits,
    chapters: dict[str, text.Sequences],
) -> None:
    for node in NODES:
        files = {
            digits.DATASET: data.nodes[node].write(folder / f"{node}-digits.npz"),
            text.DATASET: chapters[node].write(folder / f"{node}-text.npz"),
        }
        fleet.start_node(node, "--threads", "1", data=files, allow_release=releases[node], wait=False)
    for node in NODES:
        fleet.wait_ready(node)


def _one_machine(data: Digits) -> Trained:
    steps = ONE_MACHINE_EPOCHS * len(data.train.label) // BATCH
    began = time.perf_counter()
    with progress("one machine", steps) as (bar, task):
        parameters = yardsticks.train(
            yardsticks.shuffled(data.train, steps),
            SGD(lr=RATE),
            lambda done: bar.update(task, completed=done),
        )
    seconds = time.perf_counter() - began
    model = trained_onnx(federated_jobs.digit_model(), parameters)
    return Trained(yardsticks.accuracy(model, data.test), steps, seconds, 0)


def _digits(client: Client, name: str, job: FederatedJob, data: Digits) -> Trained:
    run, rounds, seconds = _train(client, name, job)
    return Trained(yardsticks.accuracy(run.onnx(), data.test), len(rounds), seconds, _sent(rounds))


def _synchronous(client: Client, data: Digits) -> float:
    run, rounds, _ = _train(client, "synchronous", federated_jobs.synchronous())
    expected = yardsticks.train(yardsticks.joined(data, len(rounds)), SGD(lr=RATE))
    return difference(dict(run.parameters()), expected)


def _text(client: Client, held_out: text.Sequences, unigram: float) -> Text:
    before = yardsticks.text_loss(federated_jobs.text_model(), held_out)
    run, rounds, seconds = _train(client, "next character", federated_jobs.next_character())
    model = run.onnx()
    return Text(
        before=before,
        after=yardsticks.text_loss(model, held_out),
        unigram=unigram,
        rounds=len(rounds),
        seconds=seconds,
        bytes=_sent(rounds),
        prompt=PROMPT,
        generated=text.generate(model, PROMPT, WRITTEN),
    )


def _train(client: Client, name: str, job: FederatedJob) -> tuple[Run, list[TrainingRound], float]:
    """The run, finished; its rounds; and the seconds from its start to its last round."""
    run = client.train(job)
    rounds: list[TrainingRound] = []
    began = time.perf_counter()
    with progress(name, job.rounds) as (bar, task):
        for record in run:
            rounds.append(record)
            bar.update(task, completed=record.number, said=f"loss {record.loss:.4f}")
    seconds = time.perf_counter() - began
    info = run.describe()
    if info.state is not RunState.FINISHED or len(rounds) != job.rounds:
        raise Internal(f"run {job.name} is {info.state.value} after round {info.round}: {info.detail}")
    return run, rounds, seconds


def _sent(rounds: list[TrainingRound]) -> int:
    return sum(sum(r.bytes_sent.values()) + sum(r.bytes_received.values()) for r in rounds)


def _holdings(data: Digits, chapters: dict[str, text.Sequences]) -> None:
    print_table(
        ("node", *(f"{digit}" for digit in range(digits.CLASSES)), "images", "characters"),
        [
            (
                node,
                *(int((images.label == digit).sum()) for digit in range(digits.CLASSES)),
                len(images.label),
                chapters[node].tokens.size,
            )
            for node, images in data.nodes.items()
        ],
        title="What each node holds: images of each digit, and characters of text",
    )


def _report(figures: FederatedFigures) -> None:
    one, written = figures.one_machine, figures.text
    rows = [
        (
            "one machine with all the data",
            f"{one.accuracy:.2%}",
            f"{one.rounds} steps",
            f"{one.seconds:.1f}",
            "",
        )
    ]
    rows += [
        (name, f"{t.accuracy:.2%}", str(t.rounds), f"{t.seconds:.1f}", size(t.bytes))
        for name, t in figures.strategies.items()
    ]
    print_table(
        ("trained by", "test accuracy", "rounds", "seconds", "bytes sent"), rows, title="Handwritten digits"
    )
    print_table(
        ("", "value", "must be"),
        [
            (
                "FedAvg below one machine, points",
                f"{100 * (one.accuracy - figures.strategies['FedAvg'].accuracy):.2f}",
                "at most 2",
            ),
            (
                f"largest difference of a parameter after {figures.synchronous_rounds} synchronous rounds",
                f"{figures.synchronous_difference:.2g}",
                "at most 1e-4",
            ),
        ],
        title="The fleet against one machine",
    )
    print_table(
        ("", "nats a character"),
        [
            ("untrained", f"{written.before:.3f}"),
            ("knowing how often each character comes", f"{written.unigram:.3f}"),
            (
                f"after {written.rounds} rounds, {written.seconds:.0f} s, {size(written.bytes)}",
                f"{written.after:.3f}",
            ),
        ],
        title="The next character, on chapters that no node has",
    )
    console.print(f"it writes:\n\n[bold]{written.prompt}[/bold]", end="")
    console.print(f"{written.generated}\n", markup=False)
