import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `fake`

from fake import Fake, serving

from edge_attention import Client


@pytest.fixture
def fake():
    return Fake()


@pytest.fixture
def address(fake):
    with serving(fake) as address:
        yield address


@pytest.fixture
def client(address):
    with Client(address, timeout=120, patience=5) as client:
        yield client
