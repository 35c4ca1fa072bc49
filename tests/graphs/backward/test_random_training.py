"""Random transformers by random plans, in random uneven parts: their gradients are the whole model's.

`make test-cuts` tries more of them: EXAMPLES=500.
"""

from __future__ import annotations

import os
from functools import lru_cache

from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from edge_attention.core.errors import EdgeAttentionError, InvalidGraph
from edge_attention.core.schedule.plan import CutPlan
from edge_attention.core.schedule.traffic import traffic_of
from edge_attention.graphs.axes.model_axes import Axes
from tests.graphs.axes.random_plans import plans
from tests.graphs.axes.random_transformers import TransformerRecipe, feeds_of, recipes, transformer
from tests.graphs.axes.test_random_cuts import cuts_of, layers_in, sizes_in
from tests.graphs.backward.bare_models import bare_case
from tests.graphs.backward.training_cases import TrainingCase, run_cut

EXAMPLES = int(os.environ.get("EXAMPLES", "10"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[phase for phase in Phase if phase is not Phase.explain],
)


@lru_cache(128)
def trained(recipe: TransformerRecipe, frozen: frozenset[str]) -> tuple[TrainingCase, Axes] | None:
    model = transformer(recipe)
    names = {t.name for t in model.graph.initializer if t.data_type == 1 and not t.name.startswith("const_")}
    try:
        case = bare_case(model, feeds_of(recipe, 7), model.graph.output[0].name, names - frozen)
    except InvalidGraph:
        return None
    return case, case.axes()


def weights_of(recipe: TransformerRecipe) -> list[str]:
    model = transformer(recipe)
    return sorted(
        t.name for t in model.graph.initializer if t.data_type == 1 and not t.name.startswith("const_")
    )


def check(case: TrainingCase, plan: CutPlan, recompute: bool) -> None:
    emitted = case.cut(plan, recompute=recompute)
    ran = run_cut(case, emitted)
    worst, where = case.worst(ran)
    assert worst <= 1e-5, f"{where}: {worst:.3g} off"
    counted = traffic_of(emitted.schedule)
    assert [part.received for part in counted.parts] == list(ran.received.values())


@many
@given(recipes(quantised=False), st.data())
def test_gradients_of_any_plan_are_those_of_the_whole(recipe: TransformerRecipe, data: st.DataObject) -> None:
    names = weights_of(recipe)
    frozen = data.draw(
        st.just(frozenset[str]()) | st.frozensets(st.sampled_from(names), max_size=len(names) - 1)
    )
    found = trained(recipe, frozen)
    assume(found is not None)
    assert found is not None
    case, axes = found
    plan = data.draw(plans(layers_in(axes), sizes_in(axes), cuts_of(axes)))
    try:
        check(case, plan, data.draw(st.booleans()))
    except EdgeAttentionError as error:
        raise AssertionError(error.message) from error
