"""The catalogue: complete, flat in its names, with gRPC's statuses."""

from __future__ import annotations

import copy
import pickle

import grpc
import pytest

from edge_attention.core import errors

CATALOGUE = [getattr(errors, name) for name in errors.__all__ if name != "by_name"]


@pytest.mark.parametrize("cls", CATALOGUE, ids=lambda c: c.__name__)
def test_each_error_is_found_by_its_name_and_keeps_its_sentence(cls):
    error = errors.by_name(cls.__name__, "what, where, and what to do")
    assert type(error) is cls
    assert str(error) == error.message == "what, where, and what to do"
    assert isinstance(error, errors.EdgeAttentionError)
    assert cls.status in grpc.StatusCode.__members__


@pytest.mark.parametrize("cls", CATALOGUE, ids=lambda c: c.__name__)
def test_the_tree_at_the_top_of_the_file_is_the_tree(cls):
    lines = [line for line in (errors.__doc__ or "").splitlines() if f" {cls.__name__}" in f" {line.strip()}"]
    assert lines, f"{cls.__name__} is not in the tree"
    if "status" in vars(cls) and cls is not errors.EdgeAttentionError:
        assert any(cls.__name__ in line and cls.status in line for line in lines)


def test_every_class_is_exported():
    found, todo = set(), [errors.EdgeAttentionError]
    while todo:
        cls = todo.pop()
        found.add(cls.__name__)
        todo += [c for c in cls.__subclasses__() if c.__module__ == errors.__name__]
    assert found == set(errors.__all__) - {"by_name"}


@pytest.mark.parametrize("name", ["", "NoSuchError", "ValueError", "__class__"])
def test_an_unknown_name_is_the_base_class(name):
    assert type(errors.by_name(name, "x")) is errors.EdgeAttentionError


@pytest.mark.parametrize("cls", sorted(errors._BY_NAME.values(), key=lambda cls: cls.__name__))
def test_an_error_goes_to_another_process_as_it_is(cls):
    error = cls("what\nwas wrong" + "x" * 5000, ["a line", "another\x1b"], 2.5)
    error.told = True
    error.add_note("noted")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error) == again.message
    assert (again.args, again.retry_after, again.told) == (error.args, 2.5, True)
    assert again.__notes__ == ["noted"]
    assert str(copy.copy(error)) == str(error)
