from __future__ import annotations

import hmac

import numpy as np
import pytest
import small_graphs

from edge_attention.core.errors import DeadlineExceeded, InvalidProgram
from edge_attention.core.messages.program import Append, Batch, Drop, Program, Repeat, Return, Run, Stored
from edge_attention.core.release import column, output
from edge_attention.core.tensors import Encoded, Encoding
from edge_attention.graphs.attention import library
from edge_attention.tables.table import Table
from edge_node.data.datasets import LocalDataset
from edge_node.executor import Execution, LocalNode
from edge_node.limits import graphs_of
from edge_node.release import Releases
from edge_node.runtime import Runtime, Stop
from edge_node.store.store import Origin, Store

DOUBLED, _ = small_graphs.doubled()
X = np.array([[1, 2], [3, 4]], np.float32)
RUN_TO_S = Run(DOUBLED, {"x": Stored("task/y")}, {"y": "task/s"})
RUN = Run(DOUBLED, {"x": Stored("task/x")}, {"y": "task/y", "z": "task/z"})


@pytest.fixture(scope="module")
def graphs():
    runtime = Runtime()
    made = (small_graphs.doubled(), small_graphs.endless(), small_graphs.filled(), small_graphs.gathered())
    return {digest: runtime.load(digest, data) for digest, data in made}


@pytest.fixture
def node():
    columns = {"x": np.arange(10, dtype=np.float32).reshape(5, 2)}
    table = LocalDataset("d", Table.of(columns, ["a", "b", "c", "d", "é"]))
    return LocalNode(Store(1 << 20), {"d": table}, Releases())


def program(*instructions, **fields):
    return Program("t", "s", range(2), instructions, **fields)


def run(node, graphs, *instructions, **fields):
    return list(Execution(program(*instructions, **fields), node, graphs).contributions())


def failed(contributions):
    error = contributions[-1].error
    assert contributions[-1].final
    assert not contributions[-1].tensors
    return error.name, error.message


def test_returns_travel_together_and_before_the_next_run(node, graphs):
    steps = [RUN, Return("task/y", "a"), Return("task/z", "b"), RUN, Return("task/y", "c"), Drop(("task/y",))]
    first, last = run(node, graphs, *steps, tensors={"task/x": X})
    assert (first.number, first.final, set(first.tensors)) == (0, False, {"a", "b"})
    assert (last.number, last.final, set(last.tensors)) == (1, True, {"c"})
    assert 0 < last.run_seconds <= last.task_seconds
    assert node.store.used == 0


def test_a_return_leaves_before_the_run_begins(node, graphs):
    execution = Execution(
        program(RUN, Return("task/z", "z"), Run("f" * 64, {}, {"y": "task/q"}), tensors={"task/x": X}),
        node,
        graphs,
    )
    contributions = execution.contributions()
    assert next(contributions).tensors["z"] == 10  # the graph that is not there has not been touched
    assert next(contributions).error.name == "Internal"


def test_the_same_name_twice_is_two_contributions(node, graphs):
    one, two = run(node, graphs, Return("task/x", "x"), Return("task/x", "x"), tensors={"task/x": X})
    assert set(one.tensors) == set(two.tensors) == {"x"}


def test_tasks_do_not_see_each_other(node, graphs):
    one = Execution(program(Return("task/x", "x"), tensors={"task/x": X}), node, graphs, serial=1)
    two = Execution(program(Return("task/x", "x"), tensors={"task/x": -X}), node, graphs, serial=2)
    (first,), (second,) = list(one.contributions()), list(two.contributions())
    np.testing.assert_array_equal(first.tensors["x"], X)
    np.testing.assert_array_equal(second.tensors["x"], -X)
    assert node.store.used == 0


def test_a_task_has_sequences_of_its_own_beside_its_tensors(node, graphs):
    tokens, grow = np.ones((3, 1, 2), np.float32), Append("task/s", Stored("task/x"), tile=4)

    def task(serial, *instructions):
        given = {"task/x": serial * tokens}
        return Execution(program(*instructions, tensors=given), node, graphs, serial=serial).contributions()

    one, two = (task(serial, grow, Return("task/s", "s"), grow, Return("task/s", "s")) for serial in (1, 2))
    for first, second in zip(one, two, strict=True):
        assert first.tensors["s"].max() == 1
        assert second.tensors["s"].max() == 2
    assert not node.store.sequences()
    (last,) = task(3, grow, Drop(("task/s",)), Return("task/s", "s"))
    assert "nothing called 'task/s'" in failed([last])[1]
    both = ("is a sequence", (grow, RUN_TO_S)), ("is a tensor and no sequence", (RUN_TO_S, grow))
    for text, steps in both:
        name, message = failed(run(node, graphs, *steps, tensors={"task/x": tokens, "task/y": X}))
        assert (name, text in message) == ("InvalidProgram", True), message
    (last,) = run(
        node,
        graphs,
        *(grow, Drop(("task/s",)), RUN_TO_S, Return("task/s", "s")),
        tensors={"task/x": tokens, "task/y": X},
    )[-1:]
    np.testing.assert_array_equal(last.tensors["s"], 2 * X)
    assert node.store.used == 0
    assert not node.store.sequences()


