"""Graphs that end, hold up or fill the process they run in, amid attends, appends and training."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import schools
from fleets import SPEC, Fleet, exact, queries, tokens, until
from onnx import TensorProto, helper, numpy_helper
from schools import Schools

from edge_attention.core.errors import DeadlineExceeded, EdgeAttentionError, GraphDied
from edge_attention.core.messages.training import LocalSpec, OptimizerSpec, RunState

sys.path.insert(0, str(Path(__file__).parents[1] / "edge_node"))

SIGNALS = [signal.SIGKILL, signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT]
ONE = {"query_heads": 1, "key_heads": 1, "key_dim": 1, "value_dim": 1}


def cells(fleet, node):
    """The ids of a node's processes for graphs."""
    pid, found = fleet.child(node).pid, []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def encoder(*nodes, initializers=()):
    """A model x [n, 32] -> keys, values [n, 1, 1], with these nodes between; they make `f` of n numbers."""
    ends = [
        helper.make_node("Reshape", ["f", "s"], ["keys"]),
        helper.make_node("Identity", ["keys"], ["values"]),
    ]
    graph = helper.make_graph(
        [*nodes, *ends],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, 1]) for name in ("keys", "values")],
        [numpy_helper.from_array(np.array([-1, 1, 1]), "s"), *initializers],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def constant(value, name):
    return numpy_helper.from_array(np.asarray(value), name)


def summed():
    """A good one."""
    return encoder(
        helper.make_node("ReduceSum", ["x", "axes"], ["f"], keepdims=0), initializers=[constant([1], "axes")]
    )


def divides():
    """The smallest integer by -1: SIGFPE, when it is loaded."""
    return encoder(
        helper.make_node("ReduceSum", ["x", "axes"], ["r"], keepdims=0),
        helper.make_node("Div", ["least", "minus"], ["c"]),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["r", "d"], ["f"]),
        initializers=[
            constant([1], "axes"),
            constant(np.int32([-(2**31)]), "least"),
            constant(np.int32([-1]), "minus"),
        ],
    )


def loops(*body, **initializers):
    """`f` = the sum of x, after a loop that does not end; `body` makes v2 of v."""
    inside = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), *body],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, None),
        ],
    )
    return encoder(
        helper.make_node("ReduceSum", ["x", "axes"], ["r"], keepdims=0),
        helper.make_node("Loop", ["", "t", "r"], ["f"], body=inside),
        initializers=[constant([1], "axes"), constant(True, "t")],
    )


def endless():
    return loops(helper.make_node("Identity", ["v"], ["v2"]))


def growing():
    """Twice as much memory each turn."""
    return loops(helper.make_node("Concat", ["v", "v"], ["v2"], axis=0))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, data):
    with Fleet(tmp_path_factory.mktemp("cells"), "--lease", "5") as own:
        for name in "ab":
            own.start_node(
                name,
                *("--threads", "1", "--memory-limit", "300MB"),
                data={"rows": data[0]},
                allow_release=["attention"],
            )
        yield own


class Good:
    """A caller who attends and appends all the time, and checks every answer."""

    def __init__(self, fleet):
        self._client, self._ended, self.answers = fleet.client(), threading.Event(), 0
        self.context = self._client.create_context(f"good-{time.monotonic_ns()}", **SPEC)
        self.keys, self.values = tokens(1500)
        self.context.append(self.keys, self.values)

    def __enter__(self):
        self._pool = ThreadPoolExecutor(1)
        self._job = self._pool.submit(self._work)
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._job.result(120)  # an answer that was wrong is raised here
        self._pool.shutdown()
        self._client.close()

    def _work(self):
        while not self._ended.is_set():
            asked = queries(2, seed=self.answers)
            exact(self.context.attend(asked, deadline=120), asked, self.keys, self.values)
            if self.answers % 5 == 0:
                keys, values = tokens(3, seed=self.answers)
                self.context.append(keys, values)
                self.keys, self.values = (
                    np.concatenate([self.keys, keys]),
                    np.concatenate([self.values, values]),
                )
            self.answers += 1


def test_graphs_that_end_their_process_cost_a_good_caller_nothing(fleet, data):
    pids = [fleet.child(name).pid for name in "ab"]
    with fleet.client() as bad, Good(fleet) as good:
        context = bad.create_context("bad", **ONE)
        for _ in range(3):
            # It reads private rows: the class of the error is all that leaves; the log has the rest.
            with pytest.raises(GraphDied):
                context.append_dataset("a", "rows", divides(), {"x": "x"}, timeout=240)
        until(lambda: "is refused: it has ended the process it ran in 2 times" in fleet.said("a"))
        assert fleet.said("a").count("ended its process: signal 8 (SIGFPE)") == 2
        with pytest.raises(DeadlineExceeded):
            context.append_dataset("a", "rows", endless(), {"x": "x"}, timeout=2)
        with pytest.raises(EdgeAttentionError):
            context.append_dataset("b", "rows", growing(), {"x": "x"}, timeout=240)
        context.append_dataset("a", "rows", summed(), {"x": "x"}, timeout=240)
        done = good.answers
        until(lambda: good.answers > done + 5)
    answer = context_of(fleet, "bad").attend(np.zeros((1, 1, 1), np.float32))
    np.testing.assert_allclose(answer.out.ravel(), data[1].sum(1, dtype=np.float64).mean(), atol=1e-4)
    assert pids == [fleet.child(name).pid for name in "ab"]
    assert all(fleet.child(name).running for name in "ab")


def context_of(fleet, name):
    return fleet.client().context(name)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_cell_that_is_ended_in_the_middle_of_appends_costs_nobody_anything(fleet, data, number):
    with fleet.client() as client, Good(fleet):
        context = client.create_context(f"whole-{number.name}", **ONE)
        ended = 0
        for _ in range(6):
            with ThreadPoolExecutor(1) as pool:
                job = pool.submit(context.append_dataset, "a", "rows", summed(), {"x": "x"}, timeout=240)
                while not job.done():
                    for pid in cells(fleet, "a")[:1] if ended < 2 else ():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, number)
                            ended += 1
                    time.sleep(0.05)
                job.result()
        assert ended
        assert context.attend(np.zeros((1, 1, 1), np.float32)).exact
        assert context.describe().tokens == 6 * 300


LOCAL = LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=8, steps=60)
NODES = ("a", "b", "c")


def test_a_run_whose_cells_are_ended_again_and_again_ends_with_the_bits_of_one_that_was_left_alone(tmp_path):
    job = schools.job(12, name="ended", nodes=NODES, local=LOCAL)
    with Schools(tmp_path, "--lease", "3", names=NODES) as own:
        own.allow(job)
        own.start()
        whole = own.client.train(job)
        wanted = list(whole)
        run = own.client.train(job)
        ended, rounds = 0, []
        for event in run:
            rounds.append(event)
            for name, number in zip(NODES, SIGNALS, strict=False):
                for pid in cells(own.fleet, name):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                        ended += 1
        assert ended > len(NODES)
        assert run.describe().state is RunState.FINISHED
        assert [one.loss for one in rounds] == [one.loss for one in wanted]
        for name, value in run.parameters().items():
            np.testing.assert_array_equal(value, whole.parameters()[name])
