"""What an encoding of updates costs: bytes a parameter, and loss and accuracy of a model trained with it.

    python -m benchmarks.encodings

FedAvg over five nodes that hold different digits (scikit-learn's 8 x 8 images; labels drawn unevenly), a
network of 64-64-10, in this process: the graphs nodes run and the decoding the aggregator does, no network.
Prints the table of docs/encodings.md.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from edge_attention.core.encodings import UpdateEncoding, from_config
from edge_attention.core.halves import from_wire, to_wire
from edge_attention.core.optimizers import SGD
from edge_attention.graphs.gradients.gradients import Runner, differentiate, graph_outputs
from edge_attention.graphs.onnx_builder import FLOAT, INT64, Builder
from edge_attention.graphs.steps.local_step import local_step
from edge_attention.graphs.steps.update import update_graph

Array = NDArray[Any]

SHAPES = [(64, 64), (64,), (64, 10), (10,)]
COUNT = range(len(SHAPES))
NODES, BATCH, STEPS, LR = 5, 32, 10, 0.1
REPORTED = (10, 50)
"""Rounds after which the model is evaluated; the last ends the run."""
VARIANTS: list[tuple[str, UpdateEncoding]] = [
    ("float32", from_config("float32")),
    ("float16", from_config("float16")),
    ("bfloat16", from_config("bfloat16")),
    ("int8", from_config("int8")),
    ("int8, no feedback", from_config("int8", feedback=False)),
    ("topk 10%", from_config("topk", fraction=0.1)),
    ("topk 10%, no feedback", from_config("topk", fraction=0.1, feedback=False)),
    ("topk 1%", from_config("topk", fraction=0.01)),
    ("topk 1%, no feedback", from_config("topk", fraction=0.01, feedback=False)),
]


@dataclass(frozen=True, eq=False)
class Data:
    """Images and labels of each node, and those held back."""

    nodes: list[tuple[Array, Array]]
    images: Array
    labels: Array


def model() -> onnx.ModelProto:
    """Mean cross-entropy of a network with one hidden layer, and how many answers are right."""
    b = Builder("digits")
    images = b.input("images", FLOAT, ["batch", 64])
    labels = b.input("labels", INT64, ["batch"])
    w1, b1, w2, b2 = (b.input(f"x/{i}", FLOAT, shape) for i, shape in enumerate(SHAPES))
    hidden = b("Relu", b("Add", b("MatMul", images, w1), b1))
    scores = b("LogSoftmax", b("Add", b("MatMul", hidden, w2), b2), axis=1)
    hot = b("OneHot", labels, b.const(np.array(10, np.int64)), b.const(np.array([0, 1], np.float32)))
    picked = b("ReduceSum", b("Mul", scores, hot), b.ints(1), keepdims=0)
    b.output("loss", b("Neg", b("ReduceMean", picked, keepdims=0)), FLOAT, [])
    right = b("Equal", b("ArgMax", scores, axis=1, keepdims=0), labels)
    b.output("accuracy", b("ReduceMean", b("Cast", right, to=FLOAT), keepdims=0), FLOAT, [])
    return b.model()


def data(seed: int) -> Data:
    """A third is held back; of each digit a node gets a share drawn from Dirichlet(0.5)."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    images = (digits.data[order] / 16).astype(np.float32)
    labels = digits.target[order].astype(np.int64)
    held = len(labels) // 3
    rows: list[list[int]] = [[] for _ in range(NODES)]
    for digit in range(10):
        mine = held + np.flatnonzero(labels[held:] == digit)
        cuts = (np.cumsum(rng.dirichlet([0.5] * NODES))[:-1] * len(mine)).astype(int)
        for node, part in enumerate(np.split(mine, cuts)):
            rows[node] += part.tolist()
    return Data([(images[r], labels[r]) for r in rows if r], images[:held], labels[:held])


