"""The training recipes as the server adds them: runs, by fusion, federated or through the split."""

from __future__ import annotations

from pathlib import Path

from aggregator.engine.recipe import Engine, Recipe
from aggregator.inference.runner import ModelRunner
from aggregator.store.parameters import ParameterStore
from aggregator.training.activity import RunActivity
from aggregator.training.housekeeping import Housekeeping
from aggregator.training.kept_plans import KeptPlans
from aggregator.training.metrics import RunMetrics
from aggregator.training.page import TrainingPage
from aggregator.training.planner import MakePlan, make
from aggregator.training.runs import Runs
from aggregator.training.service import TrainingApi
from aggregator.training.services import Services


def training(engine: Engine, plan: MakePlan = make) -> Recipe:
    """Trains. Runs of an earlier life go on when the server resumes. `plan` makes jobs' plans, each once."""
    e, activity, metrics = engine, RunActivity(), RunMetrics(engine.metrics)
    parts = (e.state, ParameterStore(e.state), e.membership, e.trips, e.bulk, e.link)
    runner = ModelRunner(engine)
    plans = KeptPlans(plan, e.state.directory)
    runs = Runs(Services(*parts, metrics, e.patience, runner, activity, plans), e.budgets)
    housekeeping = Housekeeping(e.state, runs, e.retention, e.metrics, let_go=plans.let_go)

    def resume() -> None:
        runs.resume()
        housekeeping.begin()

    async def close() -> None:
        await housekeeping.close()
        await runs.close()

    return Recipe(
        "training",
        TrainingApi(runs, e.budgets, e.turns).endpoints(),
        TrainingPage(runs, activity),
        Path(__file__).with_name("page.js"),
        unneeded=runner.unneeded,
        recall=runs.recall,
        resume=resume,
        close=close,
    )