def test_other_scopes_stay_until_they_are_dropped(node, graphs):
    run(node, graphs, tensors={"job/j/x": X, "task/x": X})
    assert (node.store.used_in("job"), node.store.used_in("task")) == (X.nbytes, 0)
    run(node, graphs, Drop(("job/j/",)))
    assert node.store.used == 0


def test_repeat_reads_a_row_of_rows_each_turn(node, graphs):
    rows = np.array([[0, 1], [4, 4], [2, 3]])
    allowed = LocalNode(node.store, node.datasets, Releases([f"{DOUBLED}:z@d/x"]))
    steps = (Batch("d", {"x": "task/x"}, rows), RUN, Return("task/z", "z"))
    sums = [c.tensors["z"].item() for c in run(allowed, graphs, Repeat(3, steps)) if c.tensors]
    table = np.arange(10).reshape(5, 2)
    assert sums == [table[r].sum() for r in rows]
    assert "turn 3" in failed(run(allowed, graphs, Repeat(4, steps)))[1]


@pytest.mark.parametrize("rows", [[5], [-1], [[0]], [0.5]])
def test_rows_that_are_none_are_refused(node, graphs, rows):
    name, message = failed(run(node, graphs, Batch("d", {"x": "task/x"}, np.array(rows))))
    assert name == "InvalidProgram"
    assert "rows" in message


def test_append_and_tiles(node, graphs):
    source = np.arange(12, dtype=np.float32).reshape(6, 1, 2)
    (only,) = run(
        node,
        graphs,
        Append("context/c/x", source, tile=4),
        Append("context/c/x", source[:2], at=0),
        Return("context/c/x", "x", Encoding.FLOAT16),
    )
    assert isinstance(only.tensors["x"], Encoded)
    assert only.tensors["x"].array.shape == (2, 1, 4, 2)
    run(node, graphs, Append("context/c/x", -source, at=0))
    assert only.tensors["x"].array[0, 0, 1, 0] == 2  # what was returned does not change under way


# What may leave


def test_what_comes_from_private_data_is_private(node, graphs):
    steps = (Batch("d", {"x": "task/x"}), RUN)
    for stored, said in (("task/x", 'column "x"'), ("task/z", f"--allow-release {DOUBLED}:z@d/x")):
        name, message = failed(run(node, graphs, *steps, Return(stored, "r")))
        assert name == "PrivateTensor"
        assert stored in message
        assert said in message


def test_privacy_goes_through_graphs_and_sequences(node, graphs):
    again = Run(DOUBLED, {"x": Stored("task/y")}, {"z": "job/j/z"})
    run(node, graphs, Batch("d", {"x": "task/x"}), RUN, again)
    flow = {(DOUBLED, "x", column("d", "x")), (DOUBLED, "x", output(DOUBLED, "y"))}
    assert node.store.get("job/j/z").origin == Origin(DOUBLED, "z", flow=frozenset(flow))
    node.store.put("job/j/p", np.ones((2, 1, 2), np.float32), Origin("", "rows"))
    run(
        node, graphs, Append("context/c/x", Stored("job/j/p"), tile=2, shape=(2, 1, 2)),
        Append("context/c/x", np.ones((2, 1, 2), np.float32)),
    )  # fmt: skip
    assert failed(run(node, graphs, Return("context/c/x", "x")))[0] == "PrivateTensor"


@pytest.mark.parametrize("named", [DOUBLED, f"sha256:{DOUBLED.upper()}", f"{DOUBLED}:z", f"{DOUBLED}:q,z"])
def test_a_released_output_leaves_and_no_other(node, graphs, named):
    allowed = LocalNode(node.store, node.datasets, Releases([f"{named}@d/x"]))
    steps = (Batch("d", {"x": "task/x"}), RUN)
    (only,) = run(allowed, graphs, *steps, Return("task/z", "z"))
    assert only.tensors["z"] == 45
    answer = run(allowed, graphs, *steps, Return("task/y", "y"))[-1]
    assert (answer.error is None) == (":" not in named.removeprefix("sha256:"))


