"""An encoder exported from PyTorch 2.13 (benchmarks/torch_encoder.py), against PyTorch's own gradients.

The files are as the exporters left them, but for the stack traces. All layer norms begin equal, so the
exporters have merged them; PyTorch's gradients are of parameters that are apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import close, run

from edge_attention.core.messages.federated import LossSpec
from edge_attention.graphs.models.model import Model, gradient_graph, load_model
from edge_attention.graphs.models.model_checks import check_model
from edge_attention.graphs.models.model_graphs import evaluation_graph
from edge_attention.graphs.models.trained import trained_onnx

DATA = Path(__file__).parent / "data"
EXPORTS = ("18", "23", "default", "torchscript")


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(DATA / "encoder.npz") as arrays:
        return dict(arrays)


def load(how: str) -> tuple[bytes, Model]:
    data = (DATA / f"encoder_{how}.onnx").read_bytes()
    return data, load_model(data, loss=LossSpec("cross_entropy"), place=how)


def of_torch(loaded: Model, reference: dict[str, np.ndarray]) -> list[tuple[str, bool]]:
    """For each parameter PyTorch's name, and whether the exporter has transposed it (found by its value)."""
    start = {name[6:]: value for name, value in reference.items() if name.startswith("start/")}
    pairs = []
    for name, value in loaded.parameters.items():
        if name in start and np.array_equal(start[name], value):
            pairs.append((name, False))
        else:
            pairs.append(next((o, True) for o, v in start.items() if np.array_equal(v.T, value)))
    assert sorted(name for name, _ in pairs) == sorted(start)
    return pairs


@pytest.mark.parametrize("how", EXPORTS)
def test_the_first_gradient_is_pytorchs(how: str, reference: dict[str, np.ndarray]) -> None:
    _, loaded = load(how)
    assert len(loaded.untied) == 8
    pairs = of_torch(loaded, reference)
    feeds = {"tokens": reference["tokens"], "labels": reference["labels"]}
    feeds |= {f"x/{i}": value for i, value in enumerate(loaded.parameters.values())}
    found = run(gradient_graph(loaded, len(feeds["labels"])), feeds)
    close(found["loss"], reference["loss"].astype(np.float64))
    largest = max(np.abs(reference[f"grad/{name}"]).max() for name, _ in pairs)
    for i, (name, turned) in enumerate(pairs):
        ours = found[f"grad/{i}"].T if turned else found[f"grad/{i}"]
        np.testing.assert_allclose(ours, reference[f"grad/{name}"], rtol=0, atol=1e-5 * largest, err_msg=name)


@pytest.mark.parametrize("how", EXPORTS)
def test_it_trains_and_serves(how: str, reference: dict[str, np.ndarray]) -> None:
    data, loaded = load(how)
    assert check_model(loaded) < 0.05
    tokens, labels = reference["tokens"], reference["labels"]
    graph = gradient_graph(loaded, len(labels))
    values = dict(loaded.parameters)
    losses = []
    for _ in range(8):
        feeds = {"tokens": tokens, "labels": labels}
        found = run(graph, feeds | {f"x/{i}": value for i, value in enumerate(values.values())})
        losses.append(float(found["loss"]))
        for i, name in enumerate(values):
            values[name] = values[name] - np.float32(0.2) * found[f"grad/{i}"].astype(np.float32)
    assert losses[-1] < losses[0] / 2
    served = run(trained_onnx(data, values), {"tokens": tokens})["logits"].astype(np.float64)
    shifted = served - served.max(axis=1, keepdims=True)
    each = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    zero = np.zeros((), np.float32)
    sums = {"tokens": tokens, "labels": labels, "sum/loss": zero, "sum/correct": zero}
    sums |= {f"x/{i}": value for i, value in enumerate(values.values())}
    close(run(evaluation_graph(loaded), sums)["next/loss"], each.sum(), 1e-4)
