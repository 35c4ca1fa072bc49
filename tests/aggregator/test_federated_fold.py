"""A step is the same however its parameters are cut into pieces; so is the difference that is pushed."""

from __future__ import annotations

import numpy as np
import pytest

from aggregator.store.tensor_file import TensorFile, TensorFileWriter
from aggregator.training.federated.fold import Folder
from aggregator.training.federated.plan import FederatedPlan
from aggregator.training.federated.updates import Update
from edge_attention.core.combine import from_config as combine
from edge_attention.core.encodings import from_config as encoding
from edge_attention.core.strategies import from_config as strategy

SHAPES = ((700,), (3,), (129, 5))
NAMES = tuple("abc")
RANDOM = np.random.default_rng(0)
BEFORE = [RANDOM.standard_normal(shape).astype(np.float32) for shape in SHAPES]
UPDATES = [[RANDOM.standard_normal(shape).astype(np.float32) for shape in SHAPES] for _ in range(3)]


def written(path, specs, arrays):
    writer = TensorFileWriter(path, specs, {})
    for name, array in arrays.items():
        writer.write_at(name, 0, array.reshape(-1))
    writer.finish(durable=False)
    return TensorFile(path)


@pytest.mark.parametrize(("name", "options"), [("float32", {}), ("float16", {}), ("int8", {"block": 64})])
def test_a_pushed_difference_is_what_the_server_added(tmp_path, monkeypatch, name, options):
    monkeypatch.setattr(Folder, "_piece", lambda self, updates: 128)
    push = encoding(name, **options)
    plan = FederatedPlan(NAMES, SHAPES, (), (), (), {})
    folder = Folder(
        plan, strategy("fedavg"), combine("mean"), encoding("float32"), NAMES, lambda number: 0.1, True, push
    )
    p = {f"p/{i}": (np.dtype(np.float32), shape) for i, shape in enumerate(SHAPES)}
    old = written(tmp_path / "old", p, {f"p/{i}": array for i, array in enumerate(BEFORE)})
    new, state = TensorFileWriter(tmp_path / "new", p, {}), folder.state_specs()
    new_state = TensorFileWriter(tmp_path / "state", state, {})
    difference = TensorFileWriter(tmp_path / "difference", folder.difference_specs(), {})
    updates = [
        Update(node, 1, 1, 0.0, {f"update/{i}": array for i, array in enumerate(arrays)}, squared_norm=1.0)
        for node, arrays in zip(NAMES, UPDATES, strict=True)
    ]
    folder.fold(updates, 1, old, None, new, new_state, difference)
    for writer in (new, new_state, difference):
        writer.finish(durable=False)
    after, pushed = TensorFile(tmp_path / "new"), TensorFile(tmp_path / "difference")
    for i, shape in enumerate(SHAPES):
        size = int(np.prod(shape))
        decoded = push.decode(i, shape, pushed.read, 0, size, "difference")
        found = after.read(f"p/{i}")
        np.testing.assert_array_equal(found, BEFORE[i].reshape(-1) + decoded)
        wanted = BEFORE[i] - np.mean([arrays[i] for arrays in UPDATES], axis=0, dtype=np.float64)
        assert np.abs(found - wanted.reshape(-1)).max() < (1e-6 if name == "float32" else 0.05)
