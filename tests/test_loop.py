"""Which event loop the daemons run on."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from types import ModuleType

import pytest

from edge_attention import loop


@pytest.fixture(autouse=True)
def interval():
    """Of this process: as it was."""
    before, callbacks, thresholds = sys.getswitchinterval(), list(gc.callbacks), gc.get_threshold()
    yield
    sys.setswitchinterval(before)
    gc.callbacks[:] = callbacks
    gc.set_threshold(*thresholds)
    gc.unfreeze()


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


class Held:
    """Something that lives, or a circle of one."""

    def __init__(self, *, circle: bool) -> None:
        self.other = self if circle else None


def test_a_long_collection_sets_what_lives_apart_and_it_is_freed_all_the_same(monkeypatch):
    gc.unfreeze()
    loop.freeze_what_lives()
    assert gc.get_freeze_count() > 1000
    gc.unfreeze()
    monkeypatch.setattr(loop, "FREEZE_SECONDS", float("inf"))
    gc.collect()
    assert gc.get_freeze_count() == 0
    monkeypatch.setattr(loop, "FREEZE_SECONDS", -1.0)
    held = Held(circle=False)
    told = weakref.ref(held)
    gc.collect(1)
    assert gc.get_freeze_count() == 0, "a short one of young objects alone"
    gc.collect()
    assert gc.get_freeze_count() > 1000
    del held
    assert told() is None
    circle = weakref.ref(Held(circle=True))  # of after that
    gc.collect()
    assert circle() is None


def test_the_daemons_collect_so():
    async def asked() -> int:
        return len(gc.callbacks)

    before = len(gc.callbacks)
    assert loop.run(asked()) == before + 1
