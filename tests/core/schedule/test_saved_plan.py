"""Plans as JSON come back as they were, and what is no plan is refused where it is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.saved_plan import PLAN_BYTES, dumps_plan, loads_plan


def partition(draw, parts, size):
    ends = sorted(draw(st.lists(st.integers(0, size), min_size=parts - 1, max_size=parts - 1)))
    return tuple(zip([0, *ends], [*ends, size], strict=True))


@st.composite
def plans(draw):
    stages, at, part = [], 0, 0
    for _ in range(draw(st.integers(1, 3))):
        layers = range(at, at + draw(st.integers(1, 4)))
        count = draw(st.integers(1, 4))
        cuts = [Cut.BATCH, Cut.TOKENS, Cut.HEADS] + [Cut.NONE] * (count == 1)
        cut = draw(st.sampled_from(cuts))
        crossing = draw(st.sampled_from(list(Crossing))) if cut is Cut.TOKENS else Crossing.GATHER
        shares = draw(st.lists(st.floats(0.5, 9), min_size=count, max_size=count) | st.just([]))
        names = draw(st.lists(st.sampled_from(["tokens", "heads.3", "feedforward.0"]), unique=True))
        ranges = {name: partition(draw, count, 12) for name in names}
        stages.append(Stage(layers, tuple(range(part, part + count)), cut, crossing, tuple(shares), ranges))
        at, part = layers.stop, part + count
    return CutPlan(tuple(stages), draw(st.booleans()), draw(st.booleans()))


@given(plans())
def test_a_plan_comes_back(plan):
    assert loads_plan(dumps_plan(plan), plan.stages[-1].layers.stop) == plan
    assert loads_plan(dumps_plan(plan).encode()) == plan


def test_a_plan_is_read_as_a_person_writes_it():
    text = '{"edge_attention_plan": 1, "stages": [{"layers": [0, 5], "parts": [1, 0], "cut": "heads"}]}'
    assert loads_plan(text) == CutPlan((Stage(range(5), (1, 0), Cut.HEADS),))


GOOD = {"layers": [0, 4], "parts": [0, 1], "cut": "heads"}


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (GOOD | {"parts": []}, "stages[0].parts"),
        (GOOD | {"parts": [0, 0]}, "each once"),
        (GOOD | {"parts": [0, 2]}, "there is no part 1"),
        (GOOD | {"parts": [0, True]}, "True is none"),
        (GOOD | {"parts": [0, 1e3]}, "1000.0 is none"),
        (GOOD | {"layers": [4, 0]}, "from and before"),
        (GOOD | {"layers": [0, 0]}, "are none"),
        (GOOD | {"layers": [1, 4]}, "begin at 1"),
        (GOOD | {"layers": [0, 5]}, "the model has 4"),
        (GOOD | {"layers": [0, 1 << 60]}, "whole numbers from 0"),
        (GOOD | {"cut": "tensor"}, "none, batch, tokens, heads, not tensor"),
        (GOOD | {"cut": "none"}, "say what several parts share"),
        (GOOD | {"cut": ["heads"]}, "stages[0].cut"),
        (GOOD | {"crossing": "jump"}, "gather, switch, merge"),
        (GOOD | {"shares": [1]}, "2 parts have the shares"),
        (GOOD | {"shares": [1, -1]}, "-1 is none"),
        (GOOD | {"shares": [0, 0]}, "some above 0"),
        (GOOD | {"shares": [1, float("nan")]}, "nan is none"),
        (GOOD | {"ranges": {"heads.0": [[0, 4]]}}, "1 ranges for 2 parts"),
        (GOOD | {"ranges": {"heads.0": [[0, 4], [3, 8]]}}, "overlap"),
        (GOOD | {"ranges": {"heads.0": [[4, 8], [0, 4]]}}, "not in order"),
        (GOOD | {"ranges": [[0, 4]]}, "stages[0].ranges"),
        (GOOD | {"speed": 3}, "has no speed"),
        (7, "stages[0] is an object"),
    ],
)
def test_what_is_no_stage_is_refused_where_it_is_wrong(stage, says):
    with pytest.raises(InvalidArgument) as caught:
        loads_plan(json.dumps({"edge_attention_plan": 1, "stages": [stage]}), 4)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "null",
        '{"edge_attention_plan": 2, "stages": []}',
        '{"edge_attention_plan": 1}',
        '{"edge_attention_plan": 1, "stages": 3}',
        '{"edge_attention_plan": 1, "stages": [], "halves": 1}',
        '{"edge_attention_plan": 1, "stages": [], "\\u001b[2J": 1}',
        "[" * 100_000,
        b"\xff\xfe\x00",
        b" " * (PLAN_BYTES + 1),
    ],
)
def test_what_is_no_plan_is_refused_in_a_line(text):
    with pytest.raises(InvalidArgument) as caught:
        loads_plan(text, 3)
    assert str(caught.value).isprintable()
