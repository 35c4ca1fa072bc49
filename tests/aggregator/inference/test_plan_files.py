"""A plan as a file: JSON, or the model with ONNX's own annotation; what is neither is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from aggregator.inference import cutting
from aggregator.inference.cut_request import CutRequest, NodeTold
from aggregator.inference.cutting import cut_as_asked
from aggregator.inference.deployed import described_bytes
from aggregator.inference.service import LISTED_BYTES, _in_a_message
from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.messages.inference import DeployedModel, DeploymentState, ModelTensor
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.saved import loads
from edge_attention.core.schedule.saved_plan import dumps_plan, loads_plan
from edge_attention.core.tensors import DataType
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


def test_a_plan_may_say_that_activations_pass_in_float16(tmp_path, axes):
    layers = range(len(narrow_places(axes)) + 1)
    plan = CutPlan((Stage(layers, (0, 1), Cut.TOKENS),), halves=True)
    assert loads_plan(planned(tmp_path, dumps_plan(plan).encode()).plan) == plan
    schedule = loads((tmp_path / "cut" / "schedule.json").read_text())
    assert any(boundary.rounded for boundary in schedule.boundaries.values())


def test_a_model_that_says_no_plan_and_what_is_no_plan_are_refused(tmp_path):
    for data, says in (
        (MODEL.read_bytes(), "none as device configurations"),
        (b"\x08\xff", "no ONNX file"),
        (b"\x00\xff\xfe", "JSON, TOML nor ONNX"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            planned(tmp_path, data)


@pytest.mark.parametrize("name", ["\N{SUPERSCRIPT TWO}", "7", "\N{ARABIC-INDIC DIGIT FIVE}"])
def test_a_dimension_that_is_called_as_a_number_is_one_without_a_name(tmp_path, name):
    ends = [onnx.helper.make_tensor_value_info(end, 1, [name, 4]) for end in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", *([e] for e in ends))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "cut").mkdir()
    asked = CutRequest(
        str(tmp_path / "m.onnx"), str(tmp_path / "cut"), "replicate", nodes=NODES, dimensions={"x.0": 3}
    )
    made = cut_as_asked(asked)
    assert made.inputs[0].shape == ("?", "4")
    assert made.shapes == {"x": (3, 4)}


def test_a_model_that_cannot_be_looked_at_is_served_as_it_is_all_the_same(tmp_path, monkeypatch):
    """Nobody asked whether its rows go together; where somebody did, it is an error."""

    def fails(model, inputs):
        raise IndexError("an operator that nobody knows")

    monkeypatch.setattr(cutting, "rows_meet", fails)
    for rows, into in ((False, "a"), (True, "b")):
        (tmp_path / into).mkdir()
        asked = CutRequest(
            str(MODEL), str(tmp_path / into), "replicate", nodes=NODES, rows=rows, rows_whole=True
        )
        if rows:
            with pytest.raises(IndexError):
                cut_as_asked(asked)
        else:
            made = cut_as_asked(asked)
            assert "nobody knows" in made.rows
            assert not made.apart


def test_a_model_whose_description_would_fit_in_no_message_is_refused(tmp_path):
    names = [f"{number}{'n' * 900}" for number in range(200)]
    x, *outs = (onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("x", *names))
    nodes = [onnx.helper.make_node("Relu", ["x"], [name]) for name in names]
    graph = onnx.helper.make_graph(nodes, "g", [x], outs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InvalidGraph, match="DESCRIBED_BYTES"):
        cut_as_asked(CutRequest(str(tmp_path / "m.onnx"), str(tmp_path), "replicate", nodes=NODES))


def test_a_list_of_many_models_is_one_message():
    tensors = tuple(ModelTensor(f"{n}{'n' * 1000}", DataType.FLOAT32, ("1",)) for n in range(120))
    one = DeployedModel("m", 1, DeploymentState.SERVING, inputs=tensors)
    listed = _in_a_message([one] * 128)
    assert listed[0] == one
    assert sum(described_bytes(model.inputs) for model in listed) <= LISTED_BYTES
    assert [model.name for model in listed] == ["m"] * 128
