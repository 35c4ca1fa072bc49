"""An aggregator that lies: whatever it binds to the graphs of a released job, nothing private comes out."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import small_model
from onnx import TensorProto, helper

from aggregator.training.federated.plan import view_of
from aggregator.training.federated.planner import plan
from aggregator.training.federated.programs import Programs
from aggregator.training.federated.releases import planned, releases, texts
from edge_attention.core.encodings import from_config
from edge_attention.core.job_release import JobRelease
from edge_attention.core.messages.program import Append, Batch, Program, Return, Run, Stored
from edge_attention.core.messages.training import ConsensusSpec, EncodingSpec, LocalSpec, OptimizerSpec
from edge_attention.core.release import Release
from edge_attention.core.strategies import from_config as strategy_from
from edge_attention.graphs.attention import library
from edge_attention.tables.table import Table
from edge_node.data.datasets import LocalDataset
from edge_node.executor import Execution, LocalNode
from edge_node.release import Releases
from edge_node.runtime import Runtime
from edge_node.store.store import Store

SECRET = np.arange(100, 164, dtype=np.float32)
ROWS = np.arange(3)
"""As many as the bias has numbers: rows of a column of single numbers have its shape."""


def graph(nodes, shape, *outputs):
    """A graph of one input `a`: digest, file. `outputs`: name, type and shape."""
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "foreign",
            [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(*output) for output in outputs],
            [helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.checker.check_model(made)
    data = made.SerializeToString()
    return hashlib.sha256(data).hexdigest(), data


COPY = graph([helper.make_node("Identity", ["a"], ["b"])], ["n"], ("b", TensorProto.FLOAT, ["n"]))
SUM = graph([helper.make_node("ReduceSum", ["a"], ["b"], keepdims=0)], ["n"], ("b", TensorProto.FLOAT, []))
WHOLE = graph(
    [helper.make_node("Cast", ["a"], ["b"], to=TensorProto.INT64)], ["n"], ("b", TensorProto.INT64, ["n"])
)
ENCODER = graph(
    [helper.make_node("Unsqueeze", ["a", "axes"], [name]) for name in ("keys", "values")],
    ["n"],
    *((name, TensorProto.FLOAT, ["n", 1, 1]) for name in ("keys", "values")),
)


@pytest.fixture(scope="module", params=["int8", "float32"])
def world(request, tmp_path_factory):
    """A job of several local steps, with a probe, planned; its graphs loaded; a node that allows it."""
    folder = tmp_path_factory.mktemp("plan")
    blobs = {}
    job = small_model.job(
        SimpleNamespace(state=SimpleNamespace(put_blob=lambda data: blobs.setdefault("model", data))),
        update=EncodingSpec(request.param, {"block": 4} if request.param == "int8" else {}),
        local=LocalSpec(OptimizerSpec("momentum", {"lr": 0.1}), batch=8, steps=3),
        consensus=ConsensusSpec("logits", {"x": np.ones((2, 4), np.float32)}, attention_weight=0.1),
    )
    (folder / "model").write_bytes(blobs["model"])
    made = plan(job, {job.model.graph: folder / "model"}, folder)
    runtime = Runtime()
    graphs = {g.digest: runtime.load(g.digest, (folder / f"{g.digest}.onnx").read_bytes())
              for g in made.graphs.values()}  # fmt: skip
    for digest, data in (COPY, SUM, WHOLE, ENCODER):
        graphs[digest] = runtime.load(digest, data)
    for name in library.names():
        graphs[library.digest(name)] = runtime.find(library.digest(name))
    secret = SECRET[: len(small_model.X["e"])]
    columns = {
        "x": small_model.X["e"], "y": small_model.Y["e"], "secret": secret, "cube": secret.reshape(-1, 1, 1),
        "small": secret - 100,
    }  # fmt: skip
    table = LocalDataset("rows", Table.of(columns, None))
    view = view_of(made, job, {"a": (table.describe(),)})
    flags = [g.release for g in planned(made, job, view, ["a"]) if g.release]
    flags.append("attention")
    node = LocalNode(Store(1 << 24), {"rows": table}, Releases(flags))
    return SimpleNamespace(job=job, plan=made, view=view, graphs=graphs, node=node, flags=flags)


def run(world, *instructions, node=None, **tensors):
    program = Program(
        "t", "s", range(1), instructions, tensors={f"task/{n}": a for n, a in tensors.items()},
        releases=texts(world.plan, world.job, world.view),
    )  # fmt: skip
    task = Execution(program, node or world.node, world.graphs, clock=lambda: 0.0, sleep=lambda s: None)
    return list(task.contributions())


def programs(world):
    job = world.job
    return Programs(
        "r",
        job,
        world.plan,
        world.view,
        strategy_from(job.strategy.name),
        from_config(job.update.name, **job.update.options),
    )


def parameters():
    return {"p/0": small_model.W, "p/1": small_model.B}


def honest(world, node=None):
    """What a round returns, and an evaluation."""
    rows = np.arange(24).reshape(3, 8)
    alpha = np.zeros((2, 3), np.float32)
    instructions, tensors = programs(world).train(1, rows, lambda i: f"task/p/{i}", alpha=alpha)
    tensors = {name.removeprefix("task/"): a for name, a in tensors.items()}
    return run(world, *instructions, node=node, **tensors, **parameters())


def test_an_honest_round_leaves(world):
    messages = honest(world)
    assert messages[-1].error is None, messages[-1].error
    returned = {name for message in messages for name in message.tensors}
    assert {"loss", "norm", "attention"} < returned
    # The next begins with what the last one lost, which stays.
    rows, alpha = np.arange(24).reshape(3, 8), np.zeros((2, 3), np.float32)
    residual = 1 if world.job.update.name == "int8" else None
    instructions, tensors = programs(world).train(
        2, rows, lambda i: f"task/p/{i}", residual=residual, alpha=alpha
    )
    tensors = {name.removeprefix("task/"): a for name, a in tensors.items()}
    assert run(world, *instructions, **tensors, **parameters())[-1].error is None
    instructions, tensors = programs(world).evaluate(np.arange(5), lambda i: f"task/p/{i}")
    tensors = {name.removeprefix("task/"): a for name, a in tensors.items()}
    last = run(world, *instructions, **tensors, **parameters())[-1]
    assert last.error is None, last.error
    assert last.tensors["next/loss"] > 0
    if residual:
        (stays,) = run(world, Return("job/r/kept/residual/2/1", "lost"))
        assert stays.error.name == "PrivateTensor"


def update(world, bias, **bound):
    """The released update graph with `bias` in place of what local steps made; what it returns."""
    graph = world.plan.graphs["update"]
    inputs = {
        "anchor/0": np.zeros((4, 3), np.float32), "x/0": np.zeros((4, 3), np.float32),
        "anchor/1": np.zeros(3, np.float32), "x/1": bias, "loss_sum": np.ones((), np.float32),
        "steps": np.ones((), np.float32), "residual/0": np.zeros((4, 3), np.float32),
        "residual/1": np.zeros(3, np.float32), **bound,
    }  # fmt: skip
    inputs = {name: value for name, value in inputs.items() if name in graph.inputs}
    returned = [name for name in graph.outputs if not name.startswith("next/")]
    outputs = {name: f"task/returned/{i}" for i, name in enumerate(returned)}
    return (Run(graph.digest, inputs, outputs), *(Return(outputs[name], name) for name in returned))


SECRETS = Batch("rows", {"secret": "task/secret"}, ROWS)


def step(world, bias, rows=None):
    """The released job's own step with `bias` for parameters: of rate 0 it passes them on as they are."""
    digest, inputs = world.plan.graphs["step"].digest, world.plan.graphs["step"].inputs
    rate = np.asarray(0.1 if rows else 0, np.float32)
    given = {"x": Stored("task/rows"), "labels": Stored("task/labels"), "x/1": bias, "lr": rate}
    for name in inputs:
        shape = [(4, 3), (3,)][int(name[-1])] if "/" in name else ()
        given.setdefault(name, np.zeros(shape, np.int64 if name == "count" else np.float32))
    batch = Batch("rows", {"x": "task/rows", "y": "task/labels"}, np.arange(8) if rows is None else rows)
    outputs = {"next/x/0": "task/x/0", "next/x/1": "task/x/1"}
    return SECRETS, batch, Run(digest, {name: given[name] for name in inputs}, outputs)


