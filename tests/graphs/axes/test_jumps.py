"""Files whose products round their activations: cut within layers they are not exact, and that is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, helper, load, numpy_helper, save

from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.choice import PlanWanted
from edge_attention.core.placement.cuts.choosing import choose
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.graphs.axes.costs import model_costs
from edge_attention.graphs.axes.cut import analyse, cut, sizes_of
from edge_attention.graphs.axes.jumps import exact_only, jumps
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import open_model
from tests.graphs.axes.export_feeds import LENGTHS, feeds_for
from tests.graphs.axes.model_plans import PLANS, plan_of
from tests.graphs.axes.test_odd_models import FLOAT, HALF, attention

INT4 = Path(__file__).with_name("exports") / "llama_genai_int4.onnx"


def axes_of(path: Path, fused: bool = False) -> Axes:
    model = open_model(path)
    feeds = feeds_for(model.model.graph, LENGTHS[0])
    forms = {name: TensorForm(str(value.dtype), value.shape) for name, value in feeds.items()}
    return analyse(model, sizes_of(model, forms), fused=fused)


def test_a_plan_within_layers_says_that_it_is_not_exact_and_why() -> None:
    for plan in PLANS:
        within = plan not in ("replicate", "layers")
        axes = axes_of(INT4, fused=not within)
        schedule = cut(axes, plan_of(plan, axes, 2)).schedule
        assert schedule.coverage == 1.0
        assert ("round activations to int8" in schedule.lacking) == within
        assert bool(schedule.lacking) == within


def test_products_of_float32_do_not_jump_be_their_weights_of_4_bits(tmp_path: Path) -> None:
    assert "accuracy_level 4" in jumps(axes_of(INT4), [Cut.HEADS])
    model = load(INT4)
    for node in model.graph.node:
        for one in [one for one in node.attribute if one.name == "accuracy_level"]:
            node.attribute.remove(one)
    save(model, tmp_path / "float.onnx")
    assert not jumps(axes_of(tmp_path / "float.onnx"), Cut)


def test_the_planner_does_not_pick_what_is_not_exact_unless_it_is_asked_to() -> None:
    axes = axes_of(INT4)
    costs = model_costs(axes)
    boxes = [ComputeBox(name, 1e6) for name in "abc"]  # so slow that computing is what counts
    links = BoxLinks()

    def sharing(wanted: PlanWanted) -> bool:
        chosen = choose(exact_only(costs, axes, wanted), boxes, links, wanted).chosen
        assert chosen is not None
        return any(stage.cut is not Cut.NONE for stage in chosen.plan.stages)

    assert not sharing(PlanWanted())
    assert sharing(PlanWanted(halves=True))
    assert sharing(PlanWanted(family="heads"))
    choice = choose(exact_only(costs, axes, PlanWanted()), boxes, links)
    assert "round activations" in choice.refused["heads"]


def built(folder: Path, kind: int, more: list[NodeProto], known: dict[str, np.ndarray]) -> Axes:
    """Attention from x [2, 6, 8] to y0 by two heads, and what is behind it, in a type."""
    nodes, constants = attention(helper.tensor_dtype_to_np_dtype(kind))
    ends = [
        [helper.make_tensor_value_info(name, kind, ["batch", "tokens", 8])]
        for name in ("x", more[-1].output[0])
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in (constants | known).items()]
    graph = helper.make_graph([*nodes, *more], "g", *ends, weights)
    path = folder / "m.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return analyse(open_model(path), {"batch": 2, "tokens": 6})


@pytest.mark.parametrize(("kind", "name"), [(HALF, "float16"), (FLOAT, "")])
def test_a_file_that_computes_in_float16_is_exact_as_a_whole_alone(
    tmp_path: Path, kind: int, name: str
) -> None:
    axes = built(tmp_path, kind, [helper.make_node("Add", ["y0", "x"], ["y"])], {})
    for by in Cut:
        said = jumps(axes, [by])
        assert f"computes in {name} (as MatMul" in said if name else not said
        parts = (0,) if by is Cut.NONE else (0, 1)
        assert cut(axes, CutPlan((Stage(range(1), parts, by),))).schedule.lacking == said
    costs = exact_only(model_costs(axes), axes, PlanWanted())
    assert (len(costs.layers) == 1 and not costs.units) == bool(name)
    assert costs.weights == model_costs(axes).weights


def quantised(folder: Path, first: list[NodeProto], last: list[NodeProto]) -> Axes:
    scale, zero = np.array(0.02, np.float32), np.array(3, np.int8)
    return built(folder, FLOAT, [*first, *last], {"step": scale, "zero": zero})


def test_floats_of_all_heads_that_are_quantised_afterwards_are_not_exact_by_heads(tmp_path: Path) -> None:
    rounded = [
        helper.make_node("QuantizeLinear", ["y0", "step", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "step", "zero"], ["d0"]),
    ]
    behind = quantised(tmp_path, rounded, [helper.make_node("Add", ["d0", "x"], ["y"])])
    assert "rounds them to int8 afterwards (QuantizeLinear)" in jumps(behind, [Cut.HEADS])
    assert not jumps(behind, [Cut.TOKENS, Cut.BATCH, Cut.NONE])
    scales = [helper.make_node("DynamicQuantizeLinear", ["y0"], ["a", "b", "c"])]
    last = [helper.make_node("DequantizeLinear", ["a", "b", "c"], ["y"])]
    assert "DynamicQuantizeLinear" in jumps(quantised(tmp_path, scales, last), [Cut.HEADS])
    none = [helper.make_node("Relu", ["y0"], ["y"])]
    assert not jumps(quantised(tmp_path, none, []), [Cut.HEADS])
