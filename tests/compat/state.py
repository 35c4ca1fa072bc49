"""The small state of a fleet that a release leaves behind: written by one release, read by another.

    python -m tests.compat.state write FOLDER     with the code of the release on PYTHONPATH
    python -m tests.compat.state read FOLDER      with that of another

FOLDER/state is the aggregator's --state, FOLDER/store-a its node's --store, FOLDER/expected.npz what is to be
answered of them. Only what every release has is used: this file runs under the code of any.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_attention import Client
from edge_attention.cli.local_fleet import AGGREGATOR, LocalFleet
from edge_attention.core.messages.training import LocalSpec, LossSpec, OptimizerSpec
from edge_attention.demo.decoder import decoder_model
from edge_attention.demo.local_decoder import LocalDecoder
from edge_attention.jobs.federated_job import FederatedJob, FederatedModel

CONTEXT = {"query_heads": 2, "key_heads": 1, "key_dim": 4, "value_dim": 4}
TOKENS = 600
ROUNDS = 3
PROMPT, WRITTEN = "The license", 24
FEATURES, CLASSES, ROWS = 4, 3, 24


def classifier() -> bytes:
    """x float32 [rows, 4] -> logits [rows, 3]."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((FEATURES, CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["logits"])],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", CLASSES])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.full(CLASSES, 0.5, np.float32), "bias"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    data: bytes = made.SerializeToString()
    return data


def job(rounds: int = ROUNDS) -> FederatedJob:
    return FederatedJob(
        name="kept",
        model=FederatedModel(
            classifier(), LossSpec("cross_entropy", "logits", "labels"), {"x": "x", "labels": "label"}
        ),
        dataset="rows",
        strategy="fedavg",
        local=LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=8, steps=2),
        nodes=("a",),
        rounds=rounds,
    )


def data(folder: Path) -> Path:
    """The node's dataset, the same each time."""
    random = np.random.default_rng(1)
    file = folder / "rows.npz"
    np.savez(
        file,
        x=random.standard_normal((ROWS, FEATURES)).astype(np.float32),
        label=random.integers(0, CLASSES, ROWS),
    )
    return file


def tokens() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    keys = random.standard_normal((TOKENS, 1, 4)).astype(np.float32)
    return keys, random.standard_normal((TOKENS, 1, 4)).astype(np.float32)


def queries() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((2, 2, 4)).astype(np.float32)


def inputs() -> np.ndarray:
    return np.random.default_rng(4).standard_normal((5, FEATURES)).astype(np.float32)


def fleet(folder: Path) -> LocalFleet:
    """Its aggregator is started."""
    made = LocalFleet(folder / "state")
    made.start_aggregator()
    return made


def node(made: LocalFleet, folder: Path, name: str = "a") -> None:
    with Client(made.address) as client:
        releases = sorted({graph.release for graph in client.plan(job()) if graph.release})
    made.start_node(
        name,
        "--threads", "1", "--store", str(folder / f"store-{name}"), "--memory-limit", "64MB",
        data={"rows": data(folder)},
        allow_release=releases,
    )  # fmt: skip


def finished(run: object) -> None:
    for _ in run:  # type: ignore[attr-defined]
        pass
    assert run.describe().state.value == "finished", run.info  # type: ignore[attr-defined]


def write(folder: Path) -> None:
    """Leave behind a context, a run, a deployed model and a token."""
    from aggregator.trust.authority import Authority
    from aggregator.trust.registry import Registry
    from edge_attention.version import VERSION

    folder.mkdir(parents=True)
    with fleet(folder) as made:
        node(made, folder)
        with Client(made.address) as client:
            context = client.create_context("memory", **CONTEXT)
            keys, values = tokens()
            context.append(keys[:500], values[:500])
            context.append(keys[500:], values[500:])
            run = client.train(job())
            finished(run)
            client.deploy(classifier(), "classifier", plan="replicate")
            answer = context.attend(queries())
            parameters = run.parameters()
            found = client.model("classifier").infer({"x": inputs()})
            np.savez(
                folder / "expected.npz",
                out=answer.out,
                lse=answer.lse,
                logits=found["logits"],
                **{f"parameter {name}": array for name, array in parameters.items()},
            )
    trust = folder / "state" / "trust"
    trust.mkdir(mode=0o700)
    Authority.open(trust)
    registry = Registry(trust, daemon=True)
    registry.create_token("join", "node", "0" * 64, time.time(), name="a", uses=1, expires=None)
    registry.close()
    (folder / "written_by.json").write_text(json.dumps({"version": VERSION}))


