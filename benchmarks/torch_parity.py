"""An encoder exported from PyTorch, trained here unchanged: its gradient and its step beside PyTorch's own.

    python -m benchmarks torch_parity [--quick]

What is compared: the first gradient with autograd's, relative to its largest entry; the parameters after
20 steps of gradient descent; the time of a step (loss and gradients, one thread, float32) as a ratio to
PyTorch eager. Each engine runs in a process of its own and they take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Figure, Report
from benchmarks.turns import Worker, median_ratio, serve

TITLE = "An encoder exported from PyTorch: a gradient step by PyTorch eager's, one thread"
NEEDED = ("torch", "onnxscript")
BOUND = 1.5
GRADIENT_BOUND, PARAMETER_BOUND = 10.0, 100.0  # millionths
STEPS, RATE = 20, 0.05

Arrays = Mapping[str, np.ndarray[Any, Any]]
SIZES = {"2 blocks of 32": (16, 16, 32, 4, 2), "4 blocks of 128": (16, 64, 128, 4, 4)}


def _session(file: Path, reference: Arrays) -> tuple[Any, Any, Any]:
    """The model, its gradient graph in ONNX Runtime on one thread, and what goes into it."""
    import onnxruntime

    from edge_attention.core.messages.federated import LossSpec
    from edge_attention.graphs.models.model import gradient_graph, load_model
    from edge_attention.graphs.models.model_checks import check_model

    model = load_model(file.read_bytes(), loss=LossSpec("cross_entropy", "logits"))
    check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph = gradient_graph(model, len(reference["labels"])).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feeds = {"tokens": reference["tokens"], "labels": reference["labels"]}
    feeds |= {f"x/{i}": array for i, array in enumerate(model.parameters.values())}
    return model, session, feeds


def _pairs(model: Any, reference: Arrays) -> list[tuple[str, bool]]:
    """For each of our parameters PyTorch's name of it, and whether it is transposed.

    An exporter may store a weight transposed, under a name of its own: found by its value.
    """
    start = {name.removeprefix("start/"): a for name, a in reference.items() if name.startswith("start/")}
    pairs = []
    for name, value in model.parameters.items():
        if name in start and np.array_equal(start[name], value):
            pairs.append((name, False))
            continue
        pairs.append(next((other, True) for other, a in start.items() if np.array_equal(a.T, value)))
    if len({name for name, _ in pairs}) != len(start):
        raise SystemExit(f"{len(pairs)} parameters in the file, {len(start)} in PyTorch")
    return pairs


def _deviation(ours: list[np.ndarray[Any, Any]], pairs: list[tuple[str, bool]], theirs: Arrays) -> float:
    """The largest difference by the largest entry, in millionths."""
    differences = [
        np.abs((array.T if turned else array) - theirs[name]).max()
        for array, (name, turned) in zip(ours, pairs, strict=True)
    ]
    largest = max(float(np.abs(theirs[name]).max()) for name, _ in pairs)
    return float(max(differences)) / largest * 1e6


def _accuracy(file: Path, reference: Arrays) -> tuple[float, float]:
    """How far the first gradient and the parameters after STEPS are from PyTorch's."""
    model, session, feeds = _session(file, reference)
    pairs = _pairs(model, reference)
    names = [f"grad/{i}" for i in range(len(pairs))]
    gradients = session.run(names, feeds)
    theirs = {name.removeprefix("grad/"): a for name, a in reference.items() if name.startswith("grad/")}
    first = _deviation(gradients, pairs, theirs)
    for _ in range(STEPS):
        for i, gradient in enumerate(session.run(names, feeds)):
            feeds[f"x/{i}"] = feeds[f"x/{i}"] - np.float32(RATE) * gradient
    ends = {name.removeprefix("end/"): a for name, a in reference.items() if name.startswith("end/")}
    return first, _deviation([feeds[f"x/{i}"] for i in range(len(pairs))], pairs, ends)


def _work(engine: str, size: str, folder: Path) -> None:
    """The body of a worker: for each line with a count, the best time of that many steps, in ms."""
    call: Callable[[], object]
    if engine == "torch":
        import torch  # type: ignore[import-not-found, unused-ignore]

        from benchmarks.torch_encoder import Size, build, step

        torch.set_num_threads(1)
        built = build(Size(*SIZES[size]))
        call = lambda: step(*built)  # noqa: E731
    else:
        _, session, feeds = _session(folder / f"{engine}.onnx", dict(np.load(folder / "reference.npz")))
        call = lambda: session.run(None, feeds)  # noqa: E731
    call()

    def turn(calls: int) -> float:
        best = float("inf")
        for _ in range(calls):
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
        return best * 1e3

    serve(turn)


def report(quick: bool) -> Report:
    """Every size's and export's accuracy and ratio, for `python -m benchmarks`."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return Report(TITLE, (), (f"{', '.join(missing)} not installed (pip install '.[bench]')",))
    from benchmarks.torch_encoder import EXPORTS, Size, export, reference

    figures, rows = [], []
    for size, numbers in SIZES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            arrays = reference(Size(*numbers), STEPS, RATE)
            np.savez(folder / "reference.npz", **arrays)
            for how in EXPORTS:
                export(Size(*numbers), how, folder / f"{how}.onnx")
            engines = ("torch", *EXPORTS)
            workers = {
                engine: Worker("benchmarks.torch_parity", "--worker", engine, size, name)
                for engine in engines
            }
            try:
                count = 5 if quick else 15
                turns = [{e: worker.turn(3) for e, worker in workers.items()} for _ in range(count)]
            finally:
                for worker in workers.values():
                    worker.close()
            for how in EXPORTS:
                ratio = median_ratio([turn[how] for turn in turns], [turn["torch"] for turn in turns])
                gradient, parameters = _accuracy(folder / f"{how}.onnx", arrays)
                what = f"{size}, {'opset ' if how.isdigit() else ''}{how}"
                figures.append(Figure(f"{what}: step", ratio, "times", BOUND))
                figures.append(Figure(f"{what}: first gradient", gradient, "1e-6", GRADIENT_BOUND))
                figures.append(Figure(f"{what}: after {STEPS} steps", parameters, "1e-6", PARAMETER_BOUND))
                rows.append(
                    {
                        "size": size,
                        "export": how,
                        "ratio": ratio,
                        "ours_ms": statistics.median(turn[how] for turn in turns),
                        "torch_ms": statistics.median(turn["torch"] for turn in turns),
                        "gradient": gradient,
                        "parameters": parameters,
                    }
                )
    return Report(TITLE, tuple(figures), details={"rows": rows})


def main() -> int:
    parser = argparse.ArgumentParser(description="A worker of this benchmark.")
    parser.add_argument("--worker", required=True)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    _work(args.worker, args.size, args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
