"""Small PyTorch programs, exported and differentiated here: their gradients beside autograd's in float64.

    python -m benchmarks torch_operators [--quick]

Says which operators a model may be made of. `--quick`: every eighth program.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import numpy as np

from benchmarks.report import Figure, Report

TITLE = "Small programs exported from PyTorch: their gradients by autograd's in float64"
NEEDED = ("torch", "onnxscript")
TOLERANCE = 2e-5  # of the largest entry


def report(quick: bool) -> Report:
    """How many programs can be exported, are refused, and have which gradients."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return Report(TITLE, (), (f"{', '.join(missing)} not installed (pip install '.[bench]')",))
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

    from benchmarks.torch_programs import Case
    from edge_attention.core.errors import InvalidGraph
    from edge_attention.core.messages.federated import LossSpec
    from edge_attention.graphs.models.model import gradient_graph, load_model
    from edge_attention.graphs.models.model_checks import check_model

    case = Case(program)
    try:
        data = case.exported()
    except Exception as error:  # whatever PyTorch raises
        said = re.sub(r"\x1b\[\d+m", "", str(error)).strip().splitlines()[0]
        return f"not exported: {said}", 0.0
    try:
        model = load_model(data, loss=LossSpec("cross_entropy", "logits"))
        check_model(model)
        graph = gradient_graph(model, len(case.labels)).SerializeToString()
    except InvalidGraph as error:
        return f"refused: {error}", 0.0
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feeds = {"x": case.x.numpy(), "labels": case.labels.numpy()}
    feeds |= {f"x/{i}": value for i, value in enumerate(model.parameters.values())}
    outputs = [f"grad/{i}" for i in range(len(model.names))]
    found = session.run(outputs, {value.name: feeds[value.name] for value in session.get_inputs()})
    theirs = case.gradients()
    if set(model.names) != set(theirs):
        return f"off: parameters {', '.join(model.names)} of {', '.join(theirs)}", 0.0
    largest = max(float(np.abs(value).max()) for value in theirs.values())
    pairs = zip(model.names, found, strict=True)
    worst = float(np.max([np.abs(ours - theirs[name]).max() / largest for name, ours in pairs]))  # NaN stays
    return ("same", worst) if worst <= TOLERANCE else (f"off: {worst:.1e} of the largest entry", 0.0)
