from __future__ import annotations

import json

import pytest

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.job_release import JobRelease, job_release_of
from edge_attention.core.release import MAX_TEXT

A, B = "a" * 64, "b" * 64


def test_the_fingerprint_is_of_what_is_released_in_whatever_order():
    release = job_release_of(["alignment", f"sha256:{B}", "", f"sha256:{A}", f"sha256:{A}"])
    assert release == JobRelease(frozenset({A, B}), alignment=True)
    assert release == JobRelease.parse(release.text)
    assert release.flag == f"job:{release.fingerprint}"
    assert release.fingerprint != JobRelease(frozenset({A, B})).fingerprint
    assert release.fingerprint != JobRelease(frozenset({A}), alignment=True).fingerprint
    assert job_release_of(["", ""]) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"job": 1, "alignment": False, "releases": ["short"]}, separators=(",", ":")),
        json.dumps({"alignment": False, "job": 1, "releases": [B, A]}, separators=(",", ":")),
        json.dumps({"alignment": False, "job": 1, "releases": [A]}),
        json.dumps({"alignment": 1, "job": 1, "releases": [A]}, separators=(",", ":")),
        json.dumps({"alignment": False, "job": 2, "releases": [A]}, separators=(",", ":")),
        " " * (MAX_TEXT + 1),
    ],
)
def test_what_is_not_in_the_one_form_is_none(text):
    with pytest.raises(InvalidArgument):
        JobRelease.parse(text)
    assert JobRelease.of_text(text) is None
