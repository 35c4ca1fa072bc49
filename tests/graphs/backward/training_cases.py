"""Models with a loss, what they are given, and what the whole model's gradients are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto

from edge_attention.core.messages.federated import LossSpec, NewHead
from edge_attention.core.schedule.plan import CutPlan
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.emit import Emitted
from edge_attention.graphs.axes.in_process import InProcess, Ran
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.backward.training import training_axes, training_cut
from edge_attention.graphs.models.model import gradient_graph, load_model
from edge_attention.graphs.models.training_file import training_file
from edge_attention.graphs.onnx_file import serialize

__all__ = ["TrainingCase", "case_of", "loss_for", "run_cut", "session"]


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """A model that trains.

    Attributes:
        trained: its parameters.
        feeds: data and labels.
        loss, gradients: of the whole model, differentiated as one graph.
    """

    model: OpenModel
    trained: tuple[str, ...]
    feeds: Mapping[str, Array]
    loss: float
    gradients: Mapping[str, Array]
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def forms(self) -> dict[str, TensorForm]:
        return {name: TensorForm(str(value.dtype), value.shape) for name, value in self.feeds.items()}

    def axes(self) -> Axes:
        return training_axes(self.model, self.trained, self.forms)

    def cut(self, plan: CutPlan, **options: bool) -> Emitted:
        return training_cut(self.model, self.trained, plan, self.forms, **options)

    def worst(self, ran: Ran) -> tuple[float, str]:
        """The largest difference of a gradient, by the largest of all gradients, and whose it is."""
        largest = max(float(np.abs(one).max()) for one in self.gradients.values())
        found = (abs(float(ran.results["loss"]) - self.loss) / max(1.0, abs(self.loss)), "loss")
        for name, one in self.gradients.items():
            other = ran.results[f"grad:{name}"]
            assert other.shape == one.shape, name
            found = max(found, (float(np.abs(one - other).max()) / largest, name))
        return found


def case_of(
    data: bytes,
    feeds: Mapping[str, Array],
    loss: LossSpec,
    *,
    parameters: Sequence[str] = (),
    head: NewHead | None = None,
    labels: Array | None = None,
    seed: int = 0,
) -> TrainingCase:
    """A case of a model's file: labels are made up, of the shape that the loss asks for."""
    rows = {"here": {name: value.shape[1:] for name, value in feeds.items()}}
    batch = next(iter(feeds.values())).shape[0]
    model = load_model(data, loss=loss, parameters=parameters, rows=rows, head=head)
    rng = np.random.default_rng(seed)
    given = {name: value for name, value in feeds.items() if name in model.inputs}
    for name, (dtype, shape) in model.inputs.items():
        if name in given:
            continue
        assert model.label is not None
        size = (batch, *shape[1:])
        if name == model.label.labels and labels is not None:
            given[name] = labels
        elif name == model.label.labels and model.label.classes:
            given[name] = rng.integers(0, model.label.classes, size).astype(dtype)
        else:
            given[name] = rng.random(size).astype(dtype)
    gradient = session(serialize(gradient_graph(model, batch)))
    held = {f"x/{n}": value for n, value in enumerate(model.parameters.values())}
    wanted = [one.name for one in gradient.get_inputs()]
    names = [one.name for one in gradient.get_outputs()]
    found = dict(
        zip(
            names,
            gradient.run(names, {n: v for n, v in {**held, **given}.items() if n in wanted}),
            strict=True,
        )
    )
    return TrainingCase(
        OpenModel(None, training_file(model), {}),  # type: ignore[arg-type]
        model.names,
        given,
        float(found["loss"]),
        {name: found[f"grad/{n}"] for n, name in enumerate(model.names)},
    )


def loss_for(model: ModelProto, output: str = "") -> LossSpec:
    """A loss that fits an output: of logits over a vocabulary cross-entropy, else the squared difference."""
    value = next(one for one in model.graph.output if not output or one.name == output)
    return LossSpec("cross_entropy" if "logits" in value.name else "mse", output=value.name)


def run_cut(case: TrainingCase, emitted: Emitted, feeds: Mapping[str, Array] | None = None) -> Ran:
    """The schedule, run in this process."""
    runs = InProcess(
        emitted.schedule, emitted.graphs.__getitem__, emitted.constants.__getitem__, case.model.piece
    )
    return runs.run(case.feeds if feeds is None else feeds)


def session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def load(path: str) -> ModelProto:
    return onnx.load(path)
