"""A node and the aggregator killed while a cut model is asked; `make test-kills` is the long form."""

from __future__ import annotations

import pytest

from tests.faults import deploying
from tests.faults.models import run

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
