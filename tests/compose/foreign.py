"""What a user can do to a node with graphs of its own, from any machine: one that works, and one that kills.

    python3 foreign.py NODE DATASET COLUMN

A context is filled from the node's dataset by a graph that nobody has seen before; another graph then ends
the process it runs in. Node and context are to be as before. The last line printed is a JSON object.
EDGE_ATTENTION_AGGREGATOR and EDGE_ATTENTION_TOKEN_FILE say where and as whom.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge_attention import Client
from edge_attention.core.errors import EdgeAttentionError

OPSET, IR_VERSION = 17, 9


def graph(nodes: list[NodeProto], constants: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """A graph from the column `x` [rows], whole numbers, to `keys` and `values` [rows, 1, 1]."""
    made = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["rows"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1, 1])
            for name in ("keys", "values")
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(made, opset_imports=[opset], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def works() -> bytes:
    """Every row is a token whose value is the column's."""
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["values"]),
        helper.make_node("Mul", ["values", "zero"], ["keys"]),
    ]
    return graph(nodes, {"shape": np.array([-1, 1, 1]), "zero": np.array(0, np.float32)})


def kills() -> bytes:
    """Divides the smallest integer by -1, which no processor can do."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], axes=[0], keepdims=1),
        helper.make_node("Mul", ["largest", "nothing"], ["zero"]),
        helper.make_node("Add", ["zero", "smallest"], ["least"]),
        helper.make_node("Div", ["least", "minus_one"], ["never"]),
        helper.make_node("Add", ["x", "never"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["values"]),
        helper.make_node("Identity", ["values"], ["keys"]),
    ]
    return graph(
        nodes,
        {
            "nothing": np.array([0]),
            "smallest": np.array([np.iinfo(np.int64).min]),
            "minus_one": np.array([-1]),
            "shape": np.array([-1, 1, 1]),
        },
    )


def main(node: str, dataset: str, column: str) -> dict[str, Any]:
    address = os.environ["EDGE_ATTENTION_AGGREGATOR"]
    token = Path(os.environ["EDGE_ATTENTION_TOKEN_FILE"]).read_text().strip()
    spec = {"query_heads": 1, "key_heads": 1, "key_dim": 1, "value_dim": 1}
    asked = np.zeros((1, 1, 1), np.float32)
    tried = secrets.token_hex(4)
    with Client(address, token=token) as client:
        context = client.create_context(f"foreign-{tried}", **spec)
        context.append_dataset(node, dataset, works(), {"x": column})
        before = context.attend(asked, deadline=60)
        other = client.create_context(f"killed-{tried}", **spec)
        try:
            other.append_dataset(node, dataset, kills(), {"x": column}, timeout=240)
            error = ""
        except EdgeAttentionError as raised:
            error = f"{type(raised).__name__}: {raised.message}"
        after = context.attend(asked, deadline=60)
    return {
        "exact": bool(before.exact and after.exact),
        # All keys are zero, so what is attended to is the column's mean.
        "mean": float(before.out[0, 0, 0]),
        "same": bool(np.array_equal(before.out, after.out)),
        "killed": error,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
