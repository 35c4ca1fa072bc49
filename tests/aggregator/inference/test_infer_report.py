"""What an answer says of itself: exact only where nothing was left out, and nothing rounded on the way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from aggregator.inference.asking import _report
from aggregator.inference.model_answer import ModelAnswer


@pytest.mark.parametrize(
    ("halves", "parts", "coverage", "exact"),
    [(False, 2, 1.0, True), (True, 2, 1.0, False), (True, 1, 1.0, True), (False, 2, 0.5, False)],
)
def test_what_is_rounded_between_parts_is_not_called_exact(halves, parts, coverage, exact):
    seconds = {f"part {part}": 0.1 for part in range(parts)}
    lacking = "" if coverage == 1.0 else "heads 6-11"
    answer = ModelAnswer({}, coverage == 1.0, coverage, lacking, seconds, {}, {})
    deployed: Any = SimpleNamespace(version=1, request=SimpleNamespace(halves=halves))
    report = _report(cast(Any, deployed), answer, {"y": np.zeros(2, np.float32)}, 0.2, 1000)
    assert (report.exact, report.coverage) == (exact, coverage)
    assert bool(report.lacking) == (not exact)
    assert ("float16" in report.lacking) == (halves and not exact)
