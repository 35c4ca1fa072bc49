"""Rows that lack values: left out, or read as the mean of all nodes, as if a person had done it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import small_model
from house import House, dataset
from test_federated import ended, parameters

from aggregator.fleet.columns import TableView, WantedInput, resolve
from aggregator.training.federated.gaps import NodeGaps, _is_count, reads, settled
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.link import Column, Dataset
from edge_attention.core.messages.program import Batch, Program, Return, Run, Stored
from edge_attention.core.messages.table import (
    ColumnRead,
    ColumnSpec,
    InputColumns,
    MissingRule,
    MissingValues,
    TableSpec,
)
from edge_attention.core.messages.training import RunState, StrategySpec
from edge_attention.core.tensors import DataType
from edge_attention.graphs.models.gap_graphs import complete_graph, means_graph
from edge_node.release import Releases

NAMES = tuple(f"c{i}" for i in range(small_model.FEATURES))
DROP, MEAN = MissingValues(MissingRule.DROP), MissingValues(MissingRule.MEAN)


def gappy(name):
    """Columns of a node: c0 lacks a fifth, c1 three; node e lacks none."""
    x = small_model.X[name].astype(np.float64).astype(np.float32).copy()
    if name != "e":
        x[::5, 0] = np.nan
        x[1:4, 1] = np.nan
    return {**{n: x[:, i].copy() for i, n in enumerate(NAMES)}, "y": small_model.Y[name]}


def spec(missing=None, **columns):
    each = {name: ColumnSpec(missing=rule) for name, rule in columns.items()}
    return TableSpec({"x": InputColumns(NAMES)}, each, missing)


def trained(columns, table, untold=(), **changed):
    """A run's outcome: rounds, itself, parameters, how it is read; of nodes with these columns.

    `untold`: roles whose releases the nodes do not give.
    """

    async def scenario(house):
        job = small_model.job(house, rounds=3, table=table, **changed)
        boxes = [house.node(n, datasets=[dataset("rows", **columns(n))]) for n in small_model.NODES]
        plan = (await house.runs.plan(job)).graphs
        released = sorted({g.release for g in plan if g.release and g.role not in untold})
        for box in boxes:
            box.node = replace(box.node, releases=Releases(released))
        run = (await house.runs.start(job)).id
        rounds, info = await ended(house, run)
        made = parameters(house, run) if info.state is RunState.FINISHED else ()
        return SimpleNamespace(
            rounds=rounds,
            info=info,
            made=made,
            roles={g.role for g in plan},
            begun=house.state.record(run, 0),
        )

    with House(patience=20.0) as house:
        return asyncio.run(scenario(house))


def same(one, other):
    assert one.info.state is other.info.state is RunState.FINISHED, one.info.detail
    assert len(one.rounds) == len(other.rounds) == 3
    for here, there in zip(one.made, other.made, strict=True):
        np.testing.assert_array_equal(here, there)


def test_rows_that_lack_a_value_are_left_out_as_if_they_were_not_in_the_file():
    def whole(name):
        columns = gappy(name)
        kept = ~(np.isnan(columns["c0"]) | np.isnan(columns["c1"]))
        return {n: values[kept] for n, values in columns.items()}

    found = trained(gappy, spec(DROP))
    same(found, trained(whole, spec()))
    assert found.begun["nodes"] == {name: len(whole(name)["y"]) for name in small_model.NODES}
    assert found.info.samples.complete == sum(found.begun["nodes"].values())
    (note,) = [note for note in found.info.notes if not note.startswith("the data of")]
    lost = {n: small_model.ROWS[n] - rows for n, rows in found.begun["nodes"].items()}
    assert note.startswith(
        f"{sum(lost.values())} rows lack a value and are left out: {lost['a']} of node a, "
    )
    assert "node e" not in note


def test_the_mean_of_all_nodes_stands_for_what_is_missing():
    every = {n: np.concatenate([gappy(node)[n] for node in small_model.NODES]) for n in NAMES}
    means = {n: float(np.nanmean(values.astype(np.float64))) for n, values in every.items()}

    def filled(name):
        return {
            n: np.where(np.isnan(v), np.float32(means[n]), v) if n in means else v
            for n, v in gappy(name).items()
        }

    found = trained(gappy, spec(MEAN))
    same(found, trained(filled, spec()))
    read = found.begun["view"]["tensors"]["x"]["columns"]
    assert [each["constant"] for each in read] == pytest.approx([means[n] for n in NAMES], rel=1e-14)
    assert found.begun["nodes"] == small_model.ROWS
    assert found.roles >= {"means"}
    assert "complete" not in found.roles


def test_one_column_by_its_mean_and_rows_dropped_by_another():
    found = trained(gappy, spec(None, c0=DROP, c1=MEAN), strategy=StrategySpec("fedbuff"))
    assert found.info.state is RunState.FINISHED, found.info.detail
    assert found.begun["nodes"] == {
        n: rows if n == "e" else rows - len(range(0, rows, 5)) for n, rows in small_model.ROWS.items()
    }


def test_a_node_that_does_not_tell_is_named_and_what_would_let_it():
    for rule, role, what in (
        (DROP, "complete", "how many of its rows are whole"),
        (MEAN, "means", "means"),
    ):
        found = trained(gappy, spec(rule), untold=(role,))
        assert found.info.state is RunState.FAILED
        assert not found.rounds
        assert f"node 'a' does not tell {what}: " in found.info.detail
        assert "--allow-release job:" in found.info.detail


def test_a_node_without_a_whole_row_is_named_before_the_first_round():
    def lacking(name):
        columns = gappy(name)
        if name == "c":
            columns["c2"][::2] = columns["c3"][1::2] = np.nan
        return columns

    found = trained(lacking, spec(DROP))
    assert found.info.state is RunState.FAILED
    assert not found.rounds
    assert "dataset 'rows' of node c has no row left" in found.info.detail


VIEW = TableView("d", {}, (ColumnRead("a"),), (ColumnRead("b"),))


def told(node, complete, total, count, rows=10):
    return NodeGaps(node, rows, complete, np.array([total]), np.array([count]))


@pytest.mark.parametrize(
    ("number", "good"),
    [(0.0, True), (2.0**60, True), (2.0**61, False), (-1.0, False), (0.5, False), (float("nan"), False),
     (float("inf"), False)],
)  # fmt: skip
def test_a_count_is_looked_at_at_once_however_many_rows_a_node_says_it_has(number, good):
    assert _is_count(number, 1 << 60) is good


def test_what_nodes_tell_is_settled():
    rows, view, note = settled(VIEW, [told("n", 10, 30.0, 3.0), told("m", 7, 2.0, 1.0)])
    assert rows == {"n": 10, "m": 7}
    assert view.means == VIEW.means
    assert note == "3 rows lack a value and are left out: 3 of node m"
    with pytest.raises(InvalidArgument, match="column 'b' has no value on any node"):
        settled(VIEW, [told("n", 10, 0.0, 0.0)])


def test_a_class_and_a_vector_have_no_mean():
    columns = (
        Column("y", DataType.INT64, (), int64=True, gaps=True),
        Column("v", DataType.FLOAT32, (3,), float32=True, gaps=True),
    )
    seen = Dataset("d", 9, columns, identified=False)
    for name, dtype, shape, why in (("y", "int64", (), "read as int64"), ("v", "float32", (3,), "[3] a row")):
        wanted = [WantedInput(name, dtype, shape)]
        with pytest.raises(InvalidArgument, match=f"column '{name}' .*{re.escape(why)}.*; name another rule"):
            resolve("d", wanted, {}, TableSpec(columns={name: ColumnSpec(missing=MEAN)}), {"n": (seen,)})
        with pytest.raises(InvalidArgument, match=f"column '{name}' of node 'n' lacks values"):
            resolve("d", wanted, {}, TableSpec(missing=MEAN), {"n": (seen,)})


def test_no_rows_that_an_aggregator_chooses_leave_as_counts_or_sums():
    """Over one row a sum is its value, and over two sets that differ by one row the difference is."""
    table = spec(None, c0=DROP, c1=MEAN)

    async def scenario(house):
        job = small_model.job(house, table=table, nodes=("a",))
        box = house.node("a", datasets=[dataset("rows", **gappy("a"))])
        plan = (await house.runs.plan(job)).graphs
        texts = tuple({g.release_text for g in plan if g.role in ("complete", "means")})
        box.node = replace(box.node, releases=Releases(sorted({g.release for g in plan if g.release})))
        graph = {g.role: g.digest for g in plan}
        for made in (complete_graph(), means_graph()):
            house.state.put_blob(made)
        wanted = [WantedInput("x", "float32", (small_model.FEATURES,))]
        view = resolve("rows", wanted, {}, table, {"a": box.member.register.datasets})
        told = {}
        for role, tensors in reads(view).items():
            for rows in (None, np.arange(small_model.ROWS["a"]), np.array([7]), np.arange(9)):
                inputs = {name: Stored(tensor.stored) for name, tensor in tensors.items()}
                out = "rows" if role == "complete" else "sums"
                steps = (
                    Batch("rows", {}, rows, tensors=tuple(tensors.values())),
                    Run(graph[role], inputs, {out: "task/out"}),
                    Return("task/out", "out"),
                )
                program = Program("t", "s", range(1), steps, releases=texts)
                *_, last = box.execute(program)
                told.setdefault(role, []).append(last.error)
        return told

    with House() as house:
        told = asyncio.run(scenario(house))
    assert set(told) == {"complete", "means"}
    for errors in told.values():
        assert errors[0] is None
        assert [each.name for each in errors[1:]] == ["PrivateTensor"] * 3
