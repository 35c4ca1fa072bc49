"""Which columns become the inputs of a graph: by name, the same on every node."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from aggregator.fleet.columns import TableView, WantedInput, refuse_rules, resolve, row_shapes
from edge_attention.core.errors import InvalidArgument, NotFound
from edge_attention.core.messages.link import Column, Dataset
from edge_attention.core.messages.table import (
    ColumnRead,
    ColumnSpec,
    InputColumns,
    MissingRule,
    MissingValues,
    TableSpec,
)
from edge_attention.core.release import column
from edge_attention.core.tensors import DataType

AGE = Column("age", DataType.INT64, (), float32=True, int64=True)
DOSE = Column("dose", DataType.FLOAT32, (), float32=True)
LABEL = Column("label", DataType.INT64, (), float32=True, int64=True)
SEX = Column("sex", DataType.INT32, (), words=True, gaps=True)
TABLE = Dataset("d", 9, (AGE, DOSE, LABEL, SEX), identified=True)
DROP = MissingValues(MissingRule.DROP)
X, Y = WantedInput("x", "float32", (2,)), WantedInput("y", "int64", ())


def of(*columns, name="d"):
    return (Dataset(name, 9, columns, identified=True),)


def view(x, nodes=None, wanted=(X, Y), **table):
    inputs, lists = {"y": "label"}, {}
    if isinstance(x, str):
        inputs["x"] = x
    else:
        lists["x"] = InputColumns(tuple(x))
    return resolve(
        "d", wanted, inputs, TableSpec(lists, **table), {"a": (TABLE,)} if nodes is None else nodes
    )


def names(view, name="x"):
    return [read.name for read in view.tensors[name].columns]


def test_all_is_every_column_of_numbers_that_no_input_names():
    found = view("*")
    assert names(found) == ["age", "dose"]
    assert found.tensors["x"].side_by_side
    assert not found.tensors["y"].side_by_side
    assert found.source("x") == column("d", "*")


def test_another_order_on_another_node_is_put_right():
    nodes = {"a": (TABLE,), "b": of(SEX, LABEL, DOSE, AGE)}
    assert names(view("*", nodes)) == ["age", "dose"]
    assert names(view(["dose", "age"], nodes)) == ["dose", "age"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ((AGE, LABEL), "of node 'b' lacks dose, unlike that of node 'a'"),
        ((AGE, DOSE, LABEL, replace(DOSE, name="extra")), "of node 'b' has extra, unlike"),
        ((AGE, replace(DOSE, name="Dose"), LABEL), "has Dose and lacks dose"),
        ((AGE, replace(DOSE, words=True), LABEL), "lacks dose"),
    ],
)
def test_a_node_with_other_columns_is_refused_by_name(columns, said):
    with pytest.raises(InvalidArgument, match=said):
        view("*", {"a": (TABLE,), "b": of(*columns)})


def test_a_listed_column_that_a_node_lacks_is_refused_by_name():
    with pytest.raises(
        NotFound, match=r"of node 'b' has no column 'dose'; it has: age, label \(a column .* set aside"
    ):
        view(["age", "dose"], {"a": (TABLE,), "b": of(AGE, LABEL)})
    found = view(["age", "dose"], {"a": (TABLE,), "b": of(AGE, DOSE, LABEL, replace(DOSE, name="more"))})
    assert names(found) == ["age", "dose"], "what nobody asks for may be there"


@pytest.mark.parametrize(
    ("b", "fits"),
    [
        (replace(AGE, data_type=DataType.FLOAT32, int64=False), True),
        (replace(AGE, float32=False), False),
        (replace(AGE, shape=(2,)), False),
        (replace(AGE, gaps=True), False),
    ],
)
def test_whatever_rows_a_node_has_a_column_has_one_type(b, fits):
    nodes = {"a": (TABLE,), "b": of(b, DOSE, LABEL)}
    if fits:
        assert names(view(["age", "dose"], nodes)) == ["age", "dose"]
        return
    with pytest.raises(InvalidArgument, match=r"'age' of node 'b'|on node 'b'"):
        view(["age", "dose"], nodes)


def test_whole_floats_are_labels_and_fractions_are_not():
    floats = replace(LABEL, data_type=DataType.FLOAT32)
    assert view("*", {"a": of(AGE, DOSE, floats)})
    with pytest.raises(InvalidArgument, match="not every value of it is int64 exactly"):
        view("*", {"a": of(AGE, DOSE, replace(floats, int64=False))})


def test_words_are_categories_of_the_jobs():
    with pytest.raises(InvalidArgument, match=r"'sex' of node 'a' holds words.*list the categories"):
        view(["age", "sex"])
    spec = {"sex": ColumnSpec(("f", "m"), one_hot=True, missing=DROP)}
    found = view(["age", "sex"], wanted=(replace(X, shape=(3,)), Y), columns=spec)
    assert found.tensors["x"].columns[1] == ColumnRead("sex", "", ("f", "m"), one_hot=True)
    assert found.complete == (ColumnRead("sex"),)
    with pytest.raises(InvalidArgument, match=r"takes \[2\] a row, its columns \(age, sex\) are \[3\]"):
        view(["age", "sex"], columns=spec)


@pytest.mark.parametrize(
    ("missing", "constant"),
    [(MissingValues(MissingRule.CONSTANT, category="m"), 1), (MissingValues(MissingRule.REFUSE), None)],
)
def test_what_stands_for_a_missing_category(missing, constant):
    def made():
        return view(["age", "sex"], columns={"sex": ColumnSpec(("f", "m"), missing=missing)})

    if constant is None:
        with pytest.raises(InvalidArgument, match="'sex' of node 'a' lacks values; say what is read"):
            made()
    else:
        assert made().tensors["x"].columns[1].constant == constant


def test_a_mean_is_filled_in_and_the_release_is_the_same():
    gaps = {"a": of(replace(AGE, gaps=True), DOSE, LABEL)}
    found = view(["age", "dose"], gaps, columns={"age": ColumnSpec(missing=MissingValues(MissingRule.MEAN))})
    assert found.means == (ColumnRead("age"),)
    filled = found.filled({ColumnRead("age"): 41.5})
    assert [read.constant for read in filled.tensors["x"].columns] == [41.5, None]
    assert filled.source("x") == found.source("x") != view(["age", "dose"]).source("x")


def test_a_view_is_kept_as_json():
    spec = {
        "sex": ColumnSpec(("f", "m"), missing=DROP),
        "age": ColumnSpec(missing=MissingValues(MissingRule.MEAN)),
    }
    found = view(["age", "sex"], columns=spec)
    assert TableView.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_column_of_another_dataset():
    nodes = {"a": (TABLE, *of(DOSE, name="o"))}
    found = view(["age", "o:dose"], nodes)
    assert found.tensors["x"].columns == (ColumnRead("age"), ColumnRead("dose", "o"))
    with pytest.raises(NotFound, match="dataset 'o' of node 'a' has no column 'height'"):
        view(["age", "o:height"], nodes)
    with pytest.raises(NotFound, match="'d' of node 'a' has no column 'p:dose'"):
        view(["age", "p:dose"], nodes)
    colon = {
        "a": of(AGE, LABEL, replace(DOSE, name="o:dose")),
        "b": of(AGE, LABEL, replace(DOSE, name="o:dose")),
    }
    assert view(["age", "o:dose"], colon).tensors["x"].columns[1] == ColumnRead("o:dose")


def test_a_plan_without_nodes_needs_the_releases_that_the_run_needs():
    fill = MissingValues(MissingRule.CONSTANT, 1.0)
    for x, table in (
        ("*", {}),
        ("*", {"missing": DROP}),
        ("*", {"missing": fill}),
        (["age", "dose"], {"missing": fill}),
        ("*", {"columns": {"age": ColumnSpec(missing=fill)}}),
    ):
        table = {"missing": None, "columns": {}, **table}
        beforehand, there = view(x, {}, **table), view(x, {"a": of(AGE, DOSE, LABEL)}, **table)
        for name in ("x", "y"):
            assert beforehand.source(name) == there.source(name), (x, table)


def test_a_rule_for_a_column_that_is_not_there_is_a_slip():
    with pytest.raises(NotFound, match="no column 'agee'"):
        view("*", columns={"agee": ColumnSpec(missing=DROP)})


def test_the_shape_of_a_row_is_known_before_the_model_is():
    spec = TableSpec({"x": InputColumns(("age", "sex"))}, {"sex": ColumnSpec(("f", "m", "?"), one_hot=True)})
    assert row_shapes("d", {"y": "label", "z": "*", "n": "nobody"}, spec, (TABLE,)) == {
        "x": (4,),
        "y": (),
        "z": (1,),
    }


@pytest.mark.parametrize("rule", [MissingRule.DROP, MissingRule.MEAN])
def test_a_rule_that_only_jobs_carry_out_is_refused_by_name_elsewhere(rule):
    for spec in (
        TableSpec(missing=MissingValues(rule)),
        TableSpec(columns={"a": ColumnSpec((), False, MissingValues(rule))}),
    ):
        with pytest.raises(InvalidArgument, match=f"{rule.value!r} is carried out by jobs that train alone"):
            refuse_rules(spec)
