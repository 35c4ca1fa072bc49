"""Checks a federated job, and makes its plan: the latter in the process of aggregator/training/planner.py."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aggregator.fleet.columns import rules_of
from aggregator.training.federated.plan import (
    DataInput,
    FederatedPlan,
    LabelPlan,
    PlannedGraphFile,
    asked_of,
    push_encoding,
    strategy_of,
)
from aggregator.training.fusion.plan import MAX_PATIENCE
from aggregator.training.gap_reads import COMPLETE, MEANS
from aggregator.training.stopping import require_seen
from edge_attention.core.combine import from_config as combine_from
from edge_attention.core.encodings import from_config as encoding_from
from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.learning_rates import from_config as schedule_from
from edge_attention.core.losses import MAX_LOSS_WEIGHT, loss_of, most_counted
from edge_attention.core.messages.table import MissingRule
from edge_attention.core.messages.training import FederatedJob, LossSpec, PlannedModel
from edge_attention.core.optimizers import from_config as optimizer_from
from edge_attention.core.strategies.fedbuff import FedBuff
from edge_attention.core.table_spec import check_spec
from edge_attention.core.tensors import require_name

if TYPE_CHECKING:
    from edge_attention.graphs.models.model import Model

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_STEPS, MAX_ROUNDS, MAX_BATCH, MAX_NODES = 100_000, 10_000_000, 65_536, 100_000


def check(job: FederatedJob) -> None:
    """Refuse what no model could mend.

    Raises:
        InvalidArgument: naming the field.
    """
    require_name(job.name, "run")
    require_name(job.dataset, "dataset")
    check_spec(job.table)
    for node in job.nodes:
        require_name(node, "node")
    if len(set(job.nodes)) != len(job.nodes):
        raise InvalidArgument("nodes names one twice; name each once")
    for what, digest in (("model.graph", job.model.graph), ("model.initial", job.model.initial)):
        if not _DIGEST.fullmatch(digest) and (digest or what == "model.graph"):
            raise InvalidArgument(f"{what} is {digest[:80]!r}; it is the SHA-256 of a file that was sent")
    # Before anything counts with them.
    if not 0 < job.selection.fraction <= 1 or not 0 < job.selection.quorum <= 1:
        raise InvalidArgument("selection.fraction and selection.quorum are shares, above 0 and at most 1")
    strategy = strategy_of(job)
    combine = combine_from(job.combine.name, **job.combine.options)
    if isinstance(strategy, FedBuff):
        combine.require(strategy.buffer)
    elif job.nodes:
        combine.require(asked_of(job, len(job.nodes)))
    encoding = encoding_from(job.update.name, **job.update.options)
    push_encoding(job)
    optimizer_from(job.local.optimizer.name, **job.local.optimizer.options)
    schedule_from(job.local.schedule.name, **job.local.schedule.options)
    loss_of(job.model.loss)
    for what, value, low, high in (
        ("rounds", job.rounds, 1, MAX_ROUNDS),
        ("local.batch", job.local.batch, 1, MAX_BATCH),
        ("local.steps", job.local.steps, 0, MAX_STEPS),
        ("evaluate_every", job.evaluate_every, 0, MAX_ROUNDS),
        ("selection.minimum", job.selection.minimum, 1, len(job.nodes) or MAX_NODES),
    ):
        if not low <= value <= high:
            raise InvalidArgument(f"{what} is {value}; it must be {low:,} to {high:,}")
    limits = [("stop.loss", job.stop.loss), *((f"stop.metrics {n}", v) for n, v in job.stop.metrics.items())]
    for what, limit in limits:
        if limit is not None and not math.isfinite(limit):
            raise InvalidArgument(f"{what} is {limit}; it must be a finite number")
    for what, seconds in (
        ("patience_seconds", job.patience_seconds),
        ("selection.deadline_seconds", job.selection.deadline_seconds),
    ):
        if seconds is not None and seconds > MAX_PATIENCE:
            raise InvalidArgument(f"{what} is {seconds:g}; it is at most {MAX_PATIENCE:,}")
    for what, number, zero in (
        ("local.epochs", job.local.epochs, True),
        ("local.clip", job.local.clip, True),
        ("local.clip_gradients", job.local.clip_gradients, True),
        ("stop.min_delta", job.stop.min_delta, True),
        ("selection.deadline_seconds", job.selection.deadline_seconds, False),
        ("selection.adaptive", job.selection.adaptive, True),
        ("consensus.attention_weight", job.consensus.attention_weight, True),
        ("consensus.parameter_weight", job.consensus.parameter_weight, True),
        ("patience_seconds", job.patience_seconds, False),
        ("stop.seconds", job.stop.seconds, False),
    ):
        if number is not None and not (math.isfinite(number) and (number > 0 or (zero and number == 0))):
            raise InvalidArgument(
                f"{what} is {number}; it must be a number {'0 or above' if zero else 'above 0'}"
            )
    if not strategy.gradients and bool(job.local.steps) == bool(job.local.epochs):
        raise InvalidArgument("local needs steps or epochs, one of both")
    if job.weighting not in ("samples", "equal"):
        raise InvalidArgument(f"weighting is {job.weighting!r}; it must be 'samples' or 'equal'")
    if not 0 <= job.holdout < 1:
        raise InvalidArgument(f"holdout is {job.holdout}; it is a share of each node's rows, 0 to below 1")
    require_seen(job.stop, job.holdout, job.evaluate_every)
    local, consensus = job.local, job.consensus
    bent = local.clip or local.clip_gradients or consensus.parameter_weight or consensus.attention_weight
    if strategy.controls and (bent or encoding.name == "topk"):
        raise InvalidArgument(
            f"{strategy.name} reads a node's gradients off its update; leave out local.clip, "
            "local.clip_gradients, consensus weights and topk"
        )
    if strategy.controls and combine.name != "mean":
        raise InvalidArgument(
            f"{strategy.name} takes the plain mean of what nodes' updates say of their gradients, which "
            f"combine {combine.name} does not protect; leave out combine, or choose another strategy"
        )
    if strategy.controls and job.local.optimizer.name != "sgd":
        raise InvalidArgument(f"{strategy.name} corrects plain SGD; set local.optimizer to sgd")
    if job.consensus.attention and not job.consensus.probe:
        raise InvalidArgument("consensus.attention needs a probe batch; give arrays for the model's inputs")


def plan(
    job: FederatedJob,
    files: Mapping[str, Path],
    folder: Path,
    rows: Mapping[str, Mapping[str, tuple[int, ...]]] | None = None,
) -> FederatedPlan:
    """The plan of `job`; to `folder` go its graphs, `<digest>.onnx`, and parameters, `initial.safetensors`.

    Args:
        files: digest -> where the file is.
        rows: node -> column -> the shape of one row, of nodes that are here.

    Raises:
        EdgeAttentionError: what cannot be trained, and why.
    """
    # onnx and onnx-ad are for this process alone.
    import safetensors.numpy

    from edge_attention.graphs.gradients.gradients import graph_inputs, graph_outputs
    from edge_attention.graphs.models.gap_graphs import complete_graph, means_graph
    from edge_attention.graphs.models.label_graph import label_graph
    from edge_attention.graphs.models.model import gradient_graph, load_model, load_step_graph
    from edge_attention.graphs.models.model_checks import check_model
    from edge_attention.graphs.models.model_graphs import attention_graph, evaluation_graph, penalty_graph
    from edge_attention.graphs.models.parts import serialize
    from edge_attention.graphs.steps.local_step import local_step, start_graph, step_and_update
    from edge_attention.graphs.steps.update import difference_graph, update_graph

    check(job)
    spec, local, consensus = job.model, job.local, job.consensus
    strategy = strategy_of(job)
    encoding = encoding_from(job.update.name, **job.update.options)
    file = files[spec.graph]
    place = f"model of {job.name}"
    given = given_values(files[spec.initial].read_bytes()) if spec.initial else {}
    if spec.gradients:
        loss = spec.loss.output or "loss"
        model, _ = load_step_graph(
            file.read_bytes(),
            gradients=spec.gradients,
            loss=loss,
            initial=given,
            metrics=spec.metrics,
            place=place,
        )
    else:
        model = load_model(
            file.read_bytes(),
            loss=spec.loss,
            parameters=spec.parameters,
            metrics=spec.metrics,
            others=(consensus.attention,) if consensus.attention else (),
            dimensions=spec.dimensions,
            rows=_of_inputs(job, rows or {}),
            head=spec.head,
            seed=job.seed,
            place=place,
        )
    if job.holdout and not model.forward:
        raise InvalidArgument(
            "this step graph has a fixed batch, so held-out rows cannot be evaluated; set holdout to 0, or "
            "export it with a dynamic batch"
        )
    check_model(model)
    for new, old in model.untied.items():
        log.info("%s: %s was one with %s in the file and trains by itself", place, new, old)
    for note in model.notes:
        log.warning("%s: %s", place, note)
    if model.dropped:
        log.warning("%s: the exporter has left out %s", place, ", ".join(model.dropped))
    gradient = gradient_graph(model, local.batch)
    parameters = initial_values(model.parameters, given) if given else dict(model.parameters)
    shapes = tuple(array.shape for array in parameters.values())
    parameter_weight = 2 * consensus.parameter_weight if consensus.parameter_weight else 0.0
    penalty = bool(consensus.attention and consensus.attention_weight)

    graphs: dict[str, bytes] = {}
    slots: tuple[str, ...] = ()
    if strategy.gradients:
        graphs["gradient"] = serialize(gradient)
    else:
        optimizer = optimizer_from(local.optimizer.name, **local.optimizer.options)
        slots = optimizer.slots
        proximal = bool(strategy.proximal or parameter_weight)
        if slots:
            graphs["start"] = start_graph(shapes, slots, weighted=model.weighted)
        graphs["step"] = local_step(
            gradient,
            shapes,
            optimizer,
            proximal=proximal,
            control=strategy.controls,
            penalty=penalty,
            weighted=model.weighted,
            clip=bool(local.clip_gradients),
        )
    graphs["update"] = update_graph(
        shapes, source="gradient" if strategy.gradients else "difference", clip=bool(local.clip),
        encoding=encoding, weighted=model.weighted,
    )  # fmt: skip
    if not strategy.gradients and local.steps == 1 and not slots and not consensus.attention:
        # One step and its update are one graph: a model less for a node to hold. Where an input of the model
        # is called like one of the update's they stay two.
        with contextlib.suppress(InvalidGraph):
            graphs["update"] = step_and_update(graphs["step"], graphs["update"])
            del graphs["step"]
    if job.push.difference:
        graphs["difference"] = difference_graph(shapes, push_encoding(job))
    if encoding.feedback:
        graphs["zeros"] = start_graph(shapes, ("residual",))
    if job.holdout and model.forward:
        graphs["evaluate"] = evaluation_graph(model)
    label = _label(model, spec.loss)
    if model.label is not None:
        graphs["labels"] = label_graph(model.label, model.inputs[model.label.labels])
    rules = rules_of(job.table)
    if MissingRule.DROP in rules:
        graphs[COMPLETE] = complete_graph()
    if MissingRule.MEAN in rules:
        graphs[MEANS] = means_graph()
    if consensus.attention:
        graphs["attention"] = attention_graph(model, consensus.attention)
        if penalty:
            batch = len(next(iter(consensus.probe.values())))
            graphs["penalty"] = penalty_graph(model, consensus.attention, batch)

    planned = {}
    for role, graph in graphs.items():
        digest = hashlib.sha256(graph).hexdigest()
        (folder / f"{digest}.onnx").write_bytes(graph)
        planned[role] = PlannedGraphFile(digest, tuple(graph_inputs(graph)), tuple(graph_outputs(graph)))
    safetensors.numpy.save_file(
        {f"p/{i}": np.asarray(array, order="C") for i, array in enumerate(parameters.values())},
        folder / "initial.safetensors",
    )
    inputs = tuple(
        DataInput(name, dtype.name, tuple(n or 0 for n in shape[1:]))
        for name, (dtype, shape) in model.inputs.items()
    )
    described = PlannedModel(
        place,
        {name: math.prod(shape) for name, shape in zip(parameters, shapes, strict=True)},
        model.frozen,
        model.cut,
        model.dimensions,
        (*model.notes, *_said(model)),
    )
    result = FederatedPlan(
        tuple(parameters),
        shapes,
        inputs,
        tuple(model.metrics),
        slots,
        planned,
        model.weighted,
        most_counted(spec.loss),
        described,
        label,
    )
    _unknown_names(job, result)
    return result


def _label(model: Model, loss: LossSpec) -> LabelPlan | None:
    from edge_attention.graphs.models.label_graph import reach

    kind = model.label
    if kind is None:
        return None
    places = math.prod(n or 1 for n in model.inputs[kind.labels][1][1:])
    bounds = reach(kind)
    return LabelPlan(kind.labels, kind.weights, kind.classes, kind.binary, bounds, MAX_LOSS_WEIGHT, places)


def _of_inputs(
    job: FederatedJob, rows: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """The same by the model's inputs, which are called as their columns where the job does not bind them."""
    bound = job.model.inputs
    return {
        node: {**columns, **{name: columns[column] for name, column in bound.items() if column in columns}}
        for node, columns in rows.items()
    }


