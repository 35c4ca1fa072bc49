"""What is refused of a request to deploy before anything is done for it."""

from __future__ import annotations

from aggregator.inference.placement import MAX_REPLICAS, plan_word
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.inference import (
    FILES,
    MAX_BATCH,
    MAX_QUEUE_DELAY,
    PLAN_FILE_BYTES,
    DeployRequest,
)
from edge_attention.core.tensors import require_name

__all__ = ["require_deployable"]

MAX_DIMENSION = 1 << 24


def require_deployable(request: DeployRequest) -> None:
    """Refuse what no model could mend.

    Raises:
        InvalidArgument: names the field.
    """
    require_name(request.name, "model")
    if request.plan_file and request.plan:
        raise InvalidArgument("a plan is named and one is said in full; give one of both")
    if not request.plan_file:
        plan_word(request.plan)
    if len(request.plan_file) > PLAN_FILE_BYTES:
        raise InvalidArgument(
            f"bound plan-file-bytes: the plan has {len(request.plan_file):,} bytes, and one has "
            f"{PLAN_FILE_BYTES:,} at most"
        )
    for node in request.nodes:
        require_name(node, "node")
    if len(set(request.nodes)) != len(request.nodes):
        raise InvalidArgument("nodes names one twice; name each once")
    if not 0 <= request.replicas <= MAX_REPLICAS:
        raise InvalidArgument(f"replicas is {request.replicas}; it must be 1 to {MAX_REPLICAS}")
    if request.max_batch > MAX_BATCH:
        raise InvalidArgument(
            f"max_batch is {request.max_batch:,}; a batch has at most {MAX_BATCH:,} rows (MAX_BATCH)"
        )
    if not 0 <= request.max_queue_delay <= MAX_QUEUE_DELAY:
        raise InvalidArgument(
            f"max_queue_delay is {request.max_queue_delay:g}; it must be 0 to {MAX_QUEUE_DELAY:g} seconds "
            "(MAX_QUEUE_DELAY)"
        )
    if len(request.files) > FILES:
        raise InvalidArgument(
            f"a model has at most {FILES:,} files of weights (FILES), not {len(request.files)}"
        )
    for name, size in request.dimensions.items():
        if len(name) > 256 or not 1 <= size <= MAX_DIMENSION:
            raise InvalidArgument(
                f"dimension {name[:80]!r} is {size}; a dimension has 1 to {MAX_DIMENSION:,} elements"
            )
