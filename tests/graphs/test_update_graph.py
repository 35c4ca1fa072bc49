"""The graph of a node's update against NumPy: to the bit where it encodes, and no loss without account."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edge_attention.core.encodings import UpdateEncoding, from_config
from edge_attention.core.halves import from_wire, to_wire
from edge_attention.graphs.gradients.gradients import Runner, graph_inputs, graph_outputs
from edge_attention.graphs.steps.update import difference_graph, update_graph

SHAPES = [(), (1,), (0, 3), (3, 7), (256,), (2, 129), (5, 1, 2)]
EVERY = [
    from_config("float32"),
    from_config("float16"),
    from_config("bfloat16"),
    from_config("int8"),
    from_config("int8", block=16),
    from_config("int8", feedback=False),
    from_config("topk"),
    from_config("topk", fraction=0.37),
    from_config("topk", fraction=0.1, feedback=False),
]
every = pytest.mark.parametrize("encoding", EVERY, ids=repr)

Arrays = list[np.ndarray]


def make(seed: int, scale: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(scale * rng.standard_normal(shape), np.float32) for shape in SHAPES]
    if scale:
        arrays[3][1] = 0
        arrays[5][:, ::3] = arrays[5][0, 0]  # equal magnitudes
    return arrays


def named(name: str, arrays: Arrays) -> dict[str, np.ndarray]:
    return {f"{name}/{i}": array for i, array in enumerate(arrays)}


def scalars(**values: float) -> dict[str, np.ndarray]:
    return {name: np.array(value, np.float32) for name, value in values.items()}


def run(graph: bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    assert set(graph_inputs(graph)) == set(feeds)  # a node refuses what it does not know
    names = list(graph_outputs(graph))
    return dict(zip(names, Runner(graph, "update")(names, feeds), strict=True))


def on_the_server(encoding: UpdateEncoding, returned: dict[str, np.ndarray]) -> Arrays:
    """What arrives: through the wire, checked against what is announced, decoded."""
    arrived = []
    for i, shape in enumerate(SHAPES):
        specs = encoding.specs(i, shape)
        parts = {n: from_wire(to_wire(returned[n], encoding.wire), encoding.wire) for n in specs}
        assert {name: (array.dtype, array.shape) for name, array in parts.items()} == specs
        arrived.append(encoding.decode_array(i, shape, parts))
    return arrived


@every
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("source", ["difference", "gradient"])
def test_an_update(encoding: UpdateEncoding, source, clip):
    anchor, x, residual = make(1), make(2), make(3, 0.1)
    feeds = scalars(loss_sum=6, steps=4)
    if source == "difference":
        expected = [a - b for a, b in zip(anchor, x, strict=True)]
        feeds |= named("anchor", anchor) | named("x", x)
    else:
        expected = anchor
        feeds |= named("grad", anchor)
    norm = np.sqrt(sum(np.square(u, dtype=np.float64).sum() for u in expected))
    if clip:
        feeds |= scalars(max_norm=2.5)
        expected = [np.asarray(u * np.float32(2.5 / norm)) for u in expected]
    if encoding.feedback:
        feeds |= named("residual", residual)
        expected = [np.asarray(u + r) for u, r in zip(expected, residual, strict=True)]

    returned = run(update_graph(SHAPES, source=source, clip=clip, encoding=encoding), feeds)

    np.testing.assert_allclose(returned["loss"], 1.5, rtol=1e-6)
    np.testing.assert_allclose(returned["norm"], norm, rtol=1e-6)
    assert ("next/residual/0" in returned) is encoding.feedback
    arrived = on_the_server(encoding, returned)
    for i, (u, decoded) in enumerate(zip(expected, arrived, strict=True)):
        if encoding.feedback:
            # Nothing is lost: what arrived and what is kept are the update and what was kept before.
            kept = returned[f"next/residual/{i}"]
            assert kept.shape == u.shape
            np.testing.assert_allclose(decoded.astype(np.float64) + kept, u, rtol=2e-6, atol=1e-6)
        if not clip:  # whose length is summed up in another order
            for name, array in encoding.encode_array(i, u).items():
                wire = to_wire(returned[name], encoding.wire)
                assert wire.tobytes() == to_wire(array, encoding.wire).tobytes(), name


@every
def test_an_update_of_nothing_is_nothing(encoding: UpdateEncoding):
    x = make(1)
    feeds = named("anchor", x) | named("x", x) | scalars(loss_sum=0, steps=1, max_norm=1)
    if encoding.feedback:
        feeds |= named("residual", make(0, 0.0))
    returned = run(update_graph(SHAPES, source="difference", clip=True, encoding=encoding), feeds)
    assert returned["norm"] == 0
    for array in on_the_server(encoding, returned):
        np.testing.assert_array_equal(array, np.zeros_like(array))
    for i, shape in enumerate(SHAPES if encoding.feedback else []):
        np.testing.assert_array_equal(returned[f"next/residual/{i}"], np.zeros(shape, np.float32))


def test_a_short_update_is_not_stretched():
    update = make(4)
    feeds = named("grad", update) | scalars(loss_sum=1, steps=1, max_norm=1e6)
    graph = update_graph(SHAPES, source="gradient", clip=True, encoding=from_config("float32"))
    returned = run(graph, feeds)
    for i, u in enumerate(update):
        np.testing.assert_array_equal(returned[f"update/{i}"], u)


@pytest.mark.parametrize("encoding", [from_config("int8", block=16), from_config("topk", fraction=0.05)])
def test_what_is_lost_once_arrives_in_the_end(encoding: UpdateEncoding):
    """Twenty equal updates: their decoded sum misses the true one by one residual, not by twenty errors."""
    update, residual = make(5), make(0, 0.0)
    runner = Runner(update_graph(SHAPES, source="gradient", clip=False, encoding=encoding), "update")
    total = [np.zeros(shape) for shape in SHAPES]
    names = ["loss", "norm", *(f"next/residual/{i}" for i in range(len(SHAPES)))]
    names += [part for i in range(len(SHAPES)) for part in encoding.parts(i)]
    for _ in range(20):
        feeds = named("grad", update) | named("residual", residual) | scalars(loss_sum=1, steps=1)
        returned = dict(zip(names, runner(names, feeds), strict=True))
        residual = [returned[f"next/residual/{i}"] for i in range(len(SHAPES))]
        for sum_, decoded in zip(total, on_the_server(encoding, returned), strict=True):
            sum_ += decoded
    for sum_, u, kept in zip(total, update, residual, strict=True):
        np.testing.assert_allclose(sum_ + kept, 20 * u.astype(np.float64), rtol=1e-5, atol=2e-5)


@every
def test_a_difference_is_added_to_the_bit(encoding: UpdateEncoding):
    before, change = make(6), make(7, 0.01)
    before[3][0, :2] = 0.0, -0.0
    tensors: dict[str, np.ndarray] = {}
    for i, array in enumerate(change):
        tensors |= encoding.encode_array(i, array, "difference")
    after = run(difference_graph(SHAPES, encoding), named("p", before) | tensors)
    assert set(after) == {f"next/p/{i}" for i in range(len(SHAPES))}
    for i, (p, shape) in enumerate(zip(before, SHAPES, strict=True)):
        expected = np.asarray(p + encoding.decode_array(i, shape, tensors, "difference"))
        assert after[f"next/p/{i}"].shape == shape
        assert after[f"next/p/{i}"].tobytes() == expected.tobytes()


@every
def test_the_same_arguments_give_the_same_bytes_and_small_ones(encoding: UpdateEncoding):
    """No constant grows with a parameter: a model of a gigabyte has graphs of a few kilobytes."""
    shapes = [(4096, 4096)]
    for make_graph in (
        lambda: update_graph(shapes, source="difference", clip=True, encoding=encoding),
        lambda: difference_graph(shapes, encoding),
    ):
        graph = make_graph()
        assert graph == make_graph()
        assert len(graph) < 10_000
        onnx.checker.check_model(graph, full_check=True)
