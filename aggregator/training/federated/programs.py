"""What nodes are asked in a federated run: instructions over graphs of the plan. No state, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aggregator.fleet.columns import TableView
from aggregator.store.tensor_file import Spec
from aggregator.training.federated.plan import (
    LOSS_WEIGHT,
    SCALAR,
    WEIGHT,
    WEIGHT_SUM,
    FederatedPlan,
    LabelPlan,
)
from edge_attention.core.encodings import UpdateEncoding
from edge_attention.core.learning_rates import factor_at, optimizer_at
from edge_attention.core.messages.program import Batch, Drop, Instruction, Repeat, Return, Run, Stored, Value
from edge_attention.core.messages.training import FederatedJob
from edge_attention.core.optimizers import SGD, Adagrad, Adam, Momentum, from_config
from edge_attention.core.strategies import Strategy
from edge_attention.core.tensors import Array, Encoding, Int64

LABEL_SUMS = ("outside", "strange", "lowest", "highest", "seen")
"""As graphs/models/label_graph.py has them, which brings onnx."""
LABEL_BATCH = 1 << 16
"""Labels that are looked at together."""
MAX_LABEL_ROWS = 1 << 20
"""Rows whose labels are looked at before a run, evenly spaced where there are more: their numbers travel."""
EVALUATION_BATCH = 256
_RECENT = 16
"""Programs that are compared with the next: of nodes with other numbers of rows there are others."""

ProgramParts = tuple[tuple[Instruction, ...], dict[str, Array]]
"""Instructions, and the small tensors that go with them; parameters are pushed besides."""


At = Callable[[int], str]
"""Where a node finds parameter i of the version it is to start from."""


def local_lr(job: FederatedJob, number: int) -> float:
    """The learning rate of nodes' steps in round `number` (1, 2, ...): the job's, or the optimizer's default,
    by the job's schedule."""
    optimizer = optimizer_at(
        from_config(job.local.optimizer.name, **job.local.optimizer.options),
        factor_at(job.local.schedule, number, job.rounds),
    )
    assert isinstance(optimizer, SGD | Momentum | Adagrad | Adam)
    return optimizer.lr


def control(index: int) -> str:
    """Where a node finds the control of SCAFFOLD for a parameter."""
    return f"task/control/{index}"


