"""The trained model as an ONNX file, made in a process of its own, as plans are.

    python -m aggregator.training.federated.export MODEL PARAMETERS OUT

Standard input has the rest of `ExportRequest` as JSON: names are too many for an argument.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from aggregator.bounds.bounds import EXPORT_PROCESS
from aggregator.engine import apart
from aggregator.store.tensor_file import TensorFile
from edge_attention.core.messages.training import NewHead

WHAT = "writing the trained model"


@dataclass(frozen=True)
class ExportRequest:
    """How a job has read its file: the parameters' names in order, the output that the loss is of, the new
    head, and the sizes of dimensions that the file leaves open."""

    names: tuple[str, ...]
    output: str = ""
    head: NewHead | None = None
    dimensions: Mapping[str, int] = field(default_factory=dict)


async def export(model: Path, parameters: Path, request: ExportRequest, out: Path) -> None:
    """Write the file `model` with the values of `parameters` to `out`.

    Raises:
        EdgeAttentionError: it takes too long or too much memory, or has ended its process.
    """
    module = "aggregator.training.federated.export"
    data = json.dumps(asdict(request)).encode()
    status = await apart.run(EXPORT_PROCESS, WHAT, module, str(model), str(parameters), str(out), data=data)
    if status:
        raise apart.failed(WHAT, status)


def main(model: str, parameters: str, out: str) -> None:
    from edge_attention.graphs.models.trained import trained_onnx

    file = TensorFile(Path(parameters))
    request = json.load(sys.stdin)
    values = {
        name: file.read(f"p/{index}").reshape(file.specs[f"p/{index}"][1])
        for index, name in enumerate(request["names"])
    }
    written = trained_onnx(
        Path(model).read_bytes(),
        values,
        output=request["output"],
        head=NewHead(**request["head"]) if request["head"] else None,
        dimensions=request["dimensions"],
    )
    Path(out).write_bytes(written)


if __name__ == "__main__":
    main(*sys.argv[1:])
