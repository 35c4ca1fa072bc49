"""Versions of parameters: bit for bit, all or nothing, whenever the process dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.parameters import ParameterStore
from aggregator.state import Record, State
from edge_attention.core.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    InvalidTensor,
    NotFound,
    ResourceExhausted,
)

Arrays = dict[str, np.ndarray]


def bits(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[object, ...]]:
    return {name: (t.dtype, t.shape, t.tobytes()) for name, t in tensors.items()}


def make(version: int) -> tuple[Arrays, Arrays]:
    rng = np.random.default_rng(version)
    parameters = {
        name: rng.standard_normal(shape, np.float32) for name, shape in {"w": (3, 5), "b": (7,)}.items()
    }
    return parameters, {"m/w": rng.standard_normal((3, 5), np.float32), "step": np.array(version)}


def commit(store: ParameterStore, version: int) -> None:
    store.commit("run", version, version + 1, *make(version), {"loss": float(version)})


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State(tmp_path) as opened:
        opened.put_run("run", "name", 0.0, {}, "running")
        yield opened


def files(state: State) -> set[str]:
    return {str(path.relative_to(state.directory / "runs")) for path in state.directory.glob("runs/*/*")}


def test_a_run_of_versions(state: State) -> None:
    store = ParameterStore(state, clock=lambda: 12.5)
    assert store.latest("run") is None
    for version in range(4):
        commit(store, version)
        assert store.latest("run") == version
    assert (state.get_run("run").round, state.get_run("run").version) == (4, 3)
    assert [v.created for v in state.list_versions("run")] == [12.5] * 4
    assert state.records("run") == [Record(v + 1, {"loss": float(v)}) for v in range(4)]
    for version in range(4):
        parameters, optimizer_state = make(version)
        committed = store.load("run", version)
        assert (committed.version, committed.round) == (version, version + 1)
        assert bits(committed.parameters) == bits(parameters)
        assert bits(committed.optimizer_state) == bits(optimizer_state if version >= 2 else {})
    assert files(state) == {f"run/0000000{v}.parameters.safetensors" for v in range(4)} | {
        f"run/0000000{v}.optimizer.safetensors" for v in (2, 3)
    }


def test_runs_are_apart(state: State) -> None:
    state.put_run("other", "name", 0.0, {}, "running")
    store = ParameterStore(state)
    store.commit("run", 0, 0, {"w": np.zeros(2, np.float32)}, {})
    store.commit("other", 0, 0, {"w": np.ones(2, np.float32)}, {})
    assert store.load("run", 0).parameters["w"].tolist() == [0, 0]
    assert store.load("other", 0).parameters["w"].tolist() == [1, 1]
    assert state.records("run") == []


ARRAYS = st.builds(
    lambda dtype, shape, seed, view: view(
        np.random.default_rng(seed)
        .integers(0, 255, (*shape, np.dtype(dtype).itemsize), np.uint8)
        .view(dtype)[..., 0]
    ),
    st.sampled_from(["<f4", ">f4", "<f8", "<f2", "<i8", "u1"]),
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 2**31),
    st.sampled_from([lambda a: a, lambda a: a.T, lambda a: a[::-2] if a.ndim else a, np.asfortranarray]),
)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), ARRAYS, max_size=4))
def test_any_name_shape_dtype_and_layout_comes_back(tensors: Arrays) -> None:
    with State(None) as state:
        state.put_run("run", "name", 0.0, {}, "running")
        store = ParameterStore(state)
        store.commit("run", 0, 0, tensors, tensors)
        committed = store.load("run", 0)
    native = {name: t.astype(t.dtype.newbyteorder("=")) for name, t in tensors.items()}
    assert bits(committed.parameters) == bits(native)
    assert bits(committed.optimizer_state) == bits(native)


def test_export_is_plain_safetensors(state: State, tmp_path: Path) -> None:
    store = ParameterStore(state)
    with pytest.raises(FailedPrecondition, match="'run' has no version yet"):
        store.export("run")
    for version in range(3):
        commit(store, version)
    assert bits(safetensors.numpy.load(store.export("run"))) == bits(make(2)[0])
    assert bits(safetensors.numpy.load(store.export("run", 0))) == bits(make(0)[0])
    for file in (tmp_path / "exported", tmp_path / "runs/run/00000001.parameters.safetensors"):
        if file.name == "exported":
            file.write_bytes(store.export("run", 1))
        with safetensors.safe_open(file, framework="numpy") as opened:
            assert opened.metadata() == {"run": "run", "version": "1", "round": "2"}
    store.commit("run", 3, 4, {"__metadata__": np.zeros(1, np.float32)}, {})
    assert store.load("run", 3).parameters["__metadata__"].tolist() == [0]
    with pytest.raises(InvalidTensor, match=r"__metadata__ .* rename"):
        store.export("run", 3)


def test_refused_commits_leave_the_version_before(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ParameterStore(state)
    with pytest.raises(FailedPrecondition, match=r"version 1 .* after version None; .* commit 0"):
        commit(store, 1)
    commit(store, 0)
    for version in (0, 2):
        with pytest.raises(FailedPrecondition, match=f"version {version} .* after version 0; .* commit 1"):
            commit(store, version)
    parameters = make(1)[0]
    with pytest.raises(InvalidArgument, match="round -1"):
        store.commit("run", 1, -1, parameters, {})
    with pytest.raises(InvalidArgument, match="record of round 2"):
        store.commit("run", 1, 2, parameters, {}, {"loss": np.float32(1)})
    with pytest.raises(InvalidTensor, match="cannot be stored"):
        store.commit("run", 1, 2, {"w": np.array([None])}, {})
    with pytest.raises(NotFound, match="no run 'other'"):
        store.commit("other", 0, 0, parameters, {})
    with pytest.raises(InvalidArgument, match="no run id"):
        store.commit("../run", 0, 0, parameters, {})
    with monkeypatch.context() as patch:

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceExhausted, match="free space"):
            commit(store, 1)
    assert (store.latest("run"), len(state.records("run"))) == (0, 1)
    assert bits(store.load("run", 0).parameters) == bits(make(0)[0])
    commit(store, 1)
    assert bits(store.load("run", 1).parameters) == bits(make(1)[0])


def test_what_is_not_there_and_what_is_damaged(state: State, tmp_path: Path) -> None:
    store = ParameterStore(state)
    commit(store, 0)
    commit(store, 1)
    with pytest.raises(NotFound, match="no version 2; its latest is 1"):
        store.load("run", 2)
    with pytest.raises(NotFound, match="no run 'other'"):
        store.latest("other")
    for kind in ("parameters", "optimizer"):
        path = tmp_path / f"runs/run/00000001.{kind}.safetensors"
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(DataLoss, match=rf"00000001.{kind}.safetensors is damaged.*restore"):
            store.load("run", 1)
        path.unlink()
        with pytest.raises(DataLoss, match=rf"00000001.{kind}.safetensors cannot be read.*restore"):
            store.load("run", 1)
        path.write_bytes(good)
    assert bits(store.load("run", 1).optimizer_state) == bits(make(1)[1])


# Dies, without a word, before the n-th system call or SQL statement of a commit, and lists them if n is 0.
CHILD = """
import json, os, sys
from pathlib import Path
import test_parameters as t
from aggregator.parameters import ParameterStore
from aggregator.state import State

