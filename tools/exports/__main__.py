"""Writes the exports: `python -m tools.exports FOLDER [--fixtures] [--minilm FOLDER] [NAME...]`.

In an environment of its own, with `torch==2.13.0 transformers onnx onnxruntime onnxscript`; nothing else of
the project needs it. `--fixtures`: the small ones that the tests have. `tools.exports.fused` and
`tools.exports.genai` write more.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from tools.exports.architectures import FIXTURE, TABLE, Export, exports, minilm
from tools.exports.bare import bare
from tools.exports.weights import liven


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fixtures", action="store_true")
    parser.add_argument("--minilm", default="")
    parser.add_argument("names", nargs="*")
    said = parser.parse_intermixed_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    said.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for one in _wanted(said.fixtures, said.minilm):
        if said.names and not any(one.name.startswith(name) for name in said.names):
            continue
        started = time.perf_counter()
        path = said.folder / f"{one.name}.onnx"
        try:
            write(one, path, small=said.fixtures)
        except Exception as error:
            failed += 1
            print(f"{one.name}: {type(error).__name__}: {str(error)[:300]!r}", flush=True)
            continue
        taken = time.perf_counter() - started
        print(f"{one.name}: {path.stat().st_size / 1e6:.2f} MB in {taken:.0f} s", flush=True)
    return 1 if failed else 0


def _wanted(fixtures: bool, folder: str) -> Iterator[Export]:
    if folder:
        yield from minilm(folder)
    yield from exports(FIXTURE if fixtures else TABLE)


def write(one: Export, path: Path, small: bool = False) -> None:
    """Export to `path`; `small`: without what exporters say about nodes, which is most of a small file."""
    torch.manual_seed(0)
    model = one.module().eval()
    if one.random:
        liven(model)
    with torch.no_grad():
        if one.dynamo:
            torch.onnx.export(
                model,
                one.arguments,
                path,
                input_names=one.inputs,
                output_names=one.outputs,
                dynamic_shapes=one.dynamic,
                dynamo=True,
                external_data=False,
                opset_version=one.opset,
                verbose=False,
                report=False,
            )
        else:
            axes = {
                name: {axis: dim.__name__ for axis, dim in dims.items()}
                for name, dims in zip(one.inputs, one.dynamic, strict=True)
            }
            torch.onnx.export(
                model,
                one.arguments,
                path,
                input_names=one.inputs,
                output_names=one.outputs,
                dynamic_axes=axes,
                dynamo=False,
                opset_version=one.opset,
            )
    if one.quantised:
        _quantize(path)
    if small:
        bare(path)


def _quantize(path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantize_dynamic(prepared, path)
    os.remove(prepared)


if __name__ == "__main__":
    sys.exit(main())