def attacks(world):
    """By name: programs that each returned something of the column before releases named origins."""
    nothing = np.zeros(3, np.float32)
    copy = Run(COPY[0], {"a": Stored("task/secret")}, {"b": "task/copied"})
    kept = Run(COPY[0], {"a": Stored("task/secret")}, {"b": "job/r/x/1"})
    return {
        "a column for what steps made": (SECRETS, *update(world, Stored("task/secret"))),
        "a column for what the node received": (
            SECRETS, *update(world, nothing, **{"anchor/1": Stored("task/secret")}),
        ),
        "a column for what updates lost": (
            SECRETS, *update(world, nothing, **{f"{what}/1": Stored("task/secret") for what in (
                ("residual",) if "residual/1" in world.plan.graphs["update"].inputs else ("anchor",)
            )}),
        ),
        "what another graph made of it": (SECRETS, copy, *update(world, Stored("task/copied"))),
        "under a name that it was kept by": (SECRETS, kept, *update(world, Stored("job/r/x/1"))),
        "through the job's own step": (
            *step(world, Stored("task/secret")), *update(world, Stored("task/x/1")),
        ),
        "as a loss": (
            SECRETS,
            Run(SUM[0], {"a": Stored("task/secret")}, {"b": "task/one"}),
            *update(world, nothing, loss_sum=Stored("task/one")),
        ),
        "as steps": (
            SECRETS,
            Run(SUM[0], {"a": Stored("task/secret")}, {"b": "task/one"}),
            *update(world, nothing, steps=Stored("task/one")),
        ),
        "rows that it chose": (
            Batch("rows", {"small": "task/small"}, np.arange(8)),
            Run(WHOLE[0], {"a": Stored("task/small")}, {"b": "task/chosen"}),
            *step(world, nothing, Stored("task/chosen")),
            *update(world, Stored("task/x/1")),
        ),
        "rows for keys and values": (
            Batch("rows", {"cube": "task/cube"}, ROWS),
            Append("job/r/v", Stored("task/cube"), None, 3, (3, 1, 1)),
            *attend("job/r/v"),
        ),
        "another graph's numbers for keys and values": (
            SECRETS,
            copy,
            Run(ENCODER[0], {"a": Stored("task/copied")}, {"keys": "task/k", "values": "task/v"}),
            Append("job/r/w", Stored("task/v"), None, 3, (3, 1, 1)),
            *attend("job/r/w"),
        ),
        "for queries": (
            Batch("rows", {"cube": "task/cube"}, np.array([0])),
            *attend(np.ones((1, 1, 3, 1), np.float32), Stored("task/cube")),
        ),
    }  # fmt: skip


