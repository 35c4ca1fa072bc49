"""Looks at a model, makes its plan and cuts it, in a process of its own: models are foreign.

    python -m aggregator.inference.planner FOLDER        (by aggregator/engine/apart.py)

`FOLDER/request.json` says what is asked. Left there: `planned.json` (PlannedParts), or `error.json`, an error
of the catalogue; and, where the request says `into`, what the model is cut into.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from aggregator.bounds.bounds import CUTTING_PROCESS
from aggregator.engine import apart
from aggregator.inference.cut_request import CutRequest
from aggregator.inference.deployed import PlannedParts
from edge_attention.core import errors
from edge_attention.core.errors import EdgeAttentionError

__all__ = ["ENVIRONMENT", "WHAT", "answer", "ask", "make", "said"]

WHAT = "cutting the model"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(256 * 1024)}
"""Of the process."""


async def make(request: CutRequest, folder: Path) -> PlannedParts:
    """Do what `request` asks, with `folder` to work in.

    Raises:
        EdgeAttentionError: what cannot be cut, and why; or what has ended the process that did it.
    """
    ask(request, folder)
    module = "aggregator.inference.planner"
    status = await apart.run(CUTTING_PROCESS, WHAT, module, str(folder), environment=ENVIRONMENT)
    if status and not (folder / "error.json").exists():
        raise apart.failed(WHAT, status)
    return said(folder)


def ask(request: CutRequest, folder: Path) -> None:
    """Write down what is asked."""
    (folder / "request.json").write_text(json.dumps(request.to_json()))


def said(folder: Path) -> PlannedParts:
    """What was answered there. Raises the error that was."""
    failure = folder / "error.json"
    if failure.exists():
        found = json.loads(failure.read_text())
        raise errors.by_name(found["name"], found["message"])
    return PlannedParts.from_json(json.loads((folder / "planned.json").read_text()))


def answer(folder: Path, cut: Callable[[CutRequest], PlannedParts]) -> int:
    """In the process: have what is asked in `folder` cut; its exit status."""
    try:
        made = cut(CutRequest.from_json(json.loads((folder / "request.json").read_text())))
        (folder / "planned.json").write_text(json.dumps(made.to_json()))
    except EdgeAttentionError as error:
        found = {"name": type(error).__name__, "message": error.message}
        (folder / "error.json").write_text(json.dumps(found))
        return 1
    return 0


def main(folder: Path) -> int:
    from aggregator.inference.cutting import cut_as_asked

    return answer(folder, cut_as_asked)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
