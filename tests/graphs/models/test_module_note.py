"""What edge_attention.torch notes in a file decides which initializers are one weight each, and no more."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from small_models import FLOAT, model, node

from edge_attention.core.messages.federated import LossSpec
from edge_attention.graphs.models.model import Model, load_model
from edge_attention.graphs.models.module_note import KEY, ModuleNote, module_note, write_note
from edge_attention.graphs.models.parts import load_part
from edge_attention.graphs.models.trained import trained_onnx

LOSS = LossSpec("mse")


def file(note: ModuleNote | None) -> bytes:
    """x [n, 4]: a scale of ones that two norms read, two equal biases, one scale that is frozen."""
    nodes = [
        node("LayerNormalization", ["x", "scale", "first.bias"], ["a"], name="first"),
        node("Tanh", ["a"], ["t"]),
        node("LayerNormalization", ["t", "scale", "second.bias"], ["b"], name="second"),
        node("LayerNormalization", ["b", "fixed"], ["y"], name="third"),
    ]
    values = {name: np.ones(4, np.float32) for name in ("scale", "fixed")}
    values |= {f"{name}.bias": np.zeros(4, np.float32) for name in ("first", "second")}
    made = onnx.load_model_from_string(
        model(nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}, values)
    )
    if note is not None:
        write_note(made.graph, note)
    return made.SerializeToString()


NOTE = ModuleNote(
    trained=("scale", "first.bias", "second.bias"),
    frozen=("fixed",),
    tied={"second.scale": "scale"},
    unused=("head.weight",),
)


def load(note: ModuleNote | None) -> Model:
    return load_model(file(note), loss=LOSS)


def test_each_parameter_is_one_weight_and_what_is_frozen_stays() -> None:
    assert "scale@second" in load(None).names  # without a word it counts as merged
    found = load(NOTE)
    assert found.names == ("scale", "first.bias", "second.bias")
    assert not found.untied
    assert found.dropped == ("head.weight",)


def test_the_note_is_in_the_trained_file() -> None:
    given = file(NOTE)
    names = load_model(given, loss=LOSS).names
    values = {name: np.full(4, number, np.float32) for number, name in enumerate(names, 1)}
    trained = onnx.load_model_from_string(trained_onnx(given, values))
    assert module_note(trained.graph) == NOTE
    found = {t.name: onnx.numpy_helper.to_array(t) for t in trained.graph.initializer}
    assert found.keys() == {"scale", "fixed", "first.bias", "second.bias"}
    assert np.array_equal(found["second.bias"], values["second.bias"])


def test_a_frozen_weight_trains_where_a_job_names_it() -> None:
    assert load_model(file(NOTE), loss=LOSS, parameters=["fixed"]).names == ("fixed",)


def test_what_is_no_parameter_of_the_module_does_not_train() -> None:
    """Rotary tables, the ones of a group norm, buffers of no state: constants that look like weights."""
    made = onnx.load_model_from_string(file(None))
    table = np.linspace(0, 1, 4, dtype=np.float32)
    made.graph.initializer.append(onnx.numpy_helper.from_array(table, "cos"))
    made.graph.node[-1].output[0] = "c"
    made.graph.node.append(node("Mul", ["c", "cos"], ["y"], name="turn"))
    assert "cos" in load_model(made.SerializeToString(), loss=LOSS).names  # nothing says what it is
    write_note(made.graph, NOTE)
    noted = made.SerializeToString()
    assert load_model(noted, loss=LOSS).names == ("scale", "first.bias", "second.bias")
    assert load_model(noted, loss=LOSS, parameters=["*"]).names == ("scale", "first.bias", "second.bias")
    assert load_model(noted, loss=LOSS, parameters=["cos"]).names == ("cos",)


def test_a_part_trains_what_is_noted() -> None:
    nodes = [
        node("Mul", ["x", "weight"], ["h"]),
        node("Mul", ["h", "fixed"], ["k"]),
        node("Reshape", ["k", "shape"], ["keys"]),
        node("Reshape", ["h", "shape"], ["values"]),
    ]
    values = {name: np.full(4, 2, np.float32) for name in ("weight", "fixed")}
    shapes = {name: (FLOAT, ["n", 1, 2, 2]) for name in ("keys", "values")}
    made = onnx.load_model_from_string(
        model(nodes, {"x": (FLOAT, ["n", 4])}, shapes, values | {"shape": np.array([-1, 1, 2, 2])})
    )
    assert set(load_part(made.SerializeToString(), "encoder").parameters) == {"weight", "fixed"}
    write_note(made.graph, ModuleNote(trained=("weight",), frozen=("fixed",)))
    assert set(load_part(made.SerializeToString(), "encoder").parameters) == {"weight"}


EMPTY = {"trained": [], "frozen": [], "buffers": [], "unused": [], "tied": {}}
WRONG = [{}, [], {"trained": 1}, EMPTY | {"trained": [1]}, EMPTY | {"tied": {"a": 1}}, EMPTY | {"tied": []}]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, *map(json.dumps, WRONG)])
def test_a_note_that_is_none_is_none(text: str) -> None:
    made = onnx.load_model_from_string(file(None))
    made.graph.metadata_props.add(key=KEY, value=text)
    assert module_note(made.graph) is None
    assert "scale@second" in load_model(made.SerializeToString(), loss=LOSS).names


def test_names_that_are_not_there_change_nothing() -> None:
    odd = ModuleNote(trained=("nothing", "x", "y"), frozen=("a",), buffers=("t",), tied={"x": "nowhere"})
    assert set(load(odd).names) >= {"scale", "first.bias", "second.bias", "fixed"}
