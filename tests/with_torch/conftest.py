"""Tests of edge_attention.torch: they run where PyTorch is (`make test-torch`), and are skipped elsewhere."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "e2e"), str(TESTS), str(TESTS.parent)]


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in Path(item.path).parents and "fleet" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


@pytest.fixture(scope="session")
def fleet(tmp_path_factory):
    """Two nodes, for tests that change nothing of them."""
    from fleets import Fleet

    with Fleet(tmp_path_factory.mktemp("fleet")) as running:
        running.nodes("a", "b")
        yield running


@pytest.fixture
def client(fleet):
    with fleet.client() as connected:
        yield connected