@dataclass(frozen=True, eq=False)
class Programs:
    """The programs of run `run`."""

    run: str
    job: FederatedJob
    plan: FederatedPlan
    view: TableView
    strategy: Strategy
    encoding: UpdateEncoding
    _recent: list[tuple[Instruction, ...]] = field(default_factory=list)
    _made: dict[tuple[Any, ...], tuple[ProgramParts, Array | None]] = field(default_factory=dict)
    """What was asked -> what it comes to, but for rows; with `alpha`, so that nothing else gets its id."""

    @property
    def proximal(self) -> float:
        """mu: FedProx's, and twice the weight of |O_i - O'|^2, whose gradient it is."""
        return float(self.strategy.proximal) + 2 * self.job.consensus.parameter_weight

    @property
    def penalty(self) -> bool:
        return "penalty" in self.plan.graphs

    def train(
        self,
        number: int,
        rows: Int64,
        at: At,
        *,
        residual: int | None = None,
        forgotten: Iterable[int] = (),
        alpha: Array | None = None,
        step: int = 0,
    ) -> ProgramParts:
        """One round on one node. `rows` int64 [steps, batch].

        `step`: that of the server which this is for, where nodes do not go by rounds; else it is `number`.
        `residual`: the round whose residuals the node goes on from; without one they begin at zero.
        `forgotten`: rounds whose residuals it need not keep any longer.
        `alpha`: the global attention weights on the probe batch, for the penalty.
        """
        # Nodes of a round are mostly asked the same but for their rows: it is made once.
        old = tuple(forgotten)
        key = (number, step, rows.shape, at(0), residual, old, id(alpha))
        if (made := self._made.get(key)) is None:
            made = self._train(number, rows, at, residual, old, alpha, step), alpha
            if len(self._made) >= _RECENT:
                self._made.clear()
            self._made[key] = made
        (instructions, tensors), _ = made
        return instructions, {**tensors, **self._rows_of(rows)}

    def _train(
        self,
        number: int,
        rows: Int64,
        at: At,
        residual: int | None,
        forgotten: tuple[int, ...],
        alpha: Array | None,
        step: int,
    ) -> ProgramParts:
        tensors: dict[str, Array] = {}
        instructions: list[Instruction] = []
        single: Mapping[str, Value] = {}
        if not self.strategy.gradients:
            tensors["task/lr"] = np.asarray(local_lr(self.job, step or number), np.float32)
            if self.job.local.clip_gradients:
                tensors["task/max_gradient"] = np.asarray(self.job.local.clip_gradients, np.float32)
        if self.strategy.gradients:
            instructions += self._gradient(at)
        elif "step" in self.plan.graphs:
            instructions += self._steps(len(rows), at, tensors, alpha)
        else:
            single = self._single_step(at, tensors)
            instructions.append(self._batch("task/rows"))
        if self.job.consensus.attention:
            instructions += self._attention(at if self.strategy.gradients else _local, tensors)
        instructions += self._update(number, rows, at, tensors, single, residual, forgotten)
        return self._same(tuple(instructions)), tensors

    def evaluate(self, rows: Int64, at: At) -> ProgramParts:
        """Sums of loss and metrics over `rows` [n] of the node's dataset."""
        graph, names = self.plan.graphs["evaluate"], self.plan.sums
        tensors: dict[str, Array] = {f"task/sum/{name}": np.zeros((), np.float32) for name in names}
        full = len(rows) // EVALUATION_BATCH
        inputs: dict[str, Value] = {
            **self._inputs(),
            **{f"x/{i}": Stored(at(i)) for i in range(len(self.plan.names))},
            **{f"sum/{name}": Stored(f"task/sum/{name}") for name in names},
        }
        run = Run(
            graph.digest,
            self._needed("evaluate", inputs),
            {f"next/{name}": f"task/sum/{name}" for name in names},
        )
        instructions: list[Instruction] = []
        if full:
            tensors["task/rows/full"] = rows[: full * EVALUATION_BATCH].reshape(full, EVALUATION_BATCH)
            instructions.append(Repeat(full, (self._batch("task/rows/full"), run)))
        if len(rows) % EVALUATION_BATCH:
            tensors["task/rows/rest"] = rows[full * EVALUATION_BATCH :]
            instructions += [self._batch("task/rows/rest"), run]
        instructions += [Return(f"task/sum/{name}", f"next/{name}") for name in names]
        return self._same(tuple(instructions)), tensors

    def labels(self, rows: int) -> ProgramParts:
        """What the labels of a dataset of `rows` rows are like, of MAX_LABEL_ROWS of them at most."""
        label, graph = self.plan.label, self.plan.graphs["labels"]
        assert label is not None
        chosen = np.linspace(0, rows - 1, min(rows, MAX_LABEL_ROWS)).astype(np.int64)
        low, high = label.reach
        tensors: dict[str, Array] = {
            "task/sum/outside": np.zeros((), np.float32),
            "task/sum/strange": np.zeros((), np.float32),
            "task/sum/lowest": np.array(high, np.float32),
            "task/sum/highest": np.array(low, np.float32),
            "task/sum/seen": np.zeros(max(1, label.classes), np.float32),
        }
        inputs: dict[str, Value] = {
            **self._inputs(),
            **{f"sum/{name}": Stored(f"task/sum/{name}") for name in LABEL_SUMS},
        }
        outputs = {f"next/{name}": f"task/sum/{name}" for name in LABEL_SUMS}
        run = Run(graph.digest, self._needed("labels", inputs), outputs)
        batch = max(1, LABEL_BATCH // label.places)
        full, instructions = len(chosen) // batch, list[Instruction]()
        if full:
            tensors["task/rows/full"] = chosen[: full * batch].reshape(full, batch)
            instructions.append(Repeat(full, (self._batch("task/rows/full", label), run)))
        if len(chosen) % batch:
            tensors["task/rows/rest"] = chosen[full * batch :]
            instructions += [self._batch("task/rows/rest", label), run]
        instructions += [Return(f"task/sum/{name}", f"next/{name}") for name in LABEL_SUMS]
        return tuple(instructions), tensors

    @property
    def label_specs(self) -> dict[str, Spec]:
        """What nodes return of their labels."""
        assert self.plan.label is not None
        seen = (np.dtype(np.float32), (max(1, self.plan.label.classes),))
        return {f"next/{name}": seen if name == "seen" else SCALAR for name in LABEL_SUMS}

    def catch_up(self, before: At, at: At, difference: Callable[[str], str]) -> tuple[Instruction, ...]:
        """From the version the node has, at `before`, to the next, at `at`, by the difference pushed."""
        graph, count = self.plan.graphs["difference"], range(len(self.plan.names))
        inputs: dict[str, Value] = {f"p/{i}": Stored(before(i)) for i in count}
        inputs |= {n: Stored(difference(n)) for n in graph.inputs if not n.startswith("p/")}
        return (Run(graph.digest, inputs, {f"next/p/{i}": at(i) for i in count}),)

    # Pieces

    def _rows_of(self, rows: Int64) -> dict[str, Array]:
        """What of a round's tensors is one node's."""
        if self.strategy.gradients or "step" not in self.plan.graphs:
            return {"task/rows": rows[0]}
        if self.plan.slots:
            return {"task/rows": np.ascontiguousarray(rows)}
        # Without slots the first step reads the parameters where they are: no copy of the model.
        rest = {"task/rows": np.ascontiguousarray(rows[1:])} if len(rows) > 1 else {}
        return {"task/rows/first": rows[0], **rest}

    def _same(self, instructions: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
        """Equal ones of before, if there are: the very same are sent once, and called (engine/prepared)."""
        for known in self._recent:
            if known == instructions:
                return known
        self._recent.append(instructions)
        del self._recent[:-_RECENT]
        return instructions

    def _batch(self, rows: str, label: LabelPlan | None = None) -> Batch:
        """`label`: of its inputs alone."""
        # Two inputs may read the same: it is read once.
        tensors, names = self.view.stored("task/data")
        if label is not None:
            wanted = {names[name] for name in (label.labels, label.weights) if name in names}
            tensors = tuple(tensor for tensor in tensors if tensor.stored in wanted)
        return Batch(self.view.dataset, {}, Stored(rows), tensors=tensors, complete=self.view.complete)

    def _inputs(self) -> dict[str, Value]:
        _, names = self.view.stored("task/data")
        return {name: Stored(stored) for name, stored in names.items()}

    def _needed(self, role: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Of `inputs` those the graph has: nodes refuse any other."""
        wanted = self.plan.graphs[role].inputs
        return {name: value for name, value in inputs.items() if name in wanted}

    def _gradient(self, at: At) -> list[Instruction]:
        count = len(self.plan.names)
        inputs = {**self._inputs(), **{f"x/{i}": Stored(at(i)) for i in range(count)}}
        outputs = {"loss": "task/loss_sum", **{f"grad/{i}": f"task/grad/{i}" for i in range(count)}}
        if self.plan.weighted:
            outputs[LOSS_WEIGHT] = "task/weight_sum"
        run = Run(self.plan.graphs["gradient"].digest, self._needed("gradient", inputs), outputs)
        return [self._batch("task/rows"), run]

    def _steps(self, times: int, at: At, tensors: dict[str, Array], alpha: Array | None) -> list[Instruction]:
        count, slots = range(len(self.plan.names)), self.plan.slots
        tensors["task/mu"] = np.asarray(self.proximal, np.float32)
        x = {f"x/{i}": f"task/x/{i}" for i in count}
        state = {f"slot/{slot}/{i}": f"task/slot/{slot}/{i}" for slot in slots for i in count}
        single = {"count": "task/count", "loss_sum": "task/loss_sum"}
        if self.plan.weighted:
            single[WEIGHT_SUM] = "task/weight_sum"
        instructions: list[Instruction] = []
        penalty: dict[str, Value] = {}
        if self.penalty:
            assert alpha is not None  # there is a probe
            tensors |= {f"task/probe/{name}": array for name, array in self.job.consensus.probe.items()}
            tensors["task/alpha"] = alpha
            weight = self.job.consensus.attention_weight
            tensors["task/penalty_weight"] = np.asarray(weight, np.float32)
            probe = {f"probe/{name}": Stored(f"task/probe/{name}") for name in self.job.consensus.probe}
            penalty = {f"extra/{i}": Stored(f"task/extra/{i}") for i in count}
            penalty["penalty_weight"] = Stored("task/penalty_weight")

        def step(x_from: Mapping[str, Value], rows_name: str) -> tuple[Instruction, ...]:
            if self.penalty:
                inputs = self._needed("penalty", {**x_from, **probe, "alpha": Stored("task/alpha")})
                outputs = {f"grad/{i}": f"task/extra/{i}" for i in count}
                before: tuple[Instruction, ...] = (Run(self.plan.graphs["penalty"].digest, inputs, outputs),)
            else:
                before = ()
            bound: dict[str, Value] = {
                **self._inputs(),
                **x_from,
                **{name: Stored(stored) for name, stored in (state | single).items()},
                **{f"anchor/{i}": Stored(at(i)) for i in count},
                **{f"control/{i}": Stored(control(i)) for i in count},
                **penalty,
                "lr": Stored("task/lr"),
                "mu": Stored("task/mu"),
                "max_gradient": Stored("task/max_gradient"),
            }
            graph = self.plan.graphs["step"]
            outputs = {
                f"next/{name}": stored
                for name, stored in (x | state | single).items()
                if f"next/{name}" in graph.outputs
            }
            return (*before, self._batch(rows_name), Run(graph.digest, self._needed("step", bound), outputs))

        moving: dict[str, Value] = {name: Stored(stored) for name, stored in x.items()}
        if not slots:
            tensors["task/loss_sum"] = np.zeros((), np.float32)
            if self.plan.weighted:
                tensors["task/weight_sum"] = np.zeros((), np.float32)
            tensors["task/count"] = np.zeros((), np.int64)
            instructions += step({f"x/{i}": Stored(at(i)) for i in count}, "task/rows/first")
            times -= 1
        else:
            start = Run(
                self.plan.graphs["start"].digest,
                {f"p/{i}": Stored(at(i)) for i in count},
                x | state | single,
            )
            instructions.append(start)
        if times:
            instructions.append(Repeat(times, step(moving, "task/rows")))
        if slots:
            instructions.append(Drop(("task/slot/",)))
        return instructions

    def _single_step(self, at: At, tensors: dict[str, Array]) -> Mapping[str, Value]:
        """What the update graph needs to take the one local step itself."""
        count = range(len(self.plan.names))
        tensors |= {
            "task/mu": np.asarray(self.proximal, np.float32),
            "task/loss_sum": np.zeros((), np.float32),
            "task/count": np.zeros((), np.int64),
        }
        scalars: dict[str, Value] = {
            name: Stored(f"task/{name}") for name in ("lr", "mu", "max_gradient", "loss_sum", "count")
        }
        if self.plan.weighted:
            tensors["task/weight_sum"] = np.zeros((), np.float32)
            scalars[WEIGHT_SUM] = Stored("task/weight_sum")
        return {
            **self._inputs(),
            **scalars,
            **{f"x/{i}": Stored(at(i)) for i in count},
            **{f"control/{i}": Stored(control(i)) for i in count},
        }

    def _attention(self, at: At, tensors: dict[str, Array]) -> list[Instruction]:
        graph = self.plan.graphs["attention"]
        probe = self.job.consensus.probe
        tensors |= {f"task/probe/{name}": array for name, array in probe.items()}
        inputs: dict[str, Value] = {
            **{name: Stored(f"task/probe/{name}") for name in probe},
            **{f"x/{i}": Stored(at(i)) for i in range(len(self.plan.names))},
        }
        run = Run(graph.digest, self._needed("attention", inputs), {"attention": "task/attention"})
        return [run, Return("task/attention", "attention")]

    def _update(
        self,
        number: int,
        rows: Int64,
        at: At,
        tensors: dict[str, Array],
        single: Mapping[str, Value],
        residual: int | None,
        forgotten: Iterable[int],
    ) -> list[Instruction]:
        count, graph = range(len(self.plan.names)), self.plan.graphs["update"]
        tensors["task/steps"] = np.asarray(len(rows), np.float32)
        inputs: dict[str, Value] = {"loss_sum": Stored("task/loss_sum"), "steps": Stored("task/steps")}
        if self.plan.weighted:
            inputs[WEIGHT_SUM] = Stored("task/weight_sum")
        if self.job.local.clip:
            tensors["task/max_norm"] = np.asarray(self.job.local.clip, np.float32)
            inputs["max_norm"] = Stored("task/max_norm")
        for i in count:
            inputs |= {f"anchor/{i}": Stored(at(i)), f"x/{i}": Stored(f"task/x/{i}")}
            inputs[f"grad/{i}"] = Stored(f"task/grad/{i}")
        inputs |= single
        returned = self.plan.returned(self.encoding)
        outputs = {name: f"task/returned/{j}" for j, name in enumerate(returned)}
        instructions: list[Instruction] = []
        scope = f"job/{self.run}/kept/residual"
        if any(name.startswith("residual/") for name in graph.inputs):
            # A round's residuals have a name of their own: a round that is run again starts from the same.
            before = "task/zeros" if residual is None else f"{scope}/{residual}"
            if residual is None:
                zeros = {f"slot/residual/{i}": f"{before}/{i}" for i in count}
                pushed: dict[str, Value] = {f"p/{i}": Stored(at(i)) for i in count}
                instructions.append(Run(self.plan.graphs["zeros"].digest, pushed, zeros))
            for i in count:
                inputs[f"residual/{i}"] = Stored(f"{before}/{i}")
                outputs[f"next/residual/{i}"] = f"{scope}/{number}/{i}"
            if drop := tuple(f"{scope}/{old}/" for old in forgotten):
                instructions.append(Drop(drop))
        instructions.append(Run(graph.digest, self._needed("update", inputs), outputs))
        instructions.append(Drop(("task/x/", "task/grad/", "task/p/", "task/control/")))
        wire = {"loss": Encoding.RAW, "norm": Encoding.RAW, WEIGHT: Encoding.RAW}
        instructions += [Return(outputs[name], name, wire.get(name, self.encoding.wire)) for name in returned]
        return instructions


def _local(index: int) -> str:
    return f"task/x/{index}"
