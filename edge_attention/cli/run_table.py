"""A run as a live table: a header, and a row a node. Draws what it was told; asks nobody."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from edge_attention.cli.output import evaluated, seconds_of, size, waiting
from edge_attention.core.messages.training import NodeRound, RunState, TrainingRound, TrainingRun
from edge_attention.core.printable import shown

NOTES = 3
"""Of a run that are shown, the latest; a line of the screen each, or a few."""


class RunTable:
    """Told of events with `hear`; rich draws it, from another thread, as it then stands."""

    def __init__(self, info: TrainingRun) -> None:
        self._info = info
        self._last: TrainingRound | None = None
        self._evaluated: TrainingRound | None = None
        # Replaced, never changed: the other thread may be drawing.
        self._nodes: dict[str, NodeRound | None] = {}

    def hear(self, event: TrainingRound | TrainingRun) -> None:
        if isinstance(event, TrainingRun):
            self._info = event
            self._nodes = {**dict.fromkeys(event.nodes), **self._nodes}
            return
        known: dict[str, NodeRound | None] = dict.fromkeys((*event.mass, *event.left_out))
        self._nodes = {**known, **self._nodes, **event.nodes}
        self._last = event
        if event.evaluation is not None:
            self._evaluated = event

    def __rich__(self) -> Group:
        info, last = self._info, self._last
        round, version = (info.round, info.version) if last is None else (last.number, last.version)
        said = f"{info.state.value}, round {round} of {info.rounds}, version {version}"
        lines = [f"run {info.id} ({info.name}): {said}"]
        if last is not None:
            lines.append(f"loss {last.loss:.4f}   {seconds_of(last):.2f} s a round")
            if last.consensus:
                losses = ", ".join(f"{name} {value:.3g}" for name, value in sorted(last.consensus.items()))
                lines.append(f"consensus: {losses}")
        if self._evaluated is not None and (result := self._evaluated.evaluation) is not None:
            lines.append(f"held out, after round {self._evaluated.number}: {evaluated(result)}")
        lines += [f"note: {note}" for note in info.notes[-NOTES:]]
        if len(info.notes) > NOTES:
            lines.append(f"and {len(info.notes) - NOTES} earlier notes: edge-attention train list --json")
        if info.waiting:
            lines.append(waiting(info.waiting))
        header = [Text(shown(line)) for line in lines]
        return Group(*header, self._table(last)) if self._nodes else Group(*header)

    def _table(self, last: TrainingRound | None) -> Table:
        columns = ("node", "state", "samples", "steps", "loss", "seconds", "behind", "up", "mass")
        rows = [self._row(node, part, last) for node, part in sorted(self._nodes.items())]
        # A job has masses or local losses, not both: a column that says nothing is left out.
        used = [i for i in range(len(columns)) if i < 2 or any(row[i] for row in rows)]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for i in used:
            table.add_column(columns[i], justify="left" if i < 2 else "right", no_wrap=i != 1)
        for row in rows:
            table.add_row(*(Text(shown(row[i])) for i in used))
        return table

    def _row(self, node: str, part: NodeRound | None, last: TrainingRound | None) -> list[str]:
        cells = [""] * 6
        if part is not None:
            cells = [f"{part.samples:,}", f"{part.steps:,}", f"{part.loss:.4f}", f"{part.seconds:.2f}"]
            cells += [str(part.staleness), size(part.bytes_up)]
        mass = last.mass.get(node) if last is not None else None
        return [node, self._state(node, last), *cells, "" if mass is None else f"{mass:.1%}"]

    def _state(self, node: str, last: TrainingRound | None) -> str:
        if self._info.state is RunState.RUNNING and node in self._info.nodes:
            return self._info.nodes[node]
        if last is not None and node in last.left_out:
            return f"left out: {last.left_out[node]}"
        return "done" if last is not None and node in (last.nodes or last.mass) else ""
