"""Looks at a model, makes its plan and cuts it, in a process of its own: models are foreign.

    python -m aggregator.inference.planner FOLDER        (by aggregator/engine/apart.py)

`FOLDER/request.json` says what is asked. Left there: `planned.json` (PlannedParts), or `error.json`, an error
of the catalogue; and, where the request says `into`, what the model is cut into.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from aggregator.bounds.bounds import CUTTING_PROCESS
from aggregator.engine import apart
from aggregator.inference.cut_request import CutRequest
from aggregator.inference.deployed import PlannedParts
from edge_attention.core import errors
from edge_attention.core.errors import EdgeAttentionError

__all__ = ["make"]

WHAT = "cutting the model"


async def make(request: CutRequest, folder: Path) -> PlannedParts:
    """Do what `request` asks, with `folder` to work in.

    Raises:
        EdgeAttentionError: what cannot be cut, and why; or what has ended the process that did it.
    """
    (folder / "request.json").write_text(json.dumps(request.to_json()))
    environment = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(256 * 1024)}
    module = "aggregator.inference.planner"
    status = await apart.run(CUTTING_PROCESS, WHAT, module, str(folder), environment=environment)
    failure = folder / "error.json"
    if failure.exists():
        said = json.loads(failure.read_text())
        raise errors.by_name(said["name"], said["message"])
    if status:
        raise apart.failed(WHAT, status)
    return PlannedParts.from_json(json.loads((folder / "planned.json").read_text()))


def main(folder: Path) -> int:
    from aggregator.inference.cutting import cut_as_asked

    request = CutRequest.from_json(json.loads((folder / "request.json").read_text()))
    try:
        made = cut_as_asked(request)
        (folder / "planned.json").write_text(json.dumps(made.to_json()))
    except EdgeAttentionError as error:
        said = {"name": type(error).__name__, "message": error.message}
        (folder / "error.json").write_text(json.dumps(said))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
