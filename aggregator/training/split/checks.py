"""What of a job through the split no model could mend, refused before any is looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from aggregator.training.fusion.plan import MAX_PATIENCE
from aggregator.training.split.groups import group_jobs
from aggregator.training.split.plan import SplitPlan
from aggregator.training.stopping import require_seen
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.learning_rates import from_config as schedule_from
from edge_attention.core.losses import loss_of
from edge_attention.core.messages.inference import PLAN_FILE_BYTES
from edge_attention.core.messages.training import SplitJob
from edge_attention.core.optimizers import from_config as optimizer_from
from edge_attention.core.schedule.plan import Crossing
from edge_attention.core.strategies import from_config as strategy_from
from edge_attention.core.table_spec import check_spec
from edge_attention.core.tensors import require_name

__all__ = ["MAX_BATCH", "check", "require_alike"]

SPLITS = ("layers", "heads", "tokens", "batch")
MAX_GROUPS, MAX_LOCAL_STEPS = 64, 100_000
MAX_BATCH, MAX_PIECES, MAX_ROUNDS = 65_536, 1024, 10_000_000
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check(job: SplitJob) -> None:
    """Refuse what no model could mend.

    Raises:
        InvalidArgument: naming the field.
    """
    require_name(job.name, "run")
    check_spec(job.table)
    _check_groups(job)
    nodes = [*job.nodes, *(node for group in job.groups for node in group.nodes)]
    for node in nodes:
        require_name(node, "node")
    if len(set(nodes)) != len(nodes):
        raise InvalidArgument("nodes names one twice; name each once, and in one group")
    digests = {
        "model.graph": job.model.graph, "model.initial": job.model.initial, "data.file": job.data.file,
        **{f"groups[{at}].file": group.file for at, group in enumerate(job.groups)},
    }  # fmt: skip
    for what, digest in digests.items():
        if not _DIGEST.fullmatch(digest) and (digest or what == "model.graph"):
            raise InvalidArgument(f"{what} is {digest[:80]!r}; it is the SHA-256 of a file that was sent")
    if job.model.gradients:
        raise InvalidArgument(
            "model.gradients: a step graph has gradients of its own, and is not cut; bring the model itself"
        )
    _check_split(job)
    for one in group_jobs(job):
        _check_data(one)
    optimizer_from(job.optimizer.name, **job.optimizer.options)
    schedule_from(job.schedule.name, **job.schedule.options)
    loss_of(job.model.loss)
    for what, value, low, high in (
        ("rounds", job.rounds, 1, MAX_ROUNDS),
        ("batch", job.batch, 1, MAX_BATCH),
        ("micro_batches", job.micro_batches, 1, MAX_PIECES),
        ("evaluate_every", job.evaluate_every, 0, MAX_ROUNDS),
        ("keep_versions", job.keep_versions, 1, MAX_ROUNDS),
    ):
        if not low <= value <= high:
            raise InvalidArgument(f"{what} is {value}; it must be {low:,} to {high:,}")
    if job.batch % job.micro_batches:
        raise InvalidArgument(
            f"batch is {job.batch} and micro_batches {job.micro_batches}: a batch is cut into so many equal "
            "pieces"
        )
    if not 0 <= job.holdout < 1:
        raise InvalidArgument(f"holdout is {job.holdout}; it is a share of the samples, 0 to below 1")
    limits = [("stop.loss", job.stop.loss), *((f"stop.metrics {n}", v) for n, v in job.stop.metrics.items())]
    for what, limit in limits:
        if limit is not None and not math.isfinite(limit):
            raise InvalidArgument(f"{what} is {limit}; it must be a finite number")
    for what, number, zero in (
        ("clip", job.clip, True),
        ("patience_seconds", job.patience_seconds, False),
        ("stop.seconds", job.stop.seconds, False),
        ("stop.min_delta", job.stop.min_delta, True),
    ):
        if number is not None and not (math.isfinite(number) and (number > 0 or (zero and number == 0))):
            raise InvalidArgument(
                f"{what} is {number}; it must be a number {'0 or above' if zero else 'above 0'}"
            )
    if job.patience_seconds is not None and job.patience_seconds > MAX_PATIENCE:
        raise InvalidArgument(f"patience_seconds is {job.patience_seconds:g}; it is at most {MAX_PATIENCE:,}")
    require_seen(job.stop, job.holdout, job.evaluate_every)


def _check_split(job: SplitJob) -> None:
    if bool(job.plan) == bool(job.split):
        raise InvalidArgument(
            "split is a word (layers, heads, tokens, batch), or a plan is given; one of both"
        )
    if len(job.plan) > PLAN_FILE_BYTES:
        raise InvalidArgument(
            f"bound plan-file-bytes: the plan has {len(job.plan):,} bytes, and one has {PLAN_FILE_BYTES:,} "
            "at most"
        )
    crossed = tuple(f"tokens:{one.value}" for one in Crossing)
    if job.split and job.split not in (*SPLITS, *crossed):
        raise InvalidArgument(
            f"split is {job.split[:80]!r}; it must be one of {', '.join(SPLITS)}, of tokens also how "
            f"attention is crossed ({', '.join(crossed)}), or a plan's file"
        )


def _check_groups(job: SplitJob) -> None:
    if not job.groups:
        if job.local_steps != 1 or job.strategy.name != "fedavg" or job.strategy.options:
            raise InvalidArgument(
                "local_steps and strategy are of groups, and there are none: a round is a step of all nodes"
            )
        return
    if job.nodes or job.data.file:
        raise InvalidArgument("groups have nodes and data of their own; give none besides")
    if len(job.groups) > MAX_GROUPS:
        raise InvalidArgument(f"there are {len(job.groups)} groups; there may be {MAX_GROUPS} (MAX_GROUPS)")
    if not all(group.nodes for group in job.groups):
        raise InvalidArgument("a group names no node")
    if not 1 <= job.local_steps <= MAX_LOCAL_STEPS:
        raise InvalidArgument(f"local_steps is {job.local_steps}; it must be 1 to {MAX_LOCAL_STEPS:,}")
    strategy = strategy_from(job.strategy.name, **job.strategy.options)
    if strategy.gradients or strategy.asynchronous or strategy.controls:
        raise InvalidArgument(
            f"strategy is {strategy.name}; of groups it is one that folds what local steps have come to, all "
            "of one version: fedavg, fedavgm, fedprox, fedadam, fedadagrad, fedyogi"
        )


def require_alike(plans: Sequence[SplitPlan]) -> None:
    """Refuse groups whose parameters cannot be folded: their samples make another model of the file.

    Raises:
        InvalidArgument: naming the first group that differs.
    """
    for at, one in enumerate(plans):
        if (one.names, one.shapes) != (plans[0].names, plans[0].shapes):
            raise InvalidArgument(
                f"groups, number {at}: its samples make other parameters of the model than those of number "
                "0; give rows of the same shapes"
            )


def _check_data(job: SplitJob) -> None:
    data = job.data
    if data.file:
        if data.inputs or data.labels or data.passes:
            raise InvalidArgument("data is a file of the job's, or names datasets on nodes; give one of both")
        return
    if not (data.inputs and data.labels):
        raise InvalidArgument(
            "data names no samples: give a file, or the datasets on nodes, data.inputs on that of the first "
            "layers and data.labels on that of the last"
        )
    for name in (data.inputs, data.labels):
        require_name(name, "dataset")
    if job.split and job.split != "layers":
        raise InvalidArgument(
            f"split is {job.split!r} and the data is on nodes: by layers alone one node has all of the "
            "inputs and one all of the labels; set split to layers"
        )
