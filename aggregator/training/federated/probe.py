"""Attention weights on the probe batch, computed in a process of its own: the graph is foreign code.

    python -m aggregator.training.federated.probe GRAPH PARAMETERS FOLDER

`FOLDER/probe.npz` has the batch. Left there: `attention.npy`, or `error.json`, why the graph cannot be run.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.bounds.bounds import PROBE_PROCESS
from aggregator.engine import apart
from aggregator.store.tensor_file import TensorFile
from edge_attention.core.errors import InvalidGraph
from edge_attention.core.printable import RUNTIME_WORDS
from edge_attention.core.tensors import Array

WHAT = "attention on the probe"


async def attention(
    graph: Path, parameters: Path, shapes: Sequence[tuple[int, ...]], probe: Mapping[str, Array]
) -> Array:
    """Output `attention` of the ONNX file `graph`, whose inputs are the probe's and `x/<i>`, parameters.

    `shapes` are those of the parameters, in order.

    Raises:
        InvalidGraph: it cannot be run, takes too long, or has ended its process.
        OutOfMemory: it takes too much memory.
    """
    with tempfile.TemporaryDirectory(prefix="edge-attention-probe-") as name:
        folder = Path(name)
        batch: dict[str, Any] = {f"probe/{key}": array for key, array in probe.items()}
        np.savez(folder / "probe.npz", **batch)
        module = "aggregator.training.federated.probe"
        data = json.dumps([list(shape) for shape in shapes]).encode()
        status = await apart.run(PROBE_PROCESS, WHAT, module, str(graph), str(parameters), name, data=data)
        if (failure := folder / "error.json").exists():
            raise InvalidGraph(json.loads(failure.read_text()))
        if status:
            raise apart.failed(WHAT, status)
        weights: Array = np.load(folder / "attention.npy", allow_pickle=False)
        return weights


def main(graph: str, parameters: str, folder: str) -> None:
    import onnxruntime

    from edge_attention.graphs.reading import read_graph

    shapes = json.load(sys.stdin)
    batch = np.load(Path(folder) / "probe.npz", allow_pickle=False)
    checked = read_graph(Path(graph).read_bytes(), WHAT)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(checked.data, options, providers=["CPUExecutionProvider"])
        feeds = {}
        with TensorFile(Path(parameters)) as file:
            for name in (value.name for value in session.get_inputs()):
                kind, _, index = name.partition("/")
                if kind == "x" and f"probe/{name}" not in batch:
                    feeds[name] = file.read(f"p/{index}").reshape(shapes[int(index)])
                else:
                    feeds[name] = batch[f"probe/{name}"]
        (weights,) = session.run(["attention"], feeds)
    except MemoryError:
        raise
    except Exception as error:
        said = f"{WHAT}: ONNX Runtime refused it: {str(error)[:RUNTIME_WORDS]}"
        (Path(folder) / "error.json").write_text(json.dumps(said))
        return
    np.save(Path(folder) / "attention.npy", np.asarray(weights), allow_pickle=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