class Bench:
    """The graphs, loaded once."""

    def __init__(self) -> None:
        made = model()
        self.forward = Runner(made.SerializeToString(), "digits")
        wrt = {f"x/{i}": f"grad/{i}" for i in COUNT}
        gradient = differentiate(made, BATCH, wrt=wrt, seeds={"loss": None}, keep=["loss"])
        self.step = Runner(local_step(onnx.load_model_from_string(gradient), SHAPES, SGD()), "step")
        self.update: dict[str, tuple[Runner, list[str]]] = {}
        for name, encoding in VARIANTS:
            graph = update_graph(SHAPES, source="difference", clip=False, encoding=encoding)
            self.update[name] = (Runner(graph, name), list(graph_outputs(graph)))

    def train(self, name: str, encoding: UpdateEncoding, seed: int) -> tuple[list[tuple[float, float]], int]:
        """(loss, accuracy) on what was held back, after each number of rounds; bytes a node and round."""
        found, rng = data(seed), np.random.default_rng(seed)
        p = {
            f"x/{i}": np.asarray(rng.standard_normal(s) * (len(s) > 1) / np.sqrt(s[0]), np.float32)
            for i, s in enumerate(SHAPES)
        }
        total = sum(len(labels) for _, labels in found.nodes)
        kept = [{f"residual/{i}": np.zeros(s, np.float32) for i, s in enumerate(SHAPES)} for _ in found.nodes]
        results, size = [], 0
        for number in range(1, REPORTED[-1] + 1):
            change = [np.zeros(shape) for shape in SHAPES]
            for (images, labels), residual in zip(found.nodes, kept, strict=True):
                returned = self._round(name, p, images, labels, residual, rng)
                wire = {
                    part: to_wire(returned[part], encoding.wire) for i in COUNT for part in encoding.parts(i)
                }
                size = sum(array.nbytes for array in wire.values())
                arrived = {part: from_wire(array, encoding.wire) for part, array in wire.items()}
                for i in COUNT:
                    decoded = encoding.decode_array(i, SHAPES[i], arrived)
                    change[i] += len(labels) / total * decoded
                    if encoding.feedback:
                        residual[f"residual/{i}"] = returned[f"next/residual/{i}"]
            p = {f"x/{i}": (p[f"x/{i}"] - change[i]).astype(np.float32) for i in COUNT}
            if number in REPORTED:
                feeds = {"images": found.images, "labels": found.labels, **p}
                loss, accuracy = self.forward(["loss", "accuracy"], feeds)
                results.append((float(loss), float(accuracy)))
        return results, size

    def _round(
        self, name: str, p: Mapping[str, Array], images: Array, labels: Array,
        residual: Mapping[str, Array], rng: np.random.Generator,
    ) -> dict[str, Array]:  # fmt: skip
        """What one node returns: STEPS steps on rows drawn from its own, then the update."""
        x: dict[str, Array] = dict(p)
        loss: Array = np.zeros((), np.float32)
        outputs = ["next/loss_sum", *(f"next/x/{i}" for i in COUNT)]
        for _ in range(STEPS):
            rows = rng.integers(len(labels), size=BATCH)
            batch = {"images": images[rows], "labels": labels[rows], "lr": np.array(LR, np.float32)}
            loss, *moved = self.step(outputs, {**batch, **x, "loss_sum": loss})
            x = {f"x/{i}": moved[i] for i in COUNT}
        runner, names = self.update[name]
        feeds = {f"anchor/{i}": p[f"x/{i}"] for i in COUNT} | x | dict(residual)
        feeds |= {"loss_sum": loss, "steps": np.array(STEPS, np.float32)}
        return dict(zip(names, runner(names, feeds), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    bench = Bench()
    parameters = sum(int(np.prod(shape)) for shape in SHAPES)
    heads = [f"{what} after {n}" for n, what in itertools.product(REPORTED, ("loss", "accuracy"))]
    print(f"| encoding | bytes a parameter | {' | '.join(heads)} |")
    print("|---|---" + "|---" * len(heads) + "|")
    for name, encoding in VARIANTS:
        runs = [bench.train(name, encoding, seed) for seed in seeds]
        cells = []
        for at in range(len(REPORTED)):
            losses, accuracies = zip(*(results[at] for results, _ in runs), strict=True)
            cells.append(f"{statistics.mean(losses):.3f} ± {statistics.stdev(losses):.3f}")
            cells.append(f"{100 * statistics.mean(accuracies):.1f}%")
        print(f"| {name} | {runs[0][1] / parameters:.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
