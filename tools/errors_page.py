"""Writes docs/errors.md, what wrong calls of the client are answered with, from a fleet; `--check` compares.

`python -m tools.errors_page`. An aggregator and a node start on this machine; each call is made, and its
error is what the page has of it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import edge_attention
from edge_attention import (
    Client,
    EdgeAttentionError,
    FederatedJob,
    FederatedModel,
    LocalSpec,
    LossSpec,
    OptimizerSpec,
    read_job,
)
from edge_attention.cli.local_fleet import LocalFleet

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
ADDRESS = "127.0.0.1:50051"
"""What the page calls an aggregator, wherever the one that was asked was."""
FOLDER, RUN = "/home/me", "flowers-1a2b3c"
SIZES = {"query_heads": 8, "key_heads": 2, "key_dim": 64, "value_dim": 64}

HEAD = f"""# What a wrong call is answered with

Whatever is wrong with a call raises an error of one catalogue (`edge_attention/core/errors.py` draws it).
Each is an `EdgeAttentionError`; its `message` is one sentence that says what is wrong, where, and what to do.
The same sentence ends a command, after `edge-attention: `, with the exit code 1.

```python
from edge_attention import Client, EdgeAttentionError, NotFound

with Client("{ADDRESS}") as client:
    try:
        context = client.context("memory")
    except NotFound as error:              # one kind
        print(error.message)
    except EdgeAttentionError as error:    # any
        print(type(error).__name__, error.message, error.retry_after)
```