def read(folder: Path) -> None:
    """All of it is there, answers what it did, and goes on."""
    from aggregator.trust.registry import Registry

    with fleet(folder) as made:
        node(made, folder)
        check(made, folder)
        made.kill(AGGREGATOR)  # and what this release has made of it is as durable
        made.start_aggregator()
        made.wait_ready("a")
        check(made, folder)
    registry = Registry(folder / "state" / "trust", daemon=True)
    assert [token.name for token in registry.tokens()] == ["a"]
    registry.close()


def check(made: LocalFleet, folder: Path) -> None:
    expected = np.load(folder / "expected.npz")
    with Client(made.address, patience=60) as client:
        (one,) = [client.context("memory")]
        answer = one.attend(queries(), deadline=30)
        assert answer.exact, answer.missing
        np.testing.assert_allclose(answer.out, expected["out"], atol=1e-6)
        np.testing.assert_allclose(answer.lse, expected["lse"], atol=1e-6)
        run = client.run("kept")
        assert (run.info.state.value, run.info.round, run.info.version) == ("finished", ROUNDS, ROUNDS)
        assert [round.number for round in run] == list(range(1, ROUNDS + 1))
        parameters = run.parameters()
        assert parameters
        for name, array in parameters.items():
            np.testing.assert_array_equal(array, expected[f"parameter {name}"])
        assert run.onnx()
        found = client.model("classifier").infer({"x": inputs()}, deadline=60)
        np.testing.assert_array_equal(found["logits"], expected["logits"])


def main() -> int:
    what, folder = sys.argv[1], Path(sys.argv[2]).absolute()
    {"write": write, "read": read, "works": works}[what](folder)
    print(f"{what}: all as it was")
    return 0


def works(folder: Path) -> None:
    """An aggregator of this code and a node of `NODE_PATH`'s, or the other way round, do all there is."""
    import os

    folder.mkdir(parents=True)
    with fleet(folder) as made:
        ours, theirs = os.environ["PYTHONPATH"], os.environ["NODE_PATH"]
        with Client(made.address) as client:
            releases = sorted({graph.release for graph in client.plan(job()) if graph.release})
        os.environ["PYTHONPATH"] = theirs
        try:
            made.start_node(
                "a", "--threads", "1", "--store", str(folder / "store-a"), data={"rows": data(folder)},
                allow_release=releases,
            )  # fmt: skip
        finally:
            os.environ["PYTHONPATH"] = ours
        with Client(made.address) as client:
            context = client.create_context("memory", **CONTEXT)
            keys, values = tokens()
            context.append(keys, values)
            answer = context.attend(queries())
            scores = np.einsum("qhd,thd->qht", queries().astype(np.float64), np.repeat(keys, 2, 1)) * 0.5
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            assert answer.exact
            np.testing.assert_allclose(
                answer.out, np.einsum("qht,thd->qhd", weights, np.repeat(values, 2, 1)), atol=1e-5
            )
            finished(client.train(job()))
            client.deploy(classifier(), "classifier", plan="replicate")
            found = client.model("classifier").infer({"x": inputs()})
            assert found["logits"].shape == (5, CLASSES)
            # A node of the aggregator's own code beside it: each has heads, and keys and values of them.
            made.start_node("b", "--threads", "1", "--store", str(folder / "store-b"))
            client.deploy(decoder_model(), "decoder", plan="heads", nodes=["a", "b"])
            written = client.model("decoder").generate(list(PROMPT.encode()), max_tokens=WRITTEN, deadline=60)
            made_of = tuple(token for piece in written for token in piece.tokens)
            assert made_of == LocalDecoder(decoder_model()).generate(PROMPT, WRITTEN), made_of


if __name__ == "__main__":
    sys.exit(main())
