"""A node and the aggregator killed while a cut model is asked; `make test-kills` is the long form."""

from __future__ import annotations

import pytest
from fleets import Fleet

from tests.faults import deploying
from tests.faults.models import LEASE, MODEL, TOKENS, Asking, run, serves

pytestmark = pytest.mark.e2e


def test_every_answer_is_exact_or_refused_in_time_and_the_model_serves_again(tmp_path):
    requests = 24
    tally, _ = run(("a", "aggregator"), requests, "tokens", 1, tmp_path)
    assert tally.wrong == []
    assert tally.late == []
    assert tally.exact + sum(tally.refused.values()) == requests
    assert tally.exact > requests // 2


def test_nothing_stays_by_half_of_a_deployment_in_whose_middle_something_was_killed(tmp_path):
    course = deploying.run(2, 1, tmp_path)
    assert sum(course.ends.values()) == 2


@pytest.mark.parametrize("plan", ["tokens", "replicate"])
def test_a_deployment_goes_on_without_a_node_that_went_for_good_in_its_middle(plan, tmp_path):
    """It waited for that node to come back, without a word, for an hour at most."""
    with Fleet(tmp_path, *LEASE) as fleet:
        fleet.nodes("a")
        said = []

        def told(progress):
            if progress.stage == "waiting":
                said.append(progress.text)
                if len(fleet.children) < 3:
                    fleet.kill("a")
                    fleet.nodes("b")

        with fleet.client() as client:
            # It is in the plan, as the only one, and takes nothing any more.
            fleet.freeze("a")
            model = client.deploy(MODEL, "bert", plan=plan, dimensions={"sequence": TOKENS}, progress=told)
            assert {tuple(part.live) for part in model.info.parts} == {("b",)}
            assert serves(client, Asking(fleet.address, 1))
        assert said[0].startswith("part 0 waits for node a, which is away")
