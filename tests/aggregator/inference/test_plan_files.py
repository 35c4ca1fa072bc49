"""A plan as a file: JSON, or the model with ONNX's own annotation; what is neither is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from aggregator.inference.cut_request import CutRequest, NodeTold
from aggregator.inference.cutting import cut_as_asked
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.saved_plan import dumps_plan, loads_plan
from edge_attention.graphs.axes.annotation import annotate
from edge_attention.graphs.axes.cut import analyse
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.narrow import narrow_places

MODEL = Path(__file__).parents[2] / "graphs/axes/exports/bert.onnx"
NODES = tuple(NodeTold(name, 1 << 30, 0, 1) for name in "ab")


@pytest.fixture(scope="module")
def axes():
    return analyse(open_model(MODEL), {"batch": 1, "sequence": 8})


def planned(tmp_path, data):
    file, into = tmp_path / "plan", tmp_path / "cut"
    file.write_bytes(data)
    into.mkdir(exist_ok=True)
    return cut_as_asked(CutRequest(str(MODEL), str(into), plan_file=str(file), nodes=NODES))


def test_json_and_annotation_are_the_same_plan(tmp_path, axes):
    layers = range(len(narrow_places(axes)) + 1)
    plan = CutPlan((Stage(layers, (0, 1), Cut.TOKENS, Crossing.SWITCH, (2.0, 1.0)),))
    file = annotate(onnx.load(MODEL), plan, axes).SerializeToString()
    for data in (dumps_plan(plan).encode(), file):
        found = planned(tmp_path, data)
        assert loads_plan(found.plan) == plan
        assert found.holders == {0: ("a",), 1: ("b",)}


def test_a_model_that_says_no_plan_and_what_is_no_plan_are_refused(tmp_path):
    for data, says in (
        (MODEL.read_bytes(), "none as device configurations"),
        (b"\x08\xff", "no ONNX file"),
        (b"\x00\xff\xfe", "JSON, TOML nor ONNX"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            planned(tmp_path, data)
