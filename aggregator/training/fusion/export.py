"""A trained fusion model as one ONNX file, or what its head makes of fused outputs, in a process of its own.

    python -m aggregator.training.fusion.export FOLDER

`FOLDER/request.json` is a FusionExport; where `FOLDER/fused.npy` is, it is answered in `FOLDER/outputs.npz`,
else the model is written to `FOLDER/model.onnx`. Or left there: `error.json`, why not.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.bounds.bounds import EXPORT_PROCESS, PREDICTED_BYTES
from aggregator.engine import apart
from aggregator.store.tensor_file import TensorFile
from aggregator.training.fusion.plan import FusionPlan
from edge_attention.core.errors import EdgeAttentionError, InvalidGraph, ResourceExhausted, by_name
from edge_attention.core.messages.training import MissingSamples
from edge_attention.core.printable import RUNTIME_WORDS
from edge_attention.core.tensors import Array

__all__ = ["FusionExport", "answer_of", "request_of", "write_model"]

WHAT = "writing the trained model"


@dataclass(frozen=True)
class FusionExport:
    """Where everything is. `encoders`: node -> the file of its graph; `names`: those of its parameters.

    `head`: the file that the job brought; `forward`: what the plan has made of it for evaluations.
    """

    parameters: str
    encoders: Mapping[str, str]
    names: Mapping[str, tuple[str, ...]]
    head: str
    forward: str
    head_names: tuple[str, ...]
    trainable: tuple[str, ...]
    labels: tuple[str, ...]
    dimensions: Mapping[str, int]
    scale: float
    absent: bool


def request_of(plan: FusionPlan, parameters: Path, paths: Mapping[str, Path]) -> FusionExport:
    """Of `plan` at a version whose parameters are in that file. `paths`: digest -> file, of its graphs and of
    the job's head."""
    head, job = plan.head, plan.job
    dimensions = {**job.head.dimensions, **(head.model.dimensions if head.model is not None else {})}
    return FusionExport(
        str(parameters),
        {part.prefix: str(paths[part.forward.digest]) for part in plan.encoders},
        {part.prefix: tuple(part.parameters) for part in plan.encoders},
        str(paths[job.head.graph]),
        str(paths[head.forward.digest]),
        tuple(head.parameters),
        tuple(job.head.trainable),
        tuple(head.inputs),
        dimensions,
        plan.scale,
        job.missing is MissingSamples.ATTEND,
    )


async def write_model(request: FusionExport, folder: Path) -> Path:
    """The model as a file in `folder`.

    Raises:
        EdgeAttentionError: the head says nothing without labels; it takes too long, or too much memory.
    """
    await _run(request, folder)
    return folder / "model.onnx"


async def answer_of(request: FusionExport, fused: Array, folder: Path) -> dict[str, Array]:
    """The head's outputs that need no labels, for `fused` float32 [B, N, Hq, dv].

    Raises as `write_model`; and ResourceExhausted: they are too large.
    """
    await asyncio.to_thread(np.save, folder / "fused.npy", fused, allow_pickle=False)
    await _run(request, folder)
    with np.load(folder / "outputs.npz", allow_pickle=False) as found:
        return {name.removeprefix("o/"): found[name] for name in found.files}


async def _run(request: FusionExport, folder: Path) -> None:
    (folder / "request.json").write_text(json.dumps(asdict(request)))
    status = await apart.run(EXPORT_PROCESS, WHAT, "aggregator.training.fusion.export", str(folder))
    if (failure := folder / "error.json").exists():
        raise by_name(*json.loads(failure.read_text()))
    if status:
        raise apart.failed(WHAT, status)


def main(folder: Path) -> None:
    from edge_attention.graphs.models.fused_model import TrainedPart, fused_onnx, head_onnx

    request = json.loads((folder / "request.json").read_text())
    file = TensorFile(Path(request["parameters"]))

    def value(name: str) -> Array:
        return file.read(f"p/{name}").reshape(file.specs[f"p/{name}"][1])

    try:
        values = {name: value(f"head/{name}") for name in request["head_names"]}
        head = TrainedPart(*_head(request, values), tuple(request["labels"]))
        if (given := folder / "fused.npy").exists():
            _answer(head_onnx(head), np.load(given, allow_pickle=False), folder / "outputs.npz")
            return
        encoders = {
            node: TrainedPart(
                Path(path).read_bytes(), {name: value(f"{node}/{name}") for name in request["names"][node]}
            )
            for node, path in request["encoders"].items()
        }
        model = fused_onnx(encoders, head, value("queries"), request["scale"], request["absent"])
        (folder / "model.onnx").write_bytes(model)
    except EdgeAttentionError as error:
        (folder / "error.json").write_text(json.dumps((type(error).__name__, error.message)))


def _head(request: Mapping[str, Any], trained: Mapping[str, Array]) -> tuple[bytes, dict[str, Array]]:
    """All of the head's file, with the values of parameters that only its other outputs have; where that
    cannot be read, what the plan has of it."""
    from edge_attention.graphs.models.parts import load_part

    try:
        part = load_part(
            Path(request["head"]).read_bytes(),
            "head",
            request["trainable"] or None,
            "head",
            dimensions=request["dimensions"],
        )
    except InvalidGraph:
        return Path(request["forward"]).read_bytes(), dict(trained)
    if not trained.keys() <= part.parameters.keys():
        return Path(request["forward"]).read_bytes(), dict(trained)
    return part.forward, {**part.parameters, **trained}


def _answer(model: bytes, fused: Array, out: Path) -> None:
    import onnxruntime

    from edge_attention.graphs.reading import read_graph

    checked = read_graph(model, "head")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(checked.data, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        found = session.run(names, {"fused": fused})
    except MemoryError:
        raise
    except Exception as error:
        raise InvalidGraph(f"head: ONNX Runtime refused it: {str(error)[:RUNTIME_WORDS]}") from None
    arrays: dict[str, Any] = {
        f"o/{name}": np.asarray(array) for name, array in zip(names, found, strict=True)
    }
    size, samples = sum(array.nbytes for array in arrays.values()), len(fused)
    if size > PREDICTED_BYTES:
        fit = PREDICTED_BYTES * samples // size
        fewer = f"ask about {fit:,} at a time, or " if fit else ""
        raise ResourceExhausted(
            f"bound predicted-bytes: of {samples:,} samples the head says {size:,} bytes, and one answer has "
            f"{PREDICTED_BYTES:,}; {fewer}run the model where the rows are (train export RUN --onnx FILE)"
        )
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
