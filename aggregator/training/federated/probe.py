"""Attention weights on the probe batch, computed in a process of its own: the graph is foreign code.

    python -m aggregator.training.federated.probe GRAPH PARAMETERS FOLDER

`FOLDER/probe.npz` has the batch. Left there: `attention.npy`, or `error.json`, why the graph cannot be run.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.tensor_file import TensorFile
from aggregator.training.federated import child
from edge_attention.core.errors import InvalidGraph
from edge_attention.core.tensors import Array

SECONDS = 300.0
"""What the attention weights of a probe may take."""
MEMORY = 8 << 30
"""Bytes that computing them may take."""


async def attention(
    graph: Path, parameters: Path, shapes: Sequence[tuple[int, ...]], probe: Mapping[str, Array]
) -> Array:
    """Output `attention` of the ONNX file `graph`, whose inputs are the probe's and `x/<i>`, parameters.

    `shapes` are those of the parameters, in order.

    Raises:
        InvalidGraph: it cannot be run, takes too long or too much memory, or has ended its process.
    """
    with tempfile.TemporaryDirectory(prefix="edge-attention-probe-") as name:
        folder = Path(name)
        batch: dict[str, Any] = {f"probe/{key}": array for key, array in probe.items()}
        np.savez(folder / "probe.npz", **batch)
        module = "aggregator.training.federated.probe"
        data = json.dumps([list(shape) for shape in shapes]).encode()
        try:
            status = await child.run(module, str(graph), str(parameters), name, seconds=SECONDS, data=data)
        except TimeoutError:
            raise InvalidGraph(
                f"attention on the probe could not be computed in {SECONDS:.0f} s; give a smaller probe"
            ) from None
        if (failure := folder / "error.json").exists():
            raise InvalidGraph(json.loads(failure.read_text()))
        if status:
            how = f"signal {-status}, {signal.strsignal(-status)}" if status < 0 else f"status {status}"
            raise InvalidGraph(f"attention on the probe: the graph ended its process ({how}); mend the model")
        weights: Array = np.load(folder / "attention.npy", allow_pickle=False)
        return weights


def main(graph: str, parameters: str, folder: str) -> None:
    import onnxruntime

    from edge_attention.graphs.reading import read_graph

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    shapes = json.load(sys.stdin)
    batch = np.load(Path(folder) / "probe.npz", allow_pickle=False)
    checked = read_graph(Path(graph).read_bytes(), "attention on the probe")
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
    except Exception as error:
        said = f"attention on the probe: ONNX Runtime refused it: {str(error)[:300]}"
        (Path(folder) / "error.json").write_text(json.dumps(said))
        return
    np.save(Path(folder) / "attention.npy", np.asarray(weights), allow_pickle=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
