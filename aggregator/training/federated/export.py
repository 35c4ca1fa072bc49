"""The trained model as an ONNX file, made in a process of its own, as plans are.

    python -m aggregator.training.federated.export MODEL PARAMETERS OUT

Standard input has the parameters' names in the model, in order, as a JSON list: too many for an argument.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from aggregator.bounds.bounds import EXPORT_PROCESS
from aggregator.store.tensor_file import TensorFile
from aggregator.training import apart

WHAT = "writing the trained model"


async def export(model: Path, parameters: Path, names: Sequence[str], out: Path) -> None:
    """Write the file `model` with the values of `parameters` to `out`.

    Raises:
        EdgeAttentionError: it takes too long or too much memory, or has ended its process.
    """
    module = "aggregator.training.federated.export"
    data = json.dumps(list(names)).encode()
    status = await apart.run(EXPORT_PROCESS, WHAT, module, str(model), str(parameters), str(out), data=data)
    if status:
        raise apart.failed(WHAT, status)


def main(model: str, parameters: str, out: str) -> None:
    from edge_attention.graphs.models.trained import trained_onnx

    file = TensorFile(Path(parameters))
    values = {
        name: file.read(f"p/{index}").reshape(file.specs[f"p/{index}"][1])
        for index, name in enumerate(json.load(sys.stdin))
    }
    Path(out).write_bytes(trained_onnx(Path(model).read_bytes(), values))


if __name__ == "__main__":
    main(*sys.argv[1:])
