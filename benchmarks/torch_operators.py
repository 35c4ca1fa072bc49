"""Small PyTorch programs, exported and differentiated here: their gradients beside autograd's in float64.

    python -m benchmarks torch_operators [--quick]

Says which operators a model may be made of. `--quick`: every eighth program.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import re
import warnings
from typing import Any

import numpy as np

from benchmarks.report import Figure, Report

TITLE = "Small programs exported from PyTorch: their gradients by autograd's in float64"
NEEDED = ("torch", "onnxscript")
TOLERANCE = 2e-5  # of the largest entry
BATCH, CLASSES = 6, 3


def report(quick: bool) -> Report:
    """How many programs can be exported, are refused, and have which gradients."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return Report(TITLE, (), tuple(f"no {name} here: pip install -e .[bench]" for name in missing))
    from benchmarks.torch_programs import DETACHED, PROGRAMS

    outcomes: dict[str, str] = {}
    worst = 0.0
    for name in list(PROGRAMS)[:: 8 if quick else 1]:
        if name not in DETACHED:
            outcomes[name], deviation = _outcome(PROGRAMS[name])
            worst = max(worst, deviation)
    counts = {
        kind: sum(said.startswith(kind) for said in outcomes.values()) for kind in ("not", "refused", "off")
    }
    exported = len(outcomes) - counts["not"]
    figures = (
        Figure("programs", len(outcomes), ""),
        Figure("exported by PyTorch", exported, ""),
        Figure("refused", counts["refused"], ""),
        Figure("accepted, and the gradient is another", counts["off"], "", 0.0),
        Figure("largest difference of the others", worst * 1e6, "1e-6", TOLERANCE * 1e6),
    )
    return Report(TITLE, figures, details={name: said for name, said in outcomes.items() if said != "same"})


def _outcome(program: Any) -> tuple[str, float]:
    """`not exported`, `refused`, `off` or `same`, with what was said; the deviation where it is the same."""
    import onnxruntime
    import torch  # type: ignore[import-not-found, unused-ignore]

    from edge_attention.core.errors import InvalidGraph
    from edge_attention.core.federated_job import LossSpec
    from edge_attention.graphs.model import gradient_graph, load_model
    from edge_attention.graphs.model_checks import check_model

    torch.manual_seed(3)
    module, x, labels = _module(program), torch.randn(BATCH, 4), torch.arange(BATCH) % CLASSES
    try:
        data = _export(module, x)
    except Exception as error:  # whatever PyTorch raises
        said = re.sub(r"\x1b\[\d+m", "", str(error)).strip().splitlines()[0]
        return f"not exported: {said}", 0.0
    try:
        model = load_model(data, loss=LossSpec("cross_entropy", "logits"))
        check_model(model)
        graph = gradient_graph(model, BATCH).SerializeToString()
    except InvalidGraph as error:
        return f"refused: {error}", 0.0
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feeds = {"x": x.numpy(), "labels": labels.numpy()}
    feeds |= {f"x/{i}": value for i, value in enumerate(model.parameters.values())}
    outputs = [f"grad/{i}" for i in range(len(model.names))]
    found = session.run(outputs, {value.name: feeds[value.name] for value in session.get_inputs()})

    exact = copy.deepcopy(module).double()
    torch.set_default_dtype(torch.float64)  # for tensors that a program makes
    try:
        torch.nn.functional.cross_entropy(exact(x.double()), labels).backward()
    finally:
        torch.set_default_dtype(torch.float32)
    theirs = {name: value.grad.numpy() for name, value in exact.named_parameters()}
    largest = max(float(np.abs(value).max()) for value in theirs.values())
    deviations = [
        float(np.abs(ours - theirs[name]).max()) / largest
        for name, ours in zip(model.names, found, strict=True)
    ]
    if set(model.names) != set(theirs) or not max(deviations) <= TOLERANCE:
        return f"off: {max(deviations):.1e} of the largest entry", 0.0
    return "same", max(deviations)


def _module(program: Any) -> Any:
    """A linear layer, the program, another linear layer."""
    import torch  # type: ignore[import-not-found, unused-ignore]

    class Between(torch.nn.Module):  # type: ignore[misc, unused-ignore, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Parameter(torch.randn(4, 12))
            self.bias = torch.nn.Parameter(torch.randn(12))
            with torch.no_grad():
                width = self.between(torch.randn(3, 4)).shape[1]
            self.last = torch.nn.Parameter(torch.randn(width, CLASSES) * 0.5)

        def between(self, x: Any) -> Any:
            return program(x @ self.first + self.bias).flatten(1)

        def forward(self, x: Any) -> Any:
            return self.between(x) @ self.last

    return Between()


def _export(module: Any, x: Any) -> bytes:
    import torch  # type: ignore[import-not-found, unused-ignore]

    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            module,
            (x,),
            dynamo=True,
            input_names=["x"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("rows", min=2)},),
            verbose=False,
        )
    return bytes(made.model_proto.SerializeToString())
