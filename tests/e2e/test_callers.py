"""Callers who cancel, are late and hang up, by all doors; the long form: `python -m tests.faults.callers`."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults import callers

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.may_hold("a node is killed, and models are deployed, beside callers"),
]


def test_each_answer_that_comes_is_its_own_and_nothing_stays_of_what_was_given_up(tmp_path):
    tally = asyncio.run(callers.run(4.0, 1, 0, tmp_path, ("by-heads",)))
    assert tally.wrong == []
    assert tally.left == {}
    assert all(
        tally.exact[door] for door in ("infer", "generate", "stream", "completions", "memory", "product")
    )
