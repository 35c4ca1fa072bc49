"""Files whose products round their activations: cut within layers they are not exact, and that is said."""

from __future__ import annotations

from pathlib import Path

from onnx import load, save

from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.choice import PlanWanted
from edge_attention.core.placement.cuts.choosing import choose
from edge_attention.core.schedule.plan import Cut
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.graphs.axes.costs import model_costs
from edge_attention.graphs.axes.cut import analyse, cut, sizes_of
from edge_attention.graphs.axes.jumps import exact_only, jumps
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import open_model
from tests.graphs.axes.export_feeds import LENGTHS, feeds_for
from tests.graphs.axes.model_plans import PLANS, plan_of

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
    assert "accuracy_level 4" in jumps(axes_of(INT4))
    model = load(INT4)
    for node in model.graph.node:
        for one in [one for one in node.attribute if one.name == "accuracy_level"]:
            node.attribute.remove(one)
    save(model, tmp_path / "float.onnx")
    assert not jumps(axes_of(tmp_path / "float.onnx"))


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