def attend(values, queries=None):
    """Queries over one key head of one number, of which each key is seen alike."""
    ones = np.ones((1, 1, 3, 1), np.float32)
    inputs = {
        "q": np.ones((1, 1, 1), np.float32) if queries is None else queries, "keys": ones,
        "values": Stored(values) if isinstance(values, str) else values,
        "scale": np.ones((), np.float32), "lo": np.zeros(1, np.int64), "hi": np.full(1, 3, np.int64),
    }  # fmt: skip
    run = Run(library.digest("attention_decode"), inputs, {"out": "task/out", "lse": "task/lse"})
    return run, Return("task/lse", "lse"), Return("task/out", "out")


class ByDigest(Releases):
    """As releases were: whatever a released graph was bound to."""

    def allowed(self, digest, flow, outputs):
        released = [r for r in self._active.values() if digest in r.graphs]
        return frozenset(o for o in outputs if any(r.leaves(digest, o) for r in released))


ATTACKS = (
    "a column for what steps made", "a column for what the node received", "a column for what updates lost",
    "what another graph made of it", "under a name that it was kept by", "through the job's own step",
    "as a loss", "as steps", "rows that it chose", "rows for keys and values",
    "another graph's numbers for keys and values", "for queries",
)  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_is_bound_to_a_released_graph_nothing_private_comes_out(world, attack):
    # That it is an attack at all: with releases that name no origins it succeeds.
    before = ByDigest(world.flags)
    node = LocalNode(Store(1 << 24), world.node.datasets, before)
    messages = run(world, *attacks(world)[attack], node=node)
    assert messages[-1].error is None, messages[-1].error
    assert any(message.tensors for message in messages)

    node = LocalNode(Store(1 << 24), world.node.datasets, Releases(world.flags))
    messages = run(world, *attacks(world)[attack], node=node)
    assert messages[-1].error.name == "PrivateTensor", messages[-1].error
    assert not any(message.tensors for message in messages)


