"""Jobs planned in the tests' own process: that it is done apart is tested elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from aggregator.engine import apart
from aggregator.training import planner


@pytest.fixture(autouse=True)
def planned_here(monkeypatch):
    async def run(bound, what, module, folder, **kwargs):
        return planner.main(Path(folder))

    monkeypatch.setattr(planner, "apart", SimpleNamespace(run=run, failed=apart.failed))


__all__ = ["planned_here"]