folder, death = Path(sys.argv[1]), int(sys.argv[2])
state = State(folder)
store = ParameterStore(state)
steps = []
def step(name):
    steps.append(name)
    if len(steps) == death:
        os._exit(9)
def watch(name):
    real = getattr(os, name)
    def call(first, *rest, **options):
        target = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)
        step(f"{name} {os.path.relpath(target, folder)}")
        return real(first, *rest, **options)
    setattr(os, name, call)
for name in ("fsync", "replace", "unlink"):
    watch(name)
state._database.set_trace_callback(lambda statement: step(statement.split()[0]))
t.commit(store, store.latest("run") + 1)
print(json.dumps(steps))
"""


def child(folder: Path, death: int) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)])}
    command = [sys.executable, "-c", CHILD, str(folder), str(death)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def prepared(folder: Path, versions: int) -> Path:
    with State(folder) as state:
        state.put_run("run", "name", 0.0, {}, "running")
        for version in range(versions):
            commit(ParameterStore(state), version)
    return folder


def test_the_files_are_durable_before_the_rows_name_them(tmp_path: Path) -> None:
    done = child(prepared(tmp_path, 2), death=0)
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    new = [f"runs/run/00000002.{kind}.safetensors" for kind in ("parameters", "optimizer")]
    order = [s for path in new for s in (f"fsync {path}.tmp", f"replace {path}.tmp")]
    order += ["fsync runs/run", "BEGIN", "INSERT", "COMMIT", "unlink runs/run/00000000.optimizer.safetensors"]
    places = [steps.index(step) for step in order]
    assert places == sorted(places)
    assert places[-1] == len(steps) - 1


def test_a_commit_killed_anywhere_happened_or_did_not(tmp_path: Path) -> None:
    listed = json.loads(child(prepared(tmp_path / "0", 2), death=0).stdout)
    outcomes = []
    for death in range(1, len(listed) + 1):
        folder = prepared(tmp_path / str(death), 2)
        assert child(folder, death).returncode == 9
        with State(folder) as state:
            store = ParameterStore(state)
            latest = store.latest("run")
            assert latest in (1, 2)
            outcomes.append(latest)
            assert (state.get_run("run").round, len(state.records("run"))) == (latest + 1, latest + 1)
            committed = store.load("run", latest)
            assert bits(committed.parameters) == bits(make(latest)[0])
            assert bits(committed.optimizer_state) == bits(make(latest)[1])
            named = {v.file for v in state.list_versions()} | {
                v.optimizer_file for v in state.list_versions()
            }
            assert {f"runs/{file}" for file in files(state)} == named - {None}
            commit(store, latest + 1)
            assert bits(store.load("run", latest + 1).parameters) == bits(make(latest + 1)[0])
    # Killed before COMMIT: did not. Killed after, before the last unlink: did.
    assert outcomes == [1] * (len(listed) - 1) + [2]