def whole(world):
    """What to allow for all of the job."""
    needed = releases(world.plan, world.job, world.view).values()
    return JobRelease(frozenset(release.digest for release in needed)).flag


def test_every_attack_is_tried(world):
    assert attacks(world).keys() == set(ATTACKS)


def test_the_refusal_says_which_input_came_from_elsewhere(world):
    error = run(world, *attacks(world)["a column for what steps made"])[-1].error
    assert error.name == "PrivateTensor"
    digest = world.plan.graphs["update"].digest
    assert f'input \'x/*\' of graph {digest[:12]} was column "secret" of dataset "rows"' in error.message


def test_without_the_release_the_flag_is_named(world):
    node = LocalNode(Store(1 << 24), world.node.datasets, Releases())
    error = honest(world, node)[-1].error
    assert error.name == "PrivateTensor"
    assert error.message.endswith(f"--allow-release {whole(world)}")


def test_the_graph_s_own_digest_is_refused_with_the_remedy(world):
    node = LocalNode(Store(1 << 24), world.node.datasets, Releases([world.plan.graphs["attention"].digest]))
    error = honest(world, node)[-1].error
    assert f"--allow-release {whole(world)}" in error.message


def test_a_job_s_release_lets_leave_what_its_releases_do_and_nothing_else(world):
    node = LocalNode(Store(1 << 24), world.node.datasets, Releases([whole(world)]))
    assert honest(world, node)[-1].error is None
    for attack in attacks(world):
        messages = run(world, *attacks(world)[attack], node=node)
        assert messages[-1].error.name == "PrivateTensor", attack


def test_a_release_is_its_text(world):
    for role, release in releases(world.plan, world.job, world.view).items():
        assert Release.parse(release.text) == release
        columns = ('column "x" of dataset "rows"', 'column "y" of dataset "rows"')
        assert release.columns == (columns[1:] if role == "labels" else columns)


def test_an_encoder_that_is_named_is_the_only_one(world):
    """`attention` by itself trusts whoever sends encoders; with the encoder's digest it does not."""
    encode = (
        SECRETS,
        Run(ENCODER[0], {"a": Stored("task/secret")}, {"values": "task/v"}),
        Append("job/r/z", Stored("task/v"), None, 3, (3, 1, 1)),
        *attend("job/r/z"),
    )
    for flag, leaves in (
        ("attention", True),
        (f"attention@{ENCODER[0]}", True),
        (f"attention@{'f' * 64}", False),
    ):
        node = LocalNode(Store(1 << 24), world.node.datasets, Releases([flag]))
        last = run(world, *encode, node=node)[-1]
        assert (last.error is None) == leaves, (flag, last.error)