def test_a_graph_that_fails_on_private_data_does_not_quote_it(node, graphs, caplog):
    digest, _ = small_graphs.gathered()
    node.store.put("job/j/i", np.array([777]), Origin("", "rows"))
    look_up = Run(digest, {"x": np.ones(3, np.float32), "i": Stored("job/j/i")}, {"y": "task/y"})
    name, message = failed(run(node, graphs, look_up))
    assert name == "InvalidProgram"
    assert message.startswith(f"instruction 1: Run, graph {digest}: failed on private data")
    assert "777" not in message
    assert "777" in caplog.text
    look_up = Run(digest, {"x": np.ones(3, np.float32), "i": np.array([777])}, {"y": "task/y"})
    assert "777" in failed(run(node, graphs, look_up))[1]


def test_hashes_of_ids(node, graphs):
    batch = Batch("d", {}, np.array([4, 0]), "task/ids", b"key")
    assert "--allow-release alignment" in failed(run(node, graphs, batch, Return("task/ids", "i")))[1]
    for secret in (b"", b"secret"):
        allowed = LocalNode(node.store, node.datasets, Releases(["alignment"]), secret)
        (only,) = run(allowed, graphs, batch, Return("task/ids", "i"))
        key = hmac.new(secret, b"key", "sha256").digest() if secret else b"key"
        expected = [hmac.new(key, i.encode(), "sha256").digest()[:16] for i in ("é", "a")]
        assert [row.tobytes() for row in only.tensors["i"]] == expected
    assert "identity_key" in failed(run(node, graphs, Batch("d", {}, None, "task/ids")))[1]


def test_hashes_of_rows_chosen_by_private_data_stay(node, graphs):
    allowed = LocalNode(node.store, node.datasets, Releases(["alignment"]))
    node.store.put("job/j/rows", np.array([1, 2]), Origin(DOUBLED, "y"))
    batch = Batch("d", {}, Stored("job/j/rows"), "task/ids", b"key")
    assert failed(run(allowed, graphs, batch, Return("task/ids", "i")))[0] == "PrivateTensor"


def test_releases_by_name_are_the_library_s():
    releases = Releases(["attention", "alignment"])
    assert releases.alignment
    assert releases.announced == ("attention", "alignment")
    for name, outputs in library.RELEASES["attention"].items():
        digest, some = library.digest(name), [*outputs, "another"]
        assert releases.allowed(digest, frozenset(), some) == outputs
        assert not releases.allowed(digest, None, some)
    assert not Releases().allowed(DOUBLED, frozenset(), ["z"])


def test_a_release_by_file_is_announced_by_digest(tmp_path):
    (tmp_path / "g.onnx").write_bytes(small_graphs.doubled()[1])
    releases = Releases([f"{tmp_path}/g.onnx:z@d/x"])
    assert releases.announced == (f"{DOUBLED}:z@d/x",)
    assert releases.allowed(DOUBLED, frozenset(), ["z", "y"]) == {"z"}


# Limits, and what is wrong


def test_limits_of_a_program():
    deep = (Drop(()),)
    for _ in range(5):
        deep = (Repeat(2, deep),)
    for instructions, said in (
        ((Drop(()),) * 10_001, "instructions"),
        ((Repeat(1, (Drop(()),) * 10_000),), "instructions"),
        (deep, "nested"),
        ((Repeat(2**20, (Repeat(2**20, (Drop(()),)),)),), "carries out"),
        ((Repeat(2**32 - 1, ()),), "carries out"),
        ((Run("../x", {}, {}),), "digest"),
        (tuple(Run(f"{n:064x}", {}, {}) for n in range(65)), "65 graphs"),
    ):
        with pytest.raises(InvalidProgram, match=said):
            graphs_of(program(*instructions))
    assert graphs_of(program(Repeat(3, (RUN,)), RUN)) == {DOUBLED}


