from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside
sys.path.insert(0, str(Path(__file__).parent.parent))  # for reference

from fleets import SPEC, STARTED, Fleet, exact, queries, tokens
from loops import Steps

WATCHED = Steps(Path(tempfile.mkdtemp(prefix="edge-loops-")))
"""Of all daemons that this session's tests here start."""


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.e2e)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Around a test with its fixtures, those of the session too: what they start is watched."""
    with WATCHED.watched():
        return (yield)


def pytest_sessionfinish():
    shutil.rmtree(WATCHED.folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def loops(request):
    """Fails a test in which a daemon's event loop was held. Set up first, so it looks last."""
    started = len(STARTED)
    yield WATCHED
    assert not [pid for pid in STARTED[started:] if not WATCHED.watches(pid)], "a daemon was not watched"
    held = WATCHED.wrong(WATCHED.new())
    if "may_hold" not in request.keywords:
        assert not held, "held a loop over 20 ms:\n" + "\n".join(map(str, held))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A node's dataset: 300 rows of 32 numbers, with ids."""
    file = tmp_path_factory.mktemp("data") / "rows.npz"
    x = np.random.default_rng(3).standard_normal((300, 32)).astype(np.float32)
    np.savez(file, x=x, id=np.arange(300))
    return file, x


@pytest.fixture(scope="session")
def shared(tmp_path_factory, data):
    """An aggregator and nodes a and b, for tests that harm nobody. Node b lets nothing private leave."""
    with Fleet(tmp_path_factory.mktemp("shared"), "--metrics-port", "0", "--lease", "5") as fleet:
        flags = ("--metrics-port", "0")
        fleet.start_node(
            "a", "--threads", "1", *flags, data={"rows": data[0]}, allow_release=["attention"], wait=False
        )
        fleet.start_node("b", "--threads", "1", *flags, data={"rows": data[0]}, wait=False)
        fleet.wait_ready("a")
        fleet.wait_ready("b")
        yield fleet


@pytest.fixture(scope="module")
def client(shared):
    with shared.client() as client:
        yield client


@pytest.fixture
def context(client, request):
    """An empty context of its own, dropped at the end."""
    made = client.create_context(request.node.name[:40].replace("[", "-").replace("]", ""), **SPEC)
    yield made
    made.drop()


@pytest.fixture
def serving(client):
    """After the test, whatever it sent, the fleet still answers exactly."""
    yield
    name = "still-serving"
    context = client.create_context(name, **SPEC)
    try:
        keys, values = tokens(700)
        for node, part in (("a", slice(0, 300)), ("b", slice(300, 700))):
            context.append(keys[part], values[part], node=node)
        exact(context.attend(queries(2)), queries(2), keys, values)
    finally:
        context.drop()


@pytest.fixture
def fleet(tmp_path):
    """Makes a fleet of the test's own: fleet(*flags of the aggregator, state=False)."""
    made = []

    def make(*flags, state=False):
        made.append(Fleet(tmp_path, *flags, state=state))
        return made[-1]

    yield make
    for one in made:
        for child in one.children.values():
            if child.running:
                child.process.send_signal(18)  # SIGCONT: what is frozen cannot end
        one.stop()
