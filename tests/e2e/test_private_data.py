"""What a user can learn of a node's private rows by the public client, over TLS: that something failed."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fleets import states, until
from onnx import TensorProto as T
from onnx import helper as h
from trusted import TrustedFleet

from edge_attention import Client, EdgeAttentionError, InvalidProgram
from edge_attention.core.errors import PrivateLimit

SECRET = np.random.default_rng(5).normal(0, 1000, 8).astype(np.float32)
LIMIT = 4


def shaped_by(at, wide):
    """Keys whose shape is two of the rows in fixed point: an error that quoted it would tell both."""
    scale, offset, factors = (1024.0, 2**28, [2**29, 1]) if wide else (1.0, 2**13, [1, 1])
    constants = [
        h.make_tensor("k", T.DOUBLE, [1], [scale]),
        h.make_tensor("off", T.DOUBLE, [1], [float(offset)]),
        h.make_tensor("z", T.INT64, [1], [0]),
        h.make_tensor("w", T.INT64, [2], factors),
        h.make_tensor("s", T.INT64, [1], [at]),
        h.make_tensor("e", T.INT64, [1], [at + 2]),
    ]
    nodes = [
        h.make_node("Slice", ["x", "s", "e"], ["p"]),
        h.make_node("Cast", ["p"], ["d"], to=T.DOUBLE),
        h.make_node("Mul", ["d", "k"], ["m"]),
        h.make_node("Add", ["m", "off"], ["m2"]),
        h.make_node("Cast", ["m2"], ["i"], to=T.INT64),
        h.make_node("Mul", ["i", "w"], ["j"]),
        h.make_node("ReduceSum", ["j"], ["sum"], keepdims=1),
        h.make_node("Concat", ["z", "sum"], ["shape"], axis=0),
        h.make_node("ConstantOfShape", ["shape"], ["keys"], value=h.make_tensor("v", T.FLOAT, [1], [0])),
        h.make_node("Identity", ["keys"], ["values"]),
    ]
    inputs = [h.make_tensor_value_info("x", T.FLOAT, ["n"])]
    outputs = [h.make_tensor_value_info(name, T.FLOAT, None) for name in ("keys", "values")]
    graph = h.make_graph(nodes, "g", inputs, outputs, constants)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    np.savez(folder / "x.npz", x=SECRET)
    with TrustedFleet(folder) as fleet:
        flags = ("--data", f"patients={folder / 'x.npz'}", "--private-failures", str(LIMIT))
        fleet.start = lambda: fleet.trusted_node("clinic", *flags, wait=False)
        fleet.start()
        fleet.wait_ready("clinic")
        yield fleet


def client_of(fleet, name):
    token = fleet.make_token("--role", "user", "--name", name)["token"]
    return Client(fleet.address, token=token, authority=fleet.boot / "authority.pem")


def attempt(context, at, wide=False):
    with pytest.raises(EdgeAttentionError) as raised:
        context.append_dataset("clinic", "patients", shaped_by(at, wide), {"x": "x"})
    return raised.value


def test_failures_tell_nothing_of_rows_are_counted_by_caller_and_outlive_the_node(fleet):
    with client_of(fleet, "ana") as ana, client_of(fleet, "ben") as ben:
        context = ana.create_context("x", query_heads=1, key_heads=1, key_dim=1, value_dim=1)
        errors = [attempt(context, at) for at in range(0, 2 * LIMIT, 2)]
        assert {type(error) for error in errors} == {InvalidProgram}
        # The same words for all, with the graph's digest, task and time: what to look for in the node's log.
        said = {
            re.sub(
                r"task [^ ]+, [-0-9: ]{19}", "task T", re.sub(r"graph [0-9a-f]{64}", "graph D", error.message)
            )
            for error in errors
        }
        assert len(said) == 1
        assert re.search(
            r"Run, graph D: failed on private data; why is in the node's own log alone \(.*: task T\)", *said
        )
        assert re.search(r"float32 \[0, \d+\]", fleet.said("clinic"))

        refusal = attempt(context, 0)
        assert type(refusal) is PrivateLimit
        assert "'user/ana'" in refusal.message
        assert f"--private-failures {LIMIT}" in refusal.message
        # Of a shape that no machine can hold, the same.
        wide = attempt(ben.context("x"), 0, wide=True)
        said = r"Run, graph [0-9a-f]{64}: failed on private data; why is in the node's own log alone"
        assert re.search(said, wide.message)

        fleet.kill("clinic")
        until(lambda: states(ana)["clinic"] != "ready", "the node is away")
        fleet.start()
        fleet.wait_ready("clinic")
        assert type(attempt(context, 0)) is PrivateLimit
        assert type(attempt(ben.context("x"), 0)) is InvalidProgram
