"""Plans for real exports: what layers predict is what the schedule says; every candidate can be cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.choice import PlanWanted
from edge_attention.core.placement.cuts.choosing import choose
from edge_attention.core.placement.cuts.kinds import LINK_KINDS
from edge_attention.graphs.axes.costs import model_costs
from edge_attention.graphs.axes.cut import analyse
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.planning import plan_model, reference_slowness, repredicted

EXPORTS = Path(__file__).parent / "exports"
CABLE = LINK_KINDS["1gbe"]


def fleet(count: int, flops: float) -> tuple[list[ComputeBox], BoxLinks]:
    boxes = [ComputeBox(f"box-{n}", flops * (1 + 0.3 * n)) for n in range(count)]
    return boxes, BoxLinks({box.name: CABLE for box in boxes}, CABLE)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5_encoder", "llama"])
@pytest.mark.parametrize("family", ["tokens", "heads", "layers"])
def test_layers_predict_what_the_schedule_says(name: str, family: str) -> None:
    """Trips to one or two, bytes to a fifth and seconds to a quarter: the models are tiny, so that what is
    done whole, and ends, count for more than they do in any real one."""
    opened = open_model(EXPORTS / f"{name}.onnx")
    axes = analyse(opened, {"batch": 2, "sequence": 16})
    boxes, links = fleet(2, 2e7)  # so slow that computing is what counts
    wanted = PlanWanted(family=family)
    by_layers = choose(model_costs(axes), boxes, links, wanted).chosen
    assert by_layers is not None
    exact = repredicted(opened, axes, by_layers, {box.name: box for box in boxes}, links, wanted)
    assert not exact.problem
    assert abs(exact.trips - by_layers.trips) <= 2
    assert exact.seconds == pytest.approx(by_layers.seconds, rel=0.25)
    assert sum(exact.up.values()) == pytest.approx(sum(by_layers.up.values()), rel=0.2)
    down = sum(by_layers.down.values())
    assert sum(exact.down.values()) == pytest.approx(down, rel=0.2, abs=2_000)


def test_the_best_candidates_are_cut_and_one_box_is_among_them() -> None:
    opened = open_model(EXPORTS / "bert.onnx")
    axes = analyse(opened, {"batch": 1, "sequence": 16})
    choice = plan_model(opened, axes, *fleet(3, 55e9), PlanWanted())
    assert choice.chosen is not None
    assert choice.one_box is not None
    assert choice.chosen == choice.one_box, "a model of microseconds is not worth a trip"
    assert choice.says.startswith("one box: ")
    assert "would take" in choice.says


def test_what_the_model_costs_here_is_measured() -> None:
    opened = open_model(EXPORTS / "bert.onnx")
    axes = analyse(opened, {"batch": 1, "sequence": 16})
    assert 0.01 < reference_slowness(opened, axes) < 1_000