The calls below were made to an aggregator with one node, `a`, which has a dataset `rows`. `context` is the
context `memory` with 100 tokens, 8 query heads on 2 key heads of 64; `empty` has none; `keys` and `values`
are [100, 2, 64], `queries` [4, 8, 64]. `run` is a finished federated run of `job`, and `model` its model,
deployed as `flowers`. `python -m tools.errors_page` makes the calls and writes this page; a test compares.
"""

CALLS: dict[str, tuple[str, ...]] = {
    "A client": (
        "Client('127.0.0.1')",
        "Client('http://127.0.0.1:50051')",
        "Client('127.0.0.1:99999')",
        "Client(None)",
        "Client(address, timeout=0)",
        "Client(address, patience='long')",
        "Client(address, retry='yes')",
        "Client(address, token='secret')",
        "Client(address, identity='no-such-folder')",
        "Client(address, authority='none.pem')",
        "Client('127.0.0.1:1').nodes()",
        "closed.nodes()",
    ),
    "Nodes": (
        "client.probe('b')",
        "client.probe('a', round_trips=-1)",
        "client.forget_node('b')",
        "client.forget_node('a')",
        "client.forget_node('a', even_alone='yes')",
    ),
    "Contexts": (
        "client.create_context('my memory', **sizes)",
        "client.create_context('c', **sizes | {'key_heads': 3})",
        "client.create_context('c', **sizes | {'key_dim': 0})",
        "client.create_context('c', **sizes | {'query_heads': 2.5})",
        "client.create_context('c', **sizes, replicas=100)",
        "client.create_context('memory', **sizes)",
        "client.create_context('memory', **sizes | {'key_dim': 32}, exist_ok=True)",
        "client.context('memry')",
        "client.context(7)",
        "client.context('memory', timeout=-1)",
        "client.import_context('none.safetensors')",
        "client.import_context('rows.npz')",
        "context.export('/no/such/folder/memory.safetensors')",
        "context.export('memory.safetensors', progress=True)",
        "context.trim(5)",
        "context.trim(range(0, 10, 2))",
        "context.repair(timeout=0)",
    ),
    "Append": (
        "context.append(keys[:, :, :32], values)",
        "context.append(keys[0], values[0])",
        "context.append(keys, values[:99])",
        "context.append(keys[:0], values[:0])",
        "context.append(keys * np.nan, values)",
        "context.append('keys', values)",
        "context.append(keys + 1j, values)",
        "context.append(np.full((1, 2, 64), 2**30), values[:1])",
        "context.append(keys, values, node='b')",
        "context.append(keys, values, layout='pytorch')",
        "context.append(keys, values, request_id='a b')",
        "context.append(keys, values, progress=5)",
        "context.append_dataset('a', 'row', model, {'x': 'x'})",
        "context.append_dataset('a', 'rows', 'none.onnx', {'x': 'x'})",
        "context.append_dataset('a', 'rows', model, 'x')",
        "context.append_dataset('a', 'rows', model, {'x': 'x'}, rows=3)",
    ),
    "Attend": (
        "context.attend(queries[:, :2])",
        "context.attend(queries[0])",
        "context.attend(queries / 0)",
        "context.attend(queries, deadline=-1)",
        "context.attend(queries, window=0)",
        "context.attend(queries, scale='large')",
        "context.attend(queries, causal='yes')",
        "context.attend(queries, encoding='float64')",
        "context.attend(queries, positions=[0, 1])",
        "context.attend(queries, positions=[0, 1, 2, 2.5], causal=True)",
        "context.attend(queries, until=0)",
        "context.attend(np.ones((200, 8, 64)), causal=True)",
        "context.attend(queries, layout='torch')",
        "empty.attend(queries)",
        "context.gradients(queries, queries, np.zeros(4), queries)",
    ),
    "Training": (
        "read_job('none.toml')",
        "client.train('job.toml')",
        "FederatedJob(nme='flowers')",
        "client.plan(replace(job, rounds=-1))",
        "client.plan(replace(job, strategy='fedavgg'))",
        "client.plan(replace(job, local=5))",
        "client.plan(replace(job, local=LocalSpec(OptimizerSpec('adamm'), batch=8, steps=1)))",
        "client.plan(replace(job, model=FederatedModel('none.onnx', 'cross_entropy')))",
        "client.plan(replace(job, model=FederatedModel(b'no model', 'cross_entropy')))",
        "client.plan(replace(job, model=FederatedModel(model, LossSpec('cross_entropy', 'logit'))))",
        "client.run('flower')",
        "run.parameters(99)",
        "run.parameters('newest')",
        "run.onnx(1.5)",
        "run.save_onnx('/no/such/folder/flowers.onnx')",
        "run.resume()",
        "list(run.events(after=-1))",
        "run.predict(np.ones((2, 4)))",
        "run.predict({'y': np.ones((2, 4))})",
        "run.predict({'x': np.ones((2, 3))})",
        "run.predict({'x': 'rows.npz'})",
        "run.predict([])",
        "run.predict(['id-1', 'id-2'])",
    ),
    "Models": (
        "client.model('flower')",
        "client.deploy('none.onnx', 'flowers')",
        "client.deploy(b'no model', 'flowers')",
        "client.deploy(model, 'my flowers')",
        "client.deploy(model, 'flowers', plan='token')",
        "client.deploy(model, 'flowers', nodes='a')",
        "client.deploy(model, 'flowers', nodes=['b'])",
        "client.deploy(model, 'flowers', replicas=0)",
        "client.deploy(model, 'flowers', dimensions={'batch': 0})",
        "client.deploy(model, 'flowers', max_batch=0)",
        "client.deploy(model, 'flowers', tokenizer='none.json')",
        "client.deploy(model, 'flowers', decoder='none.onnx')",
        "flowers.infer(np.ones((2, 4)))",
        "flowers.infer({'y': np.ones((2, 4))})",
        "flowers.infer({'x': np.ones((2, 3))})",
        "flowers.infer({'x': np.ones((2, 4))}, outputs=['y'])",
        "flowers.infer({'x': np.ones((2, 4))}, deadline=0)",
        "flowers.infer({'x': np.ones((2, 4))}, priority=17)",
        "flowers.generate('')",
        "flowers.generate([1, 2], max_tokens=0)",
        "flowers.generate([1, 2], temperature=-1)",
        "flowers.generate([1, 2]).rest()",
        "client.ensemble('both')",
        "client.deploy_ensemble('none.toml', 'both')",
        "client.deploy_ensemble('how = \"median\"\\n', 'both')",
    ),
}


def classifier() -> bytes:
    """x [batch, 4] -> logits [batch, 3]."""
    weight = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["logits"])],
        "regression",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(weight[0], "bias")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def federated_job(model: bytes) -> FederatedJob:
    return FederatedJob(
        name="flowers",
        model=FederatedModel(model, LossSpec("cross_entropy", "logits", "labels"), inputs={"labels": "y"}),
        dataset="rows",
        strategy="fedavg",
        local=LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=8, steps=1),
        rounds=1,
    )


@contextmanager
def names(folder: Path) -> Iterator[dict[str, Any]]:
    """What the calls name, with a fleet behind it, in `folder`, which is the current one meanwhile."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        rng = np.random.default_rng(0)
        np.savez("rows.npz", x=rng.standard_normal((40, 4)).astype(np.float32), y=np.arange(40) % 3)
        keys, values = np.ones((2, 100, 2, 64), np.float32)
        with LocalFleet() as fleet:
            fleet.start_aggregator()
            fleet.start_node("a", "--threads", "1", "--allow-own-data", data={"rows": folder / "rows.npz"})
            closed = Client(fleet.address)
            closed.close()
            with Client(fleet.address) as client:
                context = client.create_context("memory", **SIZES)
                context.append(keys, values)
                model = classifier()
                job = federated_job(model)
                run = client.train(job)
                list(run)
                yield {
                    "Client": Client, "FederatedJob": FederatedJob, "FederatedModel": FederatedModel,
                    "LocalSpec": LocalSpec, "LossSpec": LossSpec, "OptimizerSpec": OptimizerSpec, "np": np,
                    "replace": replace, "read_job": read_job, "address": fleet.address, "sizes": SIZES,
                    "client": client, "closed": closed, "context": context, "keys": keys, "values": values,
                    "empty": client.create_context("empty", **SIZES), "model": model, "job": job, "run": run,
                    "queries": np.ones((4, 8, 64), np.float32),
                    "flowers": client.deploy(model, "flowers", plan="replicate"),
                }  # fmt: skip
    finally:
        os.chdir(before)


def answered(call: str, there: dict[str, Any], folder: Path) -> tuple[str, str]:
    """The name of the error that the call raises, and its sentence.

    Raises:
        SystemExit: it raises none, or one that is not the catalogue's.
    """
    try:
        with np.errstate(all="ignore"):
            eval(call, dict(there))
    except EdgeAttentionError as error:
        said = error.message.replace(there["address"], ADDRESS).replace(str(folder), FOLDER)
        return type(error).__name__, " ".join(said.replace(there["run"].id, RUN).split())
    except Exception as error:
        raise SystemExit(
            f"{call} raises {type(error).__name__}, which is not the catalogue's: {error}"
        ) from None
    raise SystemExit(f"{call} is answered as if nothing were wrong with it")


def page() -> str:
    lines = [HEAD]
    with tempfile.TemporaryDirectory(prefix="edge-errors-") as name:
        folder = Path(name).resolve()
        with names(folder) as there:
            for title, calls in CALLS.items():
                lines.append(f"\n## {title}\n\n| call | error | what it says |\n|---|---|---|")
                for call in calls:
                    kind, said = answered(call, there, folder)
                    assert hasattr(edge_attention, kind), kind
                    cells = (f"`{call}`", f"`{kind}`", said.replace("<", "&lt;"))
                    lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        fresh = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        if not fresh:
            print(f"{PAGE} is stale; run python -m tools.errors_page")
        return int(not fresh)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
