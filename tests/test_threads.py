"""Whether a process may have the threads it needs."""

from __future__ import annotations

import threading

import pytest

from edge_attention.core.errors import FailedPrecondition
from edge_attention.descriptors import THREADS, require_threads


def test_where_they_can_be_had_none_is_left():
    before = threading.active_count()
    require_threads()
    assert threading.active_count() == before


def test_where_they_cannot_it_is_said_how_many_there_are_and_none_is_left(monkeypatch):
    before, start = threading.active_count(), threading.Thread.start

    def few(thread):
        if threading.active_count() >= before + 5:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", few)
    with pytest.raises(FailedPrecondition, match=f"start 5 threads, and needs {THREADS}.*TasksMax="):
        require_threads()
    assert threading.active_count() == before
