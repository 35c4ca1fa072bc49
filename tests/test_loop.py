"""Which event loop the daemons run on."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType

import pytest

from edge_attention import loop


@pytest.fixture(autouse=True)
def interval():
    """Of this process: as it was."""
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


class Other(asyncio.SelectorEventLoop):
    """Stands for uvloop's."""


async def mine() -> type:
    return type(asyncio.get_running_loop())


def test_uvloops_is_taken_where_it_is_installed(monkeypatch):
    module = ModuleType("uvloop")
    module.new_event_loop = Other
    monkeypatch.setitem(sys.modules, "uvloop", module)
    assert loop.run(mine()) is Other


def test_without_uvloop_it_is_asyncios(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)  # an import of it fails
    assert issubclass(loop.run(mine()), asyncio.SelectorEventLoop)


def test_what_it_runs_returns_and_raises():
    async def fall() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        loop.run(fall())


def test_threads_that_compute_leave_the_interpreter_to_the_loop_soon():
    async def asked() -> float:
        return sys.getswitchinterval()

    assert loop.run(asked()) == pytest.approx(loop.SWITCH_SECONDS)
