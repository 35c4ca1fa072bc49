"""Tensors of a task: the program's names, counted in the store, replaced, dropped, gone at the end."""

import numpy as np
import pytest

from edge_attention.core.errors import InvalidProgram, InvalidTensor, OutOfMemory
from edge_node.store import store as stores
from edge_node.store.store import Held, Origin, Store
from edge_node.store.task_tensors import TaskTensors


def kib(count):
    return np.zeros(count * 1024, np.uint8)


def test_they_count_in_the_store_until_they_are_replaced_dropped_or_the_task_ends():
    store = Store(8192)
    mine, other = TaskTensors(store), TaskTensors(store)
    mine.put("task/x", kib(2))
    other.put("task/x", kib(1))
    assert store.used == store.used_in("task") == 3072
    assert "task/x" in mine
    assert mine.get("task/x").array.nbytes == 2048
    assert other.get("task/x").array.nbytes == 1024
    mine.put("task/x", kib(4))
    mine.put("task/a/y", kib(1))
    assert store.used == 6144
    mine.drop("task/a/")
    mine.drop("task/nothing")
    assert mine.get("task/a/y") is None
    assert store.used == 5120
    mine.close()
    mine.close()
    other.close()
    assert store.used == 0


def test_what_does_not_fit_is_refused_and_nothing_has_changed():
    store = Store(4096)
    mine = TaskTensors(store)
    mine.put("task/x", kib(3))
    with pytest.raises(OutOfMemory, match=r"task/y needs 2,048 more bytes, but 3,072 of the node's 4,096"):
        mine.put("task/y", kib(2))
    mine.put("task/x", kib(4))
    with pytest.raises(InvalidTensor, match="task/z"):
        mine.put("task/z", np.zeros(1, np.complex64))
    with pytest.raises(InvalidTensor, match="task/z has 9 dimensions"):
        mine.put("task/z", np.zeros((1,) * 9, np.float32))
    assert store.used == 4096
    mine.close()
    assert store.used == 0


def test_what_private_data_may_have_sized_is_counted_apart_also_where_it_takes_the_place_of_something():
    store = Store(4096, apart=2048)
    mine, chosen = TaskTensors(store), Origin("", "rows", chosen=True)
    mine.put("task/x", kib(4))
    mine.put("task/x", kib(2), chosen)
    assert (store.used, store.used_apart) == (0, 2048)
    with pytest.raises(OutOfMemory, match="for what graphs make of private data"):
        mine.put("task/y", kib(1), chosen)
    mine.put("task/x", kib(1))
    assert (store.used, store.used_apart) == (1024, 0)
    mine.close()
    assert (store.used, store.used_apart) == (0, 0)


def test_a_node_keeps_no_more_names_for_being_of_tasks(monkeypatch):
    monkeypatch.setattr(stores, "_MAX_NAMES", 3)
    store = Store(4096)
    mine = TaskTensors(store)
    store.put("job/j/x", kib(1))
    mine.put("task/x", kib(1))
    mine.put("task/y", kib(1))
    mine.put("task/y", kib(1))
    for put in (mine.put, store.put):
        with pytest.raises(InvalidProgram, match="3 tensors already"):
            put("task/z", kib(0))
    mine.drop("task/y")
    mine.put("task/z", kib(0))
    mine.close()
    store.put("job/j/y", kib(0))


@pytest.mark.parametrize(
    "limits", [(1 << 20, 1 << 20), (7 * 1024, 1 << 20), (1 << 20, 2 * 1024), (1, 1)], ids=str
)
def test_many_at_once_are_as_one_after_the_other(limits):
    chosen = Origin("", "rows", chosen=True)
    rounds = [
        {"task/a": (kib(1), None), "task/b": (kib(2), chosen), "task/c": (kib(3), None)},
        {"task/b": (kib(1), None), "task/d": (kib(2), chosen)},
        {"task/c": (kib(1), chosen), "task/a": (kib(3), None)},
    ]
    limit, apart = limits
    found = []
    for together in (True, False):
        store = Store(limit, apart=apart)
        mine, seen = TaskTensors(store), []
        for tensors in rounds:
            try:
                if together:
                    mine.put_all({name: Held(*each) for name, each in tensors.items()})
                else:
                    for name, each in tensors.items():
                        mine.put(name, *each)
            except OutOfMemory as error:
                seen.append(error.message)
                break
            seen.append((store.used, store.used_apart, [mine.get(name).array.nbytes for name in tensors]))
        mine.close()
        assert (store.used, store.used_apart) == (0, 0)
        found.append(seen)
    assert found[0] == found[1]


@pytest.mark.parametrize("wrong", [np.zeros(1, np.complex64), np.zeros((1,) * 9, np.float32)])
def test_of_many_the_one_that_is_of_no_use_is_named(wrong):
    store = Store(4096)
    mine = TaskTensors(store)
    with pytest.raises(InvalidTensor, match="task/wrong"):
        mine.put_all({"task/x": Held(kib(1)), "task/wrong": Held(wrong), "task/y": Held(kib(1))})
    mine.close()
    assert store.used == 0


def test_several_names_and_scopes_are_dropped_together_each_once():
    store = Store(1 << 20)
    mine = TaskTensors(store)
    for name in ("task/x/0", "task/x/1", "task/grad/0", "task/loss", "task/xy"):
        mine.put(name, kib(1))
    mine.drop("task/x/", "task/x/0", "task/loss", "task/loss", "task/nothing/", "task/none")
    assert [name for name in ("task/x/0", "task/grad/0", "task/xy") if name in mine] == [
        "task/grad/0",
        "task/xy",
    ]
    assert store.used == 2048
    mine.drop()
    mine.drop("task/")
    assert store.used == 0
