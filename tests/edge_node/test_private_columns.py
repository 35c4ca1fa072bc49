"""What a bad aggregator learns by how it has columns read: what releases say, and bits that are counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import small_graphs
from onnx import TensorProto, helper

from edge_attention.core.messages.program import Batch, Program, Return, Run, Stored
from edge_attention.core.messages.table import ColumnRead, TensorRead
from edge_attention.core.release import GraphRule, Release, column, table_source
from edge_attention.core.tensors import DataType
from edge_attention.tables.column import TableColumn
from edge_attention.tables.table import Table
from edge_node.data.datasets import LocalDataset
from edge_node.executor import Execution, LocalNode
from edge_node.failures import Failures
from edge_node.release import Releases
from edge_node.runtime import Runtime
from edge_node.store.store import Store

SUMMED, GRAPH = small_graphs.named(
    small_graphs.model(
        [helper.make_node("ReduceSum", ["x"], ["z"], keepdims=0)],
        [small_graphs.value("x", TensorProto.FLOAT, ["n", "m"])],
        [small_graphs.value("z", TensorProto.FLOAT, [])],
    )
)
AGE, ILL = ColumnRead("age"), ColumnRead("ill", categories=("yes", "no"))
X = TensorRead("task/x", DataType.FLOAT32, (AGE,), True)
ROW = np.array([0])


@pytest.fixture(scope="module")
def graphs():
    runtime = Runtime("cpu", 1, 1 << 28, None)
    yield {SUMMED: runtime.load(SUMMED, GRAPH)}
    runtime.close()


def node_of(word="yes", lacking=0, *releases, limit=100):
    columns = {
        "age": TableColumn(np.array([30, 40, 50], np.float32)),
        "ill": TableColumn(np.array([0, 1, 0], np.int32), None, (word, "no")),
        "hiv": TableColumn(np.zeros(3, np.float32), np.arange(3) < lacking),
    }
    data = LocalDataset("d", Table(columns))
    return LocalNode(Store(1 << 20), {"d": data}, Releases(releases), failures=Failures(limit))


def run(node, graphs, batch, *rest, **fields):
    program = Program("t", "s", range(1), (batch, *rest), caller="user/eve", **fields)
    task = Execution(program, node, graphs, clock=lambda: 0.0, sleep=lambda seconds: None, wall=lambda: 1.8e9)
    return list(task.contributions())[-1]


def batch(*tensors, rows=ROW, complete=()):
    return Batch("d", {}, rows, tensors=tensors, complete=complete)


GUESS = replace(X, columns=(replace(ILL, categories=("yes", "no")),), data_type=DataType.INT64)
COMPLETE = (ColumnRead("hiv"),)


@pytest.mark.parametrize(
    ("asked", "of"),
    [
        (batch(GUESS), {"word": "maybe"}),
        (batch(replace(GUESS, columns=(replace(ILL, categories=("no",)),))), {}),
        (batch(X, rows=np.array([2]), complete=COMPLETE), {"lacking": 1}),
    ],
)
def test_a_refusal_that_tells_of_values_is_one_bit_and_is_counted(graphs, asked, of):
    node = node_of(**of, limit=2)
    said = [run(node, graphs, asked).error for _ in range(3)]
    assert node.failures.count("user/eve") == 2
    assert {error.name for error in said[:2]} <= {"InvalidProgram", "InvalidArgument"}
    assert "failed on private data" in said[0].message
    assert said[0].message == said[1].message
    for secret in ("maybe", "yes", "2 rows", "row 0", "row 1", "has 2"):
        assert secret not in said[0].message
    assert said[2].name == "PrivateLimit", "no more bits today"


def test_what_a_refusal_says_does_not_depend_on_which_value_it_is_or_where(graphs):
    answers = {run(node_of(word), graphs, batch(GUESS)).error.message for word in ("maybe", "perhaps")}
    assert len(answers) == 1


def test_without_a_limit_of_failures_nothing_that_tells_is_tried(graphs):
    node = node_of(limit=0)
    assert run(node, graphs, batch(GUESS)).error.name == "PrivateLimit"
    assert run(node, graphs, batch(X)).error is None, "what is registered of a column tells nothing new"


def test_what_is_registered_is_refused_in_words_and_counts_as_nothing(graphs):
    node = node_of(lacking=1)
    error = run(node, graphs, batch(replace(X, columns=COMPLETE))).error
    assert "column 'hiv' of dataset 'd' lacks values" in error.message
    assert node.failures.count("user/eve") == 0


def test_how_many_rows_are_complete_cannot_be_asked(graphs):
    for asked in (
        batch(X, rows=None, complete=COMPLETE),
        Batch("d", {}, ROW, "task/ids", b"k", (), COMPLETE),
    ):
        error = run(node_of(lacking=1), graphs, asked).error
        assert "how many rows are complete, and which, is private" in error.message


OTHERWISE = {
    "a histogram: one category": ((replace(AGE, categories=("30", "40", "50"), one_hot=True),), ()),
    "another column": ((ColumnRead("hiv"),), ()),
    "more columns": ((AGE, ColumnRead("hiv")), ()),
    "rows chosen by another column's gaps": ((AGE,), COMPLETE),
    "what is missing made loud": ((replace(AGE, constant=1e30),), ()),
    "whether there is a value": ("presence", ()),
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_a_release_of_a_column_is_of_it_as_it_is_and_of_all_rows(graphs, how):
    """The graph is released, over the ages as they are: nothing else goes through it."""
    rule = GraphRule({"x": frozenset({column("d", "age")})}, frozenset({"z"}))
    release = Release({SUMMED: rule})
    node = node_of("yes", 0, release.digest)
    summed = Run(SUMMED, {"x": Stored("task/x")}, {"z": "task/z"})
    out = Return("task/z", "z")
    honest = run(node, graphs, batch(X), summed, out, releases=(release.text,))
    assert honest.error is None
    columns, complete = OTHERWISE[how]
    read = replace(X, presence=True) if columns == "presence" else replace(X, columns=columns)
    answer = run(node, graphs, batch(read, complete=complete), summed, out, releases=(release.text,))
    assert answer.error.name == "PrivateTensor", how
    assert not answer.tensors


def test_a_release_names_all_that_a_tensor_tells_of():
    said = table_source("d", replace(X, columns=(AGE, ILL)), COMPLETE)
    assert said == (
        'columns {"columns":["age",{"categories":["yes","no"],"column":"ill"}],"complete":["hiv"]} '
        'of dataset "d"'
    )
    swapped = table_source("d", replace(X, columns=(ILL, AGE)), COMPLETE)
    others = table_source("d", replace(X, columns=(AGE, replace(ILL, categories=("no", "yes")))), COMPLETE)
    assert len({said, swapped, others}) == 3
    many = replace(X, columns=tuple(ColumnRead(f"gene {n}") for n in range(1_000)))
    assert len(table_source("d", many)) < 200


def test_a_flag_that_names_columns_lets_them_side_by_side_and_no_other():
    rule = GraphRule({"x": frozenset({column("d", "age"), column("d", "dose")})})
    release = Release({SUMMED: rule})
    both = table_source("d", replace(X, columns=(AGE, ColumnRead("dose"))))
    assert release.stranger({(SUMMED, "x", both)}) is None
    for columns in (
        (AGE, ColumnRead("hiv")),
        (AGE, ColumnRead("dose", constant=1.0)),
        (AGE, ColumnRead("dose", "o")),
    ):
        source = table_source("d", replace(X, columns=columns))
        assert release.stranger({(SUMMED, "x", source)}) is not None
