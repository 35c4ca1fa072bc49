"""A file with both steps of a decoder is cut as the file of its later step is, by all plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from decoder_runs import session_of
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.graphs.axes.both_steps import loosen_mask, step_with_past
from edge_attention.graphs.axes.cut import analyse, analyse_for, cut, sizes_of
from edge_attention.graphs.axes.in_process import InProcess
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.narrow import narrow_places
from edge_attention.graphs.axes.whole import whole_graph
from edge_attention.graphs.reading.constants import with_constants

MERGED = Path(__file__).parents[1] / "decoding/exports/optimum_llama_merged.onnx"
LAYERS = 1 << 20
PLANS = {
    "heads": (Stage(range(LAYERS), (0, 1, 2), Cut.HEADS, shares=(2, 0, 1)),),
    "tokens": (Stage(range(LAYERS), (0, 1), Cut.TOKENS),),
    "layers": (Stage(range(2), (0,)), Stage(range(2, 5), (1,))),
}


def feeds(new: int, past: int) -> dict[str, np.ndarray]:
    """Of `new` tokens behind `past` others."""
    rng = np.random.default_rng(past)
    given = {
        "input_ids": rng.integers(40, size=(1, new)),
        "attention_mask": np.ones((1, past + new), np.int64),
        "position_ids": np.arange(past, past + new)[None],
        "use_cache_branch": np.array([True]),
    }
    for layer in range(2):
        for kind in ("key", "value"):
            shape = 1, 3, past, 4
            given[f"past_key_values.{layer}.{kind}"] = rng.normal(size=shape).astype(np.float32)
    return given


@pytest.mark.parametrize(("new", "past"), [(5, 0), (1, 4), (3, 9)])
@pytest.mark.parametrize("word", PLANS)
def test_what_parts_make_is_what_the_file_makes(word: str, new: int, past: int) -> None:
    """Keys and values are outputs, too."""
    given, opened, plan = feeds(new, past), open_model(MERGED), CutPlan(PLANS[word])
    forms = {name: TensorForm(str(one.dtype), one.shape) for name, one in given.items()}
    made = cut(analyse_for(opened, sizes_of(opened, forms), plan), plan)
    runs = InProcess(made.schedule, made.graphs.__getitem__, made.constants.__getitem__, opened.piece)
    found = runs.run(given).results
    whole = session_of(str(MERGED))
    names = [one.name for one in whole.get_outputs()]
    wanted = dict(zip(names, whole.run(names, given), strict=True))
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        assert np.abs(found[name] - one).max() <= 1e-5 * np.abs(one).max()


@pytest.mark.parametrize("alike", [True, False])
def test_weights_that_its_branches_hold_are_weights_as_others(alike: bool, tmp_path: Path) -> None:
    """Once, where both hold the same; where they hold others by one name, each its own."""
    model = onnx.load(MERGED)
    graph = model.graph
    for attribute in graph.node[0].attribute:
        read = {name for node in attribute.g.node for name in node.input}
        attribute.g.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
        for tensor in attribute.g.initializer:
            if attribute.name == "else_branch" and not alike:
                tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    sizes = sorted(list(tensor.dims) for tensor in graph.initializer)
    del graph.initializer[:]
    onnx.save(model, tmp_path / "m.onnx")
    opened, given = open_model(tmp_path / "m.onnx"), feeds(3, 4)
    lifted = sorted(list(one.dims) for one in opened.model.graph.initializer)
    large = [dims for dims in sizes if np.prod(dims) > 64]
    assert [dims for dims in lifted if np.prod(dims) > 64] == sorted(large * (1 if alike else 2))
    forms = {name: TensorForm(str(one.dtype), one.shape) for name, one in given.items()}
    made = cut(analyse(opened, sizes_of(opened, forms)), CutPlan(PLANS["heads"]))
    runs = InProcess(made.schedule, made.graphs.__getitem__, made.constants.__getitem__, opened.piece)
    (wanted,) = session_of(str(MERGED)).run(["logits"], given)
    assert np.abs(runs.run(given).results["logits"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    data, weights = whole_graph(opened)
    whole = session_of(with_constants(data, {name: opened.read(name) for name in weights}, "m").data)
    for later in (True, False):
        asked = given | {"use_cache_branch": np.array([later])}
        asked["attention_mask"] = asked["attention_mask"][:, : 7 if later else 3]
        asked["position_ids"] = np.arange(3)[None] + (4 if later else 0)
        (wanted,) = session_of(str(tmp_path / "m.onnx")).run(["logits"], asked)
        (found,) = whole.run(["logits"], asked)
        assert np.array_equal(found, wanted)


def test_layers_are_found_as_in_the_file_of_one_step() -> None:
    """What a branch makes is called as the file calls it where it is made, and lives no longer."""
    opened = open_model(MERGED)
    forms = {name: TensorForm(str(one.dtype), one.shape) for name, one in feeds(4, 3).items()}
    assert len(narrow_places(analyse(opened, sizes_of(opened, forms)))) == 4


def test_where_nobody_says_which_step_it_is_that_is_data() -> None:
    """Its branches call what they give as the If itself does, which is no value around it."""
    opened = replace(open_model(MERGED), given={})
    forms = {name: TensorForm(str(one.dtype), one.shape) for name, one in feeds(3, 2).items()}
    with pytest.raises(InvalidArgument, match=r"depends on data .*: the model cannot be cut; replicate it"):
        cut(analyse(opened, sizes_of(opened, forms)), CutPlan((Stage(range(LAYERS), (0,)),)))


def test_its_mask_has_the_tokens_of_its_past_too() -> None:
    (mask,) = (one for one in open_model(MERGED).model.graph.input if one.name == "attention_mask")
    sizes = [dim.dim_param for dim in mask.type.tensor_type.shape.dim]
    assert sizes == ["batch_size", "past_sequence_length + sequence_length"]


def chosen(condition: str, first: str, later: str, pasts: int = 1) -> onnx.ModelProto:
    """An If on `condition` whose branches give the inputs `first` and `later`."""
    value = helper.make_tensor_value_info
    inputs = [
        value("flag", TensorProto.BOOL, [1]),
        value("ids", TensorProto.FLOAT, ["b", "t"]),
        value("mask", TensorProto.FLOAT, ["b", "t"]),
        *(value(f"past{at}", TensorProto.FLOAT, ["b", 1, f"p{at}", 2]) for at in range(pasts)),
    ]

    def branch(of: str) -> onnx.GraphProto:
        out = value(f"{of}!", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Identity", [of], [f"{of}!"])], of, [], [out])

    nodes = [
        helper.make_node("Not", ["flag"], ["not"]),
        helper.make_node("If", [condition], ["out"], then_branch=branch(later), else_branch=branch(first)),
    ]
    graph = helper.make_graph(nodes, "m", inputs, [value("out", TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_the_branch_that_reads_pasts_is_the_later_step() -> None:
    assert step_with_past(chosen("flag", "ids", "past0")) == {"flag": True}
    assert step_with_past(chosen("flag", "past0", "ids")) == {"flag": False}


def test_other_conditions_choose_no_step() -> None:
    """Both read a past, or none does; or what chooses is computed."""
    assert step_with_past(chosen("flag", "past0", "past0")) == {}
    assert step_with_past(chosen("flag", "ids", "mask")) == {}
    assert step_with_past(chosen("not", "ids", "past0")) == {}


@pytest.mark.parametrize(("pasts", "wanted"), [(1, "p0 + t"), (2, "")])
def test_a_mask_has_no_size_by_name_where_pasts_have_several(pasts: int, wanted: str) -> None:
    model = chosen("flag", "ids", "past0", pasts)
    loosen_mask(model)
    (mask,) = (one for one in model.graph.input if one.name == "mask")
    assert mask.type.tensor_type.shape.dim[1].dim_param == wanted