@pytest.mark.parametrize(
    ("instruction", "said"),
    [
        (Run(DOUBLED, {}, {"y": "task/y"}), "input 'x' is not bound"),
        (Run(DOUBLED, {"x": X, "w": X}, {"y": "task/y"}), "no input w"),
        (Run(DOUBLED, {"x": X}, {"w": "task/y"}), "no output w"),
        (Run(DOUBLED, {"x": X}, {}), "keeps no output"),
        (Run(DOUBLED, {"x": X.astype(np.int64)}, {"y": "task/y"}), r"must be float32 [n, 2]; it is int64"),
        (Run(DOUBLED, {"x": X.T[:1].T}, {"y": "task/y"}), "it is float32 [2, 1]"),
        (Run(DOUBLED, {"x": X[0]}, {"y": "task/y"}), "it is float32 [2]"),
        (Run(DOUBLED, {"x": X}, {"y": "dataset/d/x"}), "never written"),
        (Run(DOUBLED, {"x": X}, {"y": "elsewhere"}), "not a name in a store"),
        (Run(DOUBLED, {"x": X}, {"y": "task/y/"}), "stands for many"),
        (Run(DOUBLED, {"x": Stored("task/nothing")}, {"y": "task/y"}), "nothing called 'task/nothing'"),
        (Append("dataset/d/x", X, tile=2), "never written"),
        (Batch("e", {}), "no dataset 'e'"),
        (Batch("d", {"q": "task/q"}), "no column 'q'"),
        (Return("dataset/d/x", "x"), "read with Batch"),
        (Return("task/x", ""), "under a name of none"),
        (Return("task/i", "i", Encoding.FLOAT16), "task/i: only float32 travels as float16; it is int64"),
        (Return("task/i", "i", Encoding.BFLOAT16), "only float32 travels as bfloat16"),
    ],
)
def test_what_is_wrong_is_said(node, graphs, instruction, said):
    tensors = {"task/x": X, "task/i": np.arange(3)}
    _, message = failed(run(node, graphs, instruction, tensors=tensors))
    assert said in message
    assert node.store.used == 0


def test_outputs_count_against_the_limit(node, graphs):
    digest, _ = small_graphs.filled()
    fill = Run(digest, {"x": np.array([200_000])}, {"y": "task/y"})
    assert len(run(node, graphs, fill)) == 1
    two = Run(digest, {"x": np.array([200_000])}, {"y": "task/z"})
    name, message = failed(run(node, graphs, fill, two))
    assert (name, node.store.used) == ("OutOfMemory", 0)
    assert message.startswith("task/z needs 800,000 more bytes")
    huge = Run(digest, {"x": np.array([1 << 50])}, {"y": "task/y"})
    assert failed(run(node, graphs, huge))[0] == "OutOfMemory"


def test_a_stop_ends_between_instructions_and_within_a_graph(node, graphs):
    digest, _ = small_graphs.endless()
    stop = Stop()
    loop = Run(digest, {"x": np.ones(1, np.float32)}, {"y": "task/y"})
    execution = Execution(
        program(Repeat(10**6, (Return("task/x", "x"),)), tensors={"task/x": X}), node, graphs, stop=stop
    )
    contributions = execution.contributions()
    next(contributions)
    stop.set(DeadlineExceeded("late"))
    assert failed(list(contributions)) == ("DeadlineExceeded", "late")
    assert (
        failed(list(Execution(program(loop), node, graphs, stop=stop).contributions()))[0]
        == "DeadlineExceeded"
    )
    import threading

    stop = Stop()
    timer = threading.Timer(0.2, stop.set, [DeadlineExceeded("late")])
    timer.start()
    # The graph itself never ends: this returns only because the stop reaches into it.
    assert failed(list(Execution(program(loop), node, graphs, stop=stop).contributions()))[1] == "late"
    timer.join()


def test_two_tasks_of_one_node_share_nothing_when_one_is_abandoned(node, graphs):
    execution = Execution(program(RUN, Return("task/y", "y"), RUN, tensors={"task/x": X}), node, graphs)
    contributions = execution.contributions()
    next(contributions)
    assert node.store.used > 0
    contributions.close()
    assert node.store.used == 0


def test_a_graph_that_ends_after_its_task_was_stopped_stores_nothing(node, graphs):
    """Who stopped the task may have dropped its scope already: what came later would stay for good."""
    stop = Stop()

    class Late:
        remembers = False

        def run(self, feeds, outputs, *_):
            stop.set(DeadlineExceeded("late"))
            node.store.drop("job/r/")
            return [feeds["x"] for _ in outputs]

    keep = Run(DOUBLED, {"x": X}, {"y": "job/r/y"})
    task = Execution(program(keep), node, {DOUBLED: Late()}, stop=stop)
    assert failed(list(task.contributions())) == ("DeadlineExceeded", "late")
    assert node.store.used == 0
