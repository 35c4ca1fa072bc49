"""Trains the decoder of `edge-attention demo generate` and writes its parameters.

    python -m tools.train_decoder [FILE]

An aggregator and three nodes on this machine, each with chapters of its own: some 15 minutes on one core.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from edge_attention import Client
from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.core.messages.training import RunState
from edge_attention.core.tensors import Array
from edge_attention.demo import decoder, federated_yardsticks
from edge_attention.graphs.models.trained import trained_onnx


def main(file: Path) -> None:
    texts, held_out = decoder.texts()
    with (
        tempfile.TemporaryDirectory(prefix="edge-attention-") as folder,
        LocalFleet(state=Path(folder) / "state") as fleet,
    ):
        fleet.start_aggregator()
        with Client(fleet.address) as client:
            jobs = [decoder.job(length, decoder.training_model(length)) for length in decoder.ROUNDS]
            planned = [graph for job in jobs for graph in client.plan(job)]
            for node in decoder.TRAINERS:
                data = {
                    decoder.dataset(length): decoder.byte_rows(texts[node], length).write(
                        Path(folder) / f"{node}-{length}.npz"
                    )
                    for length in decoder.ROUNDS
                }
                release = sorted({g.release for g in planned if g.node == node and g.release})
                fleet.start_node(node, "--threads", "1", data=data, allow_release=release)
            trained: Mapping[str, Array] | None = None
            for length in decoder.ROUNDS:
                trained, loss = _train(client, length, trained, held_out)
    assert trained is not None
    file.write_bytes(save({name: np.asarray(array, np.float16) for name, array in trained.items()}))
    print(f"{loss:.3f} nats a byte on chapters that no node had; wrote {file}, {file.stat().st_size:,} bytes")


def _train(
    client: Client, length: int, before: Mapping[str, Array] | None, held_out: str
) -> tuple[dict[str, Array], float]:
    model = decoder.training_model(length)
    run = client.train(decoder.job(length, model if before is None else trained_onnx(model, before)))
    for record in run:
        print(f"{length} bytes, round {record.number}: loss {record.loss:.4f}", flush=True)
    if run.describe().state is not RunState.FINISHED:
        raise SystemExit(f"the run is {run.info.state.value}: {run.info.detail}")
    loss = federated_yardsticks.text_loss(run.onnx(), decoder.byte_rows(held_out, length))
    return dict(run.parameters()), loss


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else decoder.PARAMETERS)
