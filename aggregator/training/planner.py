"""Makes a job's plan in a process of its own: models are foreign, and what one takes of memory goes with it.

    python -m aggregator.training.planner FOLDER        (by aggregator/engine/apart.py)

`FOLDER/request.json` names the encoded job and where the files are. Left there: `plan.json`, the graphs as
`<digest>.onnx`, the initial parameters as `initial.safetensors`; or `error.json`, an error of the catalogue.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from aggregator.bounds.bounds import PLANNING_PROCESS
from aggregator.engine import apart
from aggregator.inference.cut_request import NodeTold
from edge_attention.core import errors
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.training import FederatedJob, FusionJob, SplitJob, StartRunRequest
from edge_attention.wire.services import START_RUN

WHAT = "planning the model"


RowShapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Node, of a fusion job `<node>/<dataset>`, to column to the shape of one row, of what the job reads."""

MakePlan = Callable[..., Awaitable[str]]
"""`make`, or `make_here`."""


async def make(
    job: FusionJob | FederatedJob | SplitJob,
    files: Mapping[str, Path],
    folder: Path,
    rows: RowShapes | None = None,
    nodes: Sequence[NodeTold] = (),
) -> str:
    """Plan `job` into `folder`; the plan as JSON. `files`: digest -> where the file is.

    `rows`: of nodes that are here; sizes that a model leaves open are taken from them. `nodes`: that may hold
    parts of a model that is split.

    Raises:
        EdgeAttentionError: what cannot be trained, and why; or what has ended its planning.
    """
    _write_request(job, files, folder, rows, nodes)
    # What is freed goes back to the system at once: a large model is handled piece after piece.
    environment = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(256 * 1024)}
    module = "aggregator.training.planner"
    status = await apart.run(PLANNING_PROCESS, WHAT, module, str(folder), environment=environment)
    return _made(folder, status)


async def make_here(
    job: FusionJob | FederatedJob | SplitJob,
    files: Mapping[str, Path],
    folder: Path,
    rows: RowShapes | None = None,
    nodes: Sequence[NodeTold] = (),
) -> str:
    """As `make`, in a thread of this process: for a model of whoever started it."""
    _write_request(job, files, folder, rows, nodes)
    return _made(folder, await asyncio.to_thread(main, folder))


def _write_request(
    job: FusionJob | FederatedJob | SplitJob,
    files: Mapping[str, Path],
    folder: Path,
    rows: RowShapes | None,
    nodes: Sequence[NodeTold],
) -> None:
    encoded = base64.b64encode(START_RUN.request.encode(request_of(job))).decode()
    request = {
        "job": encoded,
        "files": {digest: str(path) for digest, path in files.items()},
        "rows": rows or {},
        "nodes": [vars(node) for node in nodes],
    }
    (folder / "request.json").write_text(json.dumps(request))


def _made(folder: Path, status: int) -> str:
    """The plan that `main` has left, which ended with `status`; raises its error."""
    failure = folder / "error.json"
    if failure.exists():
        said = json.loads(failure.read_text())
        raise errors.by_name(said["name"], said["message"])
    if status:
        raise apart.failed(WHAT, status)
    return (folder / "plan.json").read_text()


def request_of(job: FusionJob | FederatedJob | SplitJob) -> StartRunRequest:
    """The request that starts it: what is kept of it, and sent."""
    if isinstance(job, SplitJob):
        return StartRunRequest(split=job)
    return StartRunRequest(job) if isinstance(job, FusionJob) else StartRunRequest(federated=job)


def main(folder: Path) -> int:
    request = json.loads((folder / "request.json").read_text())
    job = START_RUN.request.decode(base64.b64decode(request["job"]))
    files = {digest: Path(path) for digest, path in request["files"].items()}
    rows = {
        node: {column: tuple(shape) for column, shape in columns.items()}
        for node, columns in request["rows"].items()
    }
    try:
        if job.job is not None:
            from aggregator.training.fusion import planner as fusion_planner

            made = fusion_planner.plan(job.job, files, folder, rows).to_json()
        elif job.split is not None:
            from aggregator.training.split import planner as split_planner

            nodes = [NodeTold(**node) for node in request["nodes"]]
            made = split_planner.plan(job.split, files, folder, rows, nodes).to_json()
        else:
            from aggregator.training.federated import planner

            assert job.federated is not None
            made = planner.plan(job.federated, files, folder, rows).to_json()
        (folder / "plan.json").write_text(made)
    except EdgeAttentionError as error:
        said = {"name": type(error).__name__, "message": error.message}
        (folder / "error.json").write_text(json.dumps(said))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
