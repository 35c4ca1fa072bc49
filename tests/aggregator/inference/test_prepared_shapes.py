"""A deployment keeps the shapes used last, and none goes that is in use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aggregator.inference.prepared_shapes import PreparedShapes


def test_the_one_used_longest_ago_goes():
    shapes = PreparedShapes(2)
    for key in "abc":
        shapes.add(key)
    assert shapes.surplus() == ("a",)
    assert shapes.use("b")
    shapes.add("d")
    assert shapes.surplus() == ("c",)
    assert shapes.last_first == ("d", "b")
    assert not shapes.use("c")


def test_what_is_in_use_stays_above_the_bound():
    shapes = PreparedShapes(1)
    shapes.add("a")
    assert shapes.use("a")
    shapes.add("b")
    assert shapes.surplus() == ("b",)
    shapes.add("c")
    assert shapes.use("c")
    assert shapes.surplus() == ()
    shapes.done("a")
    assert shapes.surplus() == ("a",)
    shapes.check()


def test_who_has_ever_other_shapes_has_its_own_go():
    shapes = PreparedShapes(4)
    shapes.add("steady", "ben")
    for number in range(50):
        shapes.add(f"odd{number}", "ana")
        assert shapes.use(f"odd{number}", "ana")
        shapes.done(f"odd{number}")
        gone = shapes.surplus()
        assert gone == ((f"odd{number - 3}",) if number >= 3 else ())
        shapes.use("steady", "ana") and shapes.done("steady")  # which makes it no less ben's
    assert shapes.last_first == ("steady", "odd49", "odd48", "odd47")
    shapes.check()


@given(st.lists(st.tuples(st.sampled_from(["add", "use", "done"]), st.sampled_from("abcdef"))))
def test_it_keeps_no_more_than_the_bound_and_those_in_use(events):
    shapes, used = PreparedShapes(2), []
    for what, key in events:
        if what == "add":
            shapes.add(key, key if key < "c" else "ana")
        elif what == "use" and shapes.use(key, "ana"):
            used.append(key)
        elif what == "done" and key in used:
            used.remove(key)
            shapes.done(key)
        for gone in shapes.surplus():
            assert gone not in used
        assert len(shapes.last_first) <= max(2, len(set(used)) + 2)
        assert set(used) <= set(shapes.last_first)
        shapes.check()
