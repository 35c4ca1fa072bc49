"""The planner's choice against every plan there is, where there are few; and what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.choice import FAMILIES, PlanWanted, PredictedPlan
from edge_attention.core.placement.cuts.choosing import choose
from edge_attention.core.placement.cuts.costs import ModelCosts
from edge_attention.core.placement.cuts.groups import BoxKinds, manners
from edge_attention.core.placement.cuts.predicting import StagePlanned, predict_replicas, predict_stages
from edge_attention.core.placement.cuts.shares import compositions
from edge_attention.core.placement.cuts.stages import Manner
from edge_attention.core.schedule.plan import Cut
from tests.core.placement.models_made import alike, encoder, fleets, small_models


def every_plan(
    model: ModelCosts, boxes: Sequence[ComputeBox], links: BoxLinks, wanted: PlanWanted
) -> Iterator[PredictedPlan]:
    """Each split into stages, each order of boxes, each manner, all shares. A group's boxes are called in one
    order, the quickest first, as the planner does."""
    rank = [box.name for kind in BoxKinds.of(boxes, links, model).kinds for box in kind]

    def staged(start: int, left: tuple[ComputeBox, ...]) -> Iterator[list[StagePlanned]]:
        if start == len(model.layers):
            yield []
            return
        for stop in range(start + 1, len(model.layers) + 1):
            for count in range(1, len(left) + 1):
                for group in permutations(left, count):
                    if [rank.index(box.name) for box in group] != sorted(rank.index(b.name) for b in group):
                        continue
                    rest = tuple(box for box in left if box not in group)
                    for more in staged(stop, rest):
                        for manner in manners(model, PlanWanted(), count):
                            if not model.allows(manner.cut, range(start, stop)):
                                continue
                            several = manner.cut is not Cut.NONE
                            ways = compositions(model.units[manner.cut], count) if several else [()]
                            for units in ways:
                                yield [StagePlanned(range(start, stop), manner, group, units), *more]

    for stages in staged(0, tuple(boxes)):
        yield predict_stages(model, stages, links, wanted)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_no_plan_of_one_manner_beats_the_choice(data: st.DataObject) -> None:
    """Of all plans of one stage or of one box a stage the best is found, memory and shares included; plans of
    several stages of several boxes use the shares that are best for all layers, so they are not in it."""
    model, (boxes, links) = data.draw(small_models()), data.draw(fleets())
    wanted = PlanWanted(halves=data.draw(st.booleans()))
    chosen = choose(model, boxes, links, wanted).chosen
    plans = [
        plan
        for plan in every_plan(model, boxes, links, wanted)
        if not plan.problem
        and (len(plan.plan.stages) == 1 or all(stage.cut is Cut.NONE for stage in plan.plan.stages))
    ]
    if not plans:
        assert chosen is None or len(chosen.plan.stages) > 1
        return
    assert chosen is not None
    assert not chosen.problem
    assert chosen.each <= min(plan.each for plan in plans) * (1 + 1e-9)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_quicker_link_box_or_aggregator_never_makes_the_choice_slower(data: st.DataObject) -> None:
    model, (boxes, links) = data.draw(small_models()), data.draw(fleets())
    before = choose(model, boxes, links).chosen
    name = data.draw(st.sampled_from([box.name for box in boxes]))
    match data.draw(st.sampled_from(["down", "up", "latency", "hub", "flops", "memory"])):
        case "down":
            old = links.of[name]
            links = replace(links, of={**links.of, name: replace(old, down=2 * old.down)})
        case "up":
            old = links.of[name]
            links = replace(links, of={**links.of, name: replace(old, up=2 * old.up)})
        case "latency":
            links = replace(links, of={**links.of, name: replace(links.of[name], latency=0.0)})
        case "hub":
            links = replace(links, hub=BoxLink(0.0, 2 * links.hub.down, 2 * links.hub.up))
        case "flops":
            boxes = [replace(box, flops=2 * box.flops) if box.name == name else box for box in boxes]
        case _:
            boxes = [replace(box, memory=1e12) if box.name == name else box for box in boxes]
    after = choose(model, boxes, links).chosen
    if before is not None:
        assert after is not None
        # The shares are those that are best without memory's bound: a percent of room for what that misses.
        assert after.seconds <= before.seconds * 1.01


@given(small_models(), fleets(), st.sampled_from([1, 3, 20]))
@settings(max_examples=40, deadline=None)
def test_what_is_chosen_is_never_slower_than_one_box_and_holds_together(
    model: ModelCosts, fleet: tuple[list[ComputeBox], BoxLinks], in_flight: int
) -> None:
    boxes, links = fleet
    choice = choose(model, boxes, links, PlanWanted(in_flight=in_flight))
    if choice.one_box is not None:
        assert choice.chosen is not None
        assert choice.chosen.each <= choice.one_box.each * (1 + 1e-9)
    for plan in (choice.chosen, *choice.rejected):
        if plan is None:
            continue
        stages = plan.plan.stages
        assert [n for stage in stages for n in stage.layers] == list(range(len(model.layers)))
        assert sorted(plan.boxes) == sorted(part for stage in stages for part in stage.parts)
        memory = {box.name: box.memory for box in boxes}
        assert all(held <= memory[name] * (1 + 1e-9) for name, held in plan.weights.items())
        assert not plan.problem
    assert choice.says


def test_several_boxes_are_picked_only_for_a_gain() -> None:
    boxes, links = alike(3, 50e9, 115e6)
    free = choose(encoder(), boxes, links)
    assert free.chosen is not None
    assert free.one_box is not None
    gain = free.one_box.each / free.chosen.each
    assert gain > 1
    assert choose(encoder(), boxes, links, PlanWanted(gain=0.99 * gain)).chosen == free.chosen
    held = choose(encoder(), boxes, links, PlanWanted(gain=1.01 * gain))
    assert held.chosen == free.one_box
    assert f"one box: {1e3 * free.one_box.seconds:.3g} ms; " in held.says
    assert f" would take {1e3 * free.chosen.seconds:.3g} ms, too little for several boxes" in held.says
    # Who asks for several gets them.
    assert choose(encoder(), boxes, links, PlanWanted(gain=100, boxes_at_least=2)).chosen == free.chosen
    with pytest.raises(ValueError, match="slower than one box"):
        PlanWanted(gain=0.9)


def test_one_box_is_picked_where_links_are_slow_and_the_sentence_says_by_how_much() -> None:
    boxes, links = alike(3, 300e9, 2e6)
    choice = choose(encoder(), boxes, links)
    assert choice.chosen is not None
    assert choice.chosen.used == ("box-0",)
    one = 1e3 * choice.chosen.seconds
    other = next(p for p in choice.rejected if len(p.used) > 1 and len(p.boxes) > 1)
    assert choice.says.startswith(f"one box: {one:.3g} ms; ")
    assert choice.says.endswith(f" would take {1e3 * other.seconds:.3g} ms")


def test_tokens_switched_to_heads_pay_on_slow_boxes_at_a_gigabit() -> None:
    """DESIGN section 12: BERT-base, 128 tokens, 1 GbE, halves."""
    boxes, links = alike(4, 55e9, 115e6)
    choice = choose(encoder(), boxes, links, PlanWanted(halves=True))
    assert choice.chosen is not None
    assert choice.chosen.name.startswith("tokens (switch) over box-0 25%")
    assert choice.one_box is not None
    assert 1.5 < choice.one_box.seconds / choice.chosen.seconds < 2.5
    heads = next(p for p in choice.rejected if p.plan.stages[0].cut is Cut.HEADS and len(p.used) == 4)
    assert heads.seconds > choice.chosen.seconds * 1.2


def test_as_many_requests_as_boxes_are_replicated() -> None:
    boxes, links = alike(4, 55e9, 115e6)
    choice = choose(encoder(), boxes, links, PlanWanted(in_flight=4))
    assert choice.chosen is not None
    assert choice.chosen.boxes == {0: ("box-0", "box-1", "box-2", "box-3")}


def test_a_model_too_large_for_a_box_goes_by_layers_or_heads_and_one_too_large_for_all_is_refused() -> None:
    model = encoder()
    boxes, links = alike(4, 55e9, 115e6)
    small = [replace(box, memory=120e6) for box in boxes]
    choice = choose(model, small, links, PlanWanted(in_flight=16))
    assert choice.one_box is None
    assert choice.chosen is not None
    assert len(choice.chosen.plan.stages) == 4
    assert "fits no box alone" in choice.says
    tiny = [replace(box, memory=50e6) for box in boxes]
    choice = choose(model, tiny, links)
    assert choice.chosen is None
    assert "340 MB of weights" in choice.says
    assert "room for 200 MB" in choice.says
    assert "raise their memory limits" in choice.says


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_is_named_is_picked_and_compared_with_one_box(family: str) -> None:
    boxes, links = alike(3, 300e9, 2e6)
    choice = choose(encoder(batch=2), boxes, links, PlanWanted(family=family))
    assert choice.chosen is not None
    assert len(choice.chosen.used) > 1
    assert "one box" in choice.says
    if family != "replicate" and choice.one_box is not None and choice.one_box.each < choice.chosen.each:
        assert "slower than one box" in choice.says


def test_a_family_the_model_does_not_have_is_refused_with_its_reason() -> None:
    model = encoder()
    layer = replace(model.layers[0], shared={})
    model = replace(model, layers=(layer,) * 12, units={}, refused={Cut.TOKENS: "LSTM runs over it"})
    boxes, links = alike(2, 55e9, 1e8)
    choice = choose(model, boxes, links, PlanWanted(family="tokens"))
    assert choice.chosen is None
    assert choice.says == "this model is not cut by tokens: LSTM runs over it"


def test_uneven_boxes_get_uneven_shares() -> None:
    boxes, links = alike(2, 20e9, 1e9, 0.0)
    boxes[0] = replace(boxes[0], flops=60e9)
    choice = choose(encoder(tokens=512), boxes, links, PlanWanted(family="tokens"))
    assert choice.chosen is not None
    quick, slow = choice.chosen.plan.stages[0].shares
    assert 2.2 < quick / slow < 3.4


def test_many_boxes_that_differ_are_still_planned() -> None:
    boxes = [ComputeBox(f"box-{n}", 50e9 + n * 1e9) for n in range(12)]
    links = BoxLinks({}, BoxLink(0.0, 115e6, 115e6))
    choice = choose(encoder(layers=4), boxes, links, PlanWanted(in_flight=8))
    assert choice.chosen is not None
    assert choice.one_box is not None
    assert choice.chosen.each < choice.one_box.each / 2


def test_replicas_are_as_many_as_requests_can_use() -> None:
    boxes, links = alike(3, 55e9, 115e6)
    model = encoder()
    alone = predict_stages(model, [StagePlanned(range(12), Manner(), (boxes[0],))], links, PlanWanted())
    two = predict_replicas(model, boxes, links, PlanWanted(in_flight=2))
    assert two.each == pytest.approx(alone.seconds / 2)
    assert predict_replicas(model, boxes, links, PlanWanted(in_flight=30)).each == pytest.approx(
        alone.seconds / 3
    )


def test_boxes_without_names_of_their_own_are_an_error() -> None:
    box = ComputeBox("a", 1e9)
    for boxes in ([], [box, box]):
        with pytest.raises(ValueError, match="name of its own"):
            choose(encoder(), boxes, BoxLinks())
