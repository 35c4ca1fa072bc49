"""`edge-attention demo`: real processes, real data, every figure checked."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
import numpy as np

# Asked for here, not when the data is loaded: without the extra the command says so at once.
import sklearn  # noqa: F401

from edge_attention.cli.commands import Commands
from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.cli.output import print_table, size
from edge_attention.client.sync import Client
from edge_attention.core.errors import Internal
from edge_attention.core.messages.training import PlannedGraph, RunState, TrainingRound
from edge_attention.core.tensors import Array
from edge_attention.demo import memory, one_machine, patients
from edge_attention.demo.federated import federated
from edge_attention.demo.figures import Accuracy, Bytes, Figures, PartialAnswer
from edge_attention.demo.generate import generate
from edge_attention.demo.infer import infer
from edge_attention.demo.memory import Memory, Meter
from edge_attention.demo.patients import LABS, Patients
from edge_attention.demo.show import conclude, console, json_file_option, printer, progress, verbose_option

VICTIM = "worst"


@click.command(cls=Commands, epilog="Example: edge-attention demo --json figures.json")
@json_file_option
@verbose_option
def demo(json_file: Path | None, verbose: bool) -> None:
    """Three labs, one model: see the whole loop on real data, in about a minute.

    Three labs each hold ten of the thirty measurements of the same 569 patients. An aggregator and three
    edge nodes start on this machine and train one model over all thirty; nothing but partial results and
    gradients leaves a node. Then a long context is spread over the nodes and attended exactly, and one
    node is killed in the middle of a query. Ends with 1 if a figure that must hold does not.
    """
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="edge-attention-") as folder,
        LocalFleet(state=Path(folder) / "state", on_line=printer(verbose)) as fleet,
    ):
        figures = _run(fleet, Path(folder), started)
    _report(figures)
    conclude(figures, json_file)


demo.add(federated)
demo.add(generate)
demo.add(infer)


class _Fleet:
    """The demo's fleet: how a lab's node is started, and started again."""

    def __init__(self, fleet: LocalFleet, folder: Path, data: Patients, planned: list[PlannedGraph]) -> None:
        self._fleet = fleet
        self._folder = folder
        self._files = data.write(folder)
        self._releases = {
            lab: sorted({graph.release for graph in planned if graph.node == lab and graph.release})
            for lab in LABS
        }

    def start(self, lab: str) -> None:
        self._fleet.start_node(
            lab,
            "--store",
            str(self._folder / f"store-{lab}"),
            "--threads",
            "1",
            data=self._files[lab],
            allow_release=self._releases[lab],
        )


def _run(fleet: LocalFleet, folder: Path, started: float) -> Figures:
    data, job = Patients.load(), patients.job()
    console.print("starting an aggregator and three edge nodes")
    fleet.start_aggregator("--metrics-port", "0", "--lease", "3")
    port = fleet.child("aggregator").wait_for(r"metrics on \S*:(\d+)")[1]
    meter = Meter(f"http://127.0.0.1:{port}/metrics")
    with Client(fleet.address) as client:
        # Each lab's operator lets leave what this job needs, by digest; anything else is refused.
        labs = _Fleet(fleet, folder, data, client.plan(job))
        for lab in LABS:
            labs.start(lab)
        _nodes(client)
        rounds, difference, accuracy, shipped = _train(client, data)

        reference = Memory.random()
        asked = memory.queries(16)
        with progress("tokens") as (bar, task):
            context = memory.spread(
                client, reference, lambda done, total: bar.update(task, completed=done, total=total)
            )
        answer, attention_bytes = memory.attend_measured(context, asked, meter, reference)
        attention_error = memory.error(answer, reference.attention(asked))

        console.print(f"killing node {VICTIM} (kill -9) in the middle of a query")
        partial = memory.kill_in_the_middle(
            fleet, context, VICTIM, meter, reference, lambda: labs.start(VICTIM)
        )
        console.print(f"starting node {VICTIM} again; it finds its tokens in --store")
        labs.start(VICTIM)
        again = context.attend(asked)
    return Figures(
        accuracy=accuracy,
        parameter_difference=difference,
        rounds=len(rounds),
        mass={lab: float(np.mean([r.mass[lab] for r in rounds[-20:]])) for lab in LABS},
        bytes=Bytes(
            sum(sum(r.bytes_sent.values()) + sum(r.bytes_received.values()) for r in rounds), shipped
        ),
        attention_error=attention_error,
        attention_bytes=attention_bytes,
        attention_tokens=answer.tokens,
        attention_mass={node: float(mass.mean()) for node, mass in answer.mass.items()},
        partial=partial,
        returned_exact=again.exact,
        returned_error=memory.error(again, reference.attention(asked)),
        seconds=time.perf_counter() - started,
    )


def _train(client: Client, data: Patients) -> tuple[list[TrainingRound], float, Accuracy, int]:
    """Train the fleet, then the yardsticks on the same batches from the same first parameters."""
    run = client.train(patients.job())
    rounds: list[TrainingRound] = []
    with progress("rounds", patients.ROUNDS) as (bar, task):
        for record in run:
            rounds.append(record)
            bar.update(task, completed=record.number, said=f"loss {record.loss:.4f}")
    info = run.describe()
    if info.state is not RunState.FINISHED or not rounds or rounds[-1].evaluation is None:
        raise Internal(f"the run is {info.state.value} after round {info.round}: {info.detail}")
    # Positions are rows of the lab that holds the labels: its file is in the order of the patients.
    batches = [np.asarray(r.samples, np.int64) for r in rounds]
    holdout = np.setdiff1d(np.arange(len(data.labels)), np.unique(np.concatenate(batches)))
    first: dict[str, Array] = dict(run.parameters(version=0))
    everyone = list(LABS)
    trained: dict[str, one_machine.TrainedAlone] = {}
    with progress("yardsticks", 4 * len(batches)) as (bar, task):
        for i, labs in enumerate([everyone, *([lab] for lab in LABS)]):
            trained["+".join(labs)] = one_machine.train(
                data,
                labs,
                batches,
                holdout,
                first if labs == everyone else None,
                lambda done, i=i: bar.update(task, completed=i * len(batches) + done),  # type: ignore[misc]
            )
    one = trained.pop("+".join(everyone))
    difference = one_machine.difference(dict(run.parameters()), one.parameters)
    evaluation = rounds[-1].evaluation
    accuracy = Accuracy(
        evaluation.metrics["correct"] / evaluation.samples,
        one.accuracy,
        {lab: trained[lab].accuracy for lab in LABS},
    )
    # Keys and values of a batch up, and their gradients down, for ten tokens a lab.
    tokens = 10 * len(LABS) * patients.BATCH * patients.KEY_HEADS
    shipped = 2 * len(rounds) * tokens * 2 * patients.DIM * 4
    return rounds, difference, accuracy, shipped


def _nodes(client: Client) -> None:
    print_table(
        ("node", "state", "provider", "holds"),
        [
            (n.name, n.state.value, n.provider, ", ".join(f"{d.name} ({d.rows} rows)" for d in n.datasets))
            for n in client.nodes()
        ],
    )


def _report(figures: Figures) -> None:
    accuracy, partial = figures.accuracy, figures.partial
    rows = [(f"lab {lab} alone", f"{share:.2%}") for lab, share in accuracy.alone.items()]
    rows += [
        ("all data on one machine", f"{accuracy.one_machine:.2%}"),
        ("the fleet", f"{accuracy.fleet:.2%}"),
    ]
    print_table(("trained by", "test accuracy"), rows, title="Diagnoses of held-out patients")
    print_table(
        ("lab", "share of attention"),
        [(lab, f"{share:.1%}") for lab, share in figures.mass.items()],
        title="Where the trained model looks",
    )
    print_table(
        ("", "value", "must be"),
        [
            (
                f"largest difference of a parameter after {figures.rounds} rounds",
                f"{figures.parameter_difference:.2g}",
                "at most 1e-4",
            ),
            ("bytes sent, training", size(figures.bytes.sent), ""),
            ("had keys, values and their gradients been shipped", size(figures.bytes.if_shipped), ""),
            (
                f"attention over {figures.attention_tokens:,} tokens: largest error against float64",
                f"{figures.attention_error:.2g}",
                "at most 1e-5",
            ),
            ("bytes sent, one attend of 16 queries", size(figures.attention_bytes.sent), ""),
            ("had keys and values been shipped", size(figures.attention_bytes.if_shipped), ""),
        ],
        title="The fleet against one machine",
    )
    _report_partial(partial, figures)


def _report_partial(partial: PartialAnswer, figures: Figures) -> None:
    print_table(
        ("", "killed", "back"),
        [
            ("exact", str(partial.exact), str(figures.returned_exact)),
            ("covers", f"{partial.covered:.1%} of the tokens", "100.0% of the tokens"),
            (
                "largest certified bound" + ("" if partial.tight else " (from norms)"),
                f"{partial.bound:.4f}",
                "",
            ),
            ("largest actual error", f"{partial.actual_error:.4f}", f"{figures.returned_error:.2g}"),
            ("why", partial.missing, ""),
        ],
        title=f"Node {VICTIM} killed in the middle of a query, and back",
    )