def _said(model: Model) -> list[str]:
    """What the exporter has done to the file, a sentence each."""
    said = [f"{new} was one with {old} in the file and trains by itself" for new, old in model.untied.items()]
    if model.dropped:
        said.append(
            f"the file does not have {', '.join(model.dropped)}, which do not train: an exporter leaves out "
            "what it finds without effect, as biases that are zero; edge_attention.torch.export keeps those"
        )
    return said


def given_values(data: bytes) -> Mapping[str, Any]:
    """The arrays of a safetensors file that somebody has sent."""
    import safetensors.numpy

    try:
        found: Mapping[str, Any] = safetensors.numpy.load(data)
        return found
    except Exception as error:  # its own error, and what NumPy makes of a dtype it does not have
        raise InvalidArgument(f"initial is no safetensors file that can be read: {error}") from None


def initial_values(parameters: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the values given, which must be all of them."""
    if missing := sorted(parameters.keys() - given.keys()):
        raise InvalidArgument(f"initial lacks {', '.join(missing[:5])}; give every parameter a value")
    found = {}
    for name, array in parameters.items():
        value = given[name]
        if value.shape != array.shape or value.dtype != np.float32 or not np.isfinite(value).all():
            raise InvalidArgument(
                f"initial: {name} is {value.dtype} {list(value.shape)}; it must be finite float32 "
                f"{list(array.shape)}"
            )
        found[name] = value
    return found


def _unknown_names(job: FederatedJob, made: FederatedPlan) -> None:
    known = {wanted.name for wanted in made.inputs}
    if unknown := sorted({*job.model.inputs, *job.table.inputs} - known):
        raise InvalidArgument(
            f"model.inputs binds {unknown[0]!r}, which is no input of the model; it has "
            f"{', '.join(sorted(known))}"
        )
    if unknown := sorted(set(job.stop.metrics) - set(made.metrics)):
        raise InvalidArgument(
            f"stop.metrics names {unknown[0]!r}, which is no metric of the model; it has "
            f"{', '.join(made.metrics) or 'none'}"
        )
    if job.consensus.attention:
        _check_probe(job, made)


def _check_probe(job: FederatedJob, made: FederatedPlan) -> None:
    """The probe has what the attention graph takes, a row an example."""
    probe, wanted = job.consensus.probe, {i.name: i for i in made.inputs}
    if missing := [n for n in made.graphs["attention"].inputs if n in wanted and n not in probe]:
        raise InvalidArgument(f"consensus.probe lacks {missing[0]!r}, an input of the model")
    for name, array in probe.items():
        known = wanted.get(name)
        if known is None or (array.dtype.name, array.shape[1:]) != (known.dtype, known.shape):
            needs = "no input" if known is None else f"{known.dtype} {list(known.shape)} a row"
            raise InvalidArgument(
                f"consensus.probe has {name!r} as {array.dtype} {list(array.shape)}; the model has {needs}"
            )
    if len({array.shape[:1] for array in probe.values()}) != 1:
        raise InvalidArgument("consensus.probe: its arrays have different numbers of rows")
