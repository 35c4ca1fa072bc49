"""Samples that stay on their nodes, at the level of bytes on the wire; and a model no node has room for."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
from fleets import states, until

from edge_attention import FederatedModel, LossSpec, OptimizerSpec, SplitData, SplitJob
from edge_attention.core.errors import FailedPrecondition, ResourceExhausted
from edge_attention.core.messages.training import RunState
from edge_attention.graphs.builders.sequences import attention_sequences

TOKENS, LENGTH, COUNT = 40, 12, 48
NODES = ("a", "b", "c")


class Relay:
    """A TCP relay that keeps all bytes that pass, either way."""

    def __init__(self, target):
        self._target, self._listening = target, socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._streams, self._sockets = [], [self._listening]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            host, port = self._target.rsplit(":", 1)
            far = socket.create_connection((host, int(port)))
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        kept = bytearray()
        self._streams.append(kept)
        try:
            while data := source.recv(1 << 16):
                kept.extend(data)
                sink.sendall(data)
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)

    @property
    def carried(self):
        return sum(map(len, self._streams))

    def holds(self, rows):
        """How many of the rows passed: as the bytes of their first eight numbers, of 8, 4 or 2 bytes each."""
        kinds = (np.int64, np.int32, np.int16, np.float32)
        streams = [bytes(kept) for kept in self._streams]
        return sum(
            any(row[:8].astype(kind).tobytes() in kept for kind in kinds for kept in streams) for row in rows
        )

    def close(self):
        for one in self._sockets:
            one.close()


def rows():
    inputs = np.random.default_rng(0).integers(0, TOKENS, (COUNT, LENGTH))
    return inputs, (inputs * 7 + 3) % TOKENS


MARKS = [f"mark {at}" for at in range(LENGTH)]
"""Columns of the labels' file."""


def write_marks(file, ids, labels):
    rows = (",".join(map(str, (identity, *row))) for identity, row in zip(ids, labels, strict=True))
    file.write_text("\n".join([",".join(["id", *MARKS]), *rows]) + "\n")


def job(data, inputs=None, **more):
    model = attention_sequences(TOKENS, LENGTH, dim=16, heads=4, blocks=3, causal=True, seed=3)
    return SplitJob(
        name="private" if isinstance(data, SplitData) else "own",
        model=FederatedModel(model, LossSpec("cross_entropy", "logits"), inputs=inputs or {}),
        split="layers",
        data=data,
        optimizer=OptimizerSpec("adam", {"lr": 0.01}),
        rounds=4,
        batch=8,
        micro_batches=2,
        nodes=NODES,
        patience_seconds=60,
        **more,
    )


def test_neither_inputs_nor_labels_cross_the_wire_and_it_is_the_run_that_has_them(fleet, tmp_path):
    own = fleet("--lease", "3", state=True)
    inputs, labels = rows()
    order = np.random.default_rng(1).permutation(COUNT)
    ids = np.array([f"person {number}" for number in range(COUNT)])
    np.savez(tmp_path / "texts.npz", id=ids, tokens=inputs)
    write_marks(tmp_path / "marks.csv", ids[order], labels[order])
    relay = Relay(own.address)
    data = {"a": {"texts": tmp_path / "texts.npz"}, "b": {}, "c": {"marks": tmp_path / "marks.csv"}}

    def start(flags):
        for name in NODES:
            own.start_node(
                name, "--threads", "1", "--aggregator", relay.address, "--store", str(tmp_path / name),
                data=data[name], wait=False,
                allow_release=flags.get(name, ()),
            )  # fmt: skip
        for name in NODES:
            own.wait_ready(name)

    start({})
    private = job(SplitData(inputs="texts", labels="marks"), {"labels": tuple(MARKS)})
    with own.client() as client:
        planned = client.plan(private)
        assert {graph.node for graph in planned if graph.release} == {"a", "c"}
        flags = {name: [planned.job_release] for name in "ac"}
        refused = client.train(private)
        with pytest.raises(FailedPrecondition, match=f"--allow-release {planned.job_release}"):
            list(refused)
        for name in NODES:
            own.kill(name)
        until(lambda: "ready" not in states(client).values())
        start(flags)
        run = client.train(private)
        rounds = list(run)
        assert run.describe().state is RunState.FINISHED
        assert run.describe().samples.train == COUNT
        assert relay.carried > 100_000
        assert relay.holds(inputs) == relay.holds(labels) == 0
        assert relay.holds(np.array([list(text.encode()) for text in ids if len(text) == 9])) == 0

        # The same samples, given with the job, are the same run. They do cross: the test sees what does.
        by_hand = client.train(job({"tokens": inputs[order], "labels": labels[order]}, seed=private.seed))
        again = list(by_hand)
        assert relay.holds(inputs) > COUNT // 4
        assert relay.holds(labels) > COUNT // 4
        assert len(again) == len(rounds)
        for one, other in zip(rounds, again, strict=True):
            assert one.loss == pytest.approx(other.loss, abs=1e-6)

        # A file of the same ids with other values, since a restart in the middle.
        edited = client.train(replace(private, name="edited", rounds=10_000))
        next(iter(edited))
        labels[0, 0] = (labels[0, 0] + 1) % TOKENS
        write_marks(tmp_path / "marks.csv", ids[order], labels[order])
        own.kill("c")
        until(lambda: states(client)["c"] != "ready")
        own.start_node(
            "c", "--threads", "1", "--aggregator", relay.address, "--store", str(tmp_path / "c"),
            data=data["c"], allow_release=flags["c"],
        )  # fmt: skip
        with pytest.raises(FailedPrecondition, match="'marks' of node 'c' is not the one this run began"):
            list(edited)
    relay.close()


def test_a_model_that_no_node_has_room_for_trains_over_three(fleet):
    own = fleet("--lease", "3", state=True)
    inputs = np.random.default_rng(0).integers(0, 500, (16, 8))
    model = attention_sequences(500, 8, dim=128, heads=4, blocks=8, causal=True, seed=3)
    assert len(model) > 6_500_000
    own.nodes(*NODES, flags=("--memory-limit", "17MB"))

    def large(nodes):
        return SplitJob(
            name="large",
            model=FederatedModel(model, LossSpec("cross_entropy", "logits")),
            split="layers",
            data={"tokens": inputs, "labels": inputs},
            optimizer=OptimizerSpec("sgd", {"lr": 0.1}),
            rounds=10_000,
            batch=16,  # all there are, in each step
            micro_batches=2,
            nodes=nodes,
            patience_seconds=60,
        )

    with own.client() as client:
        with pytest.raises(
            ResourceExhausted,
            match=r"a would hold .* bytes of weights, gradients and act.* has 17,",
        ):
            client.train(large(("a",)))
        run = client.train(large(NODES))
        losses, held = [], dict.fromkeys(NODES, 0)
        for one in run:
            losses.append(one.loss)
            # Nodes say it once a second, and keep nothing when it is over.
            held = {node.name: max(node.memory, held[node.name]) for node in client.nodes()}
            if len(losses) >= 3 and all(held.values()):
                break
        assert losses[2] < losses[0]
        assert run.stop().state is RunState.STOPPED
        assert max(held.values()) < 17_000_000
