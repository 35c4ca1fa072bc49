"""A training schedule whose gradients stay on the nodes, to be added there."""

from __future__ import annotations

import pytest

from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.fold_plan import FoldPlan
from edge_attention.core.schedule.plan import Cut
from edge_attention.graphs.backward.summed import MADE, all_of, first_of, next_of, summed
from edge_attention.graphs.backward.transpose import GRADIENT
from tests.graphs.axes.random_transformers import TransformerRecipe, feeds_of, transformer
from tests.graphs.backward.bare_models import bare_case
from tests.graphs.backward.test_training_faults import by_layers, one_stage
from tests.graphs.backward.training_cases import run_cut

RECIPE = TransformerRecipe(
    layers=3, batch=2, tokens=6, key_heads=4, dim=4, mask="row", bias=True, dynamic=True
)


@pytest.mark.parametrize("split", ["layers", "heads", "tokens"])
def test_of_gradients_nothing_is_sent_and_all_is_kept(split: str) -> None:
    case = bare_case(transformer(RECIPE), feeds_of(RECIPE, 0), "hidden")
    plan = by_layers(case, 3) if split == "layers" else one_stage(case, Cut(split))
    emitted = case.cut(plan)
    piece, sums = summed(emitted)
    assert sums.results == {n: b for n, b in emitted.schedule.results.items() if n.startswith(GRADIENT)}
    assert FoldPlan(sums).pieces.keys() == set(sums.results.values())
    whole, ran = run_cut(case, emitted), run_cut(case, piece)
    assert ran.results["loss"] == whole.results["loss"]
    assert all(ran.results[f"{MADE}{part}"] == 1 for part in range(3))
    boundaries = sums.boundaries
    for segment in sums.steps[0].segments:
        size = sum(
            4 * _size(extent_shape(boundaries[one.boundary].spec.shape, one.extent))
            for one in segment.contributions
        )
        part = segment.part
        assert ran.kept[part] == whole.kept[part] + size, "what is not sent is kept"
        assert ran.sent[part] == whole.sent[part] - size + 4, "and one number, that it has run"
        for name in (first_of(part), next_of(part)):
            assert piece.schedule.graphs[name] in piece.graphs
    at_once, of_all = summed(emitted, 4)
    assert (of_all.results, of_all.boundaries) == (sums.results, sums.boundaries)
    assert [segment.graph for segment in of_all.steps[0].segments] == [all_of(part) for part in range(3)]
    assert {n for n in at_once.schedule.graphs if n.startswith("sum/")} == {all_of(part) for part in range(3)}
    assert at_once.schedule.steps == piece.schedule.steps, "but for the adding nothing is another"


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
