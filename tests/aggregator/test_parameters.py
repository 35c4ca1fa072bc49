"""Versions of parameters: bit for bit, all or nothing, whenever the process dies."""

from __future__ import annotations

import hashlib
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

from aggregator.store.parameters import Draft, ParameterStore
from aggregator.store.state import Record, State
from edge_attention.core.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
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


def drafted(store: ParameterStore, version: int) -> Draft:
    """A draft of what `commit` commits, under the names of the files, written by turns and in pieces."""
    parameters, optimizer_state = make(version)
    parameters = {f"p/{name}": tensor for name, tensor in parameters.items()}
    specs = [{n: (t.dtype, t.shape) for n, t in tensors.items()} for tensors in (parameters, optimizer_state)]
    draft = store.draft("run", version, version + 1, *specs)
    assert draft.state is not None
    for name, tensor in {**parameters, **optimizer_state}.items():
        writer = draft.parameters if name in parameters else draft.state
        for start in range(0, tensor.size, 4):
            writer.write_at(name, start, tensor.reshape(-1)[start : start + 4])
    return draft


def commit_draft(store: ParameterStore, version: int, keep: int = 0) -> None:
    store.commit_draft(drafted(store, version), {"loss": float(version)}, keep=keep)


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


def test_a_draft_is_a_commit_in_pieces(state: State) -> None:
    store = ParameterStore(state, clock=lambda: 12.5)
    for version in range(4):
        (commit_draft if version % 2 else commit)(store, version)
        assert (store.latest("run"), state.get_run("run").round) == (version, version + 1)
    assert state.records("run") == [Record(v + 1, {"loss": float(v)}) for v in range(4)]
    for version in (1, 3):
        committed = store.load("run", version)
        assert bits(committed.parameters) == bits(make(version)[0])
        assert bits(committed.optimizer_state) == bits(make(version)[1] if version == 3 else {})
    assert files(state) == {f"run/0000000{v}.parameters.safetensors" for v in range(4)} | {
        f"run/0000000{v}.optimizer.safetensors" for v in (2, 3)
    }


@pytest.mark.parametrize("restarted", [False, True])
def test_a_version_is_opened_with_the_digests_of_its_tensors(state: State, restarted: bool) -> None:
    store = ParameterStore(state)
    commit(store, 0)
    commit_draft(store, 1)
    for version in (0, 1):
        parameters, optimizer_state = (ParameterStore(state) if restarted else store).open("run", version)
        assert optimizer_state is not None
        wanted = {f"p/{name}": tensor for name, tensor in make(version)[0].items()}
        assert parameters.digests == {n: hashlib.sha256(t.tobytes()).hexdigest() for n, t in wanted.items()}
        for name, tensor in wanted.items():
            assert parameters.specs[name] == (tensor.dtype, tensor.shape)
            np.testing.assert_array_equal(parameters.read(name, 1, 3), tensor.reshape(-1)[1:3])
        assert parameters.path == state.directory / f"runs/run/0000000{version}.parameters.safetensors"
        prefix = "" if version else "o/"
        assert set(optimizer_state.specs) == {f"{prefix}m/w", f"{prefix}step"}
    commit_draft(store, 2)
    assert store.open("run", 0)[1] is None


def test_a_file_is_verified_when_a_process_first_opens_it(state: State, tmp_path: Path) -> None:
    commit_draft(ParameterStore(state), 0)
    for kind in ("parameters", "optimizer"):
        path = tmp_path / f"runs/run/00000000.{kind}.safetensors"
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(DataLoss, match=rf"00000000.{kind}.safetensors is damaged.*restore"):
            ParameterStore(state).open("run", 0)
        path.unlink()
        with pytest.raises(DataLoss, match=rf"00000000.{kind}.safetensors cannot be read"):
            ParameterStore(state).open("run", 0)
        path.write_bytes(good)
    ParameterStore(state).open("run", 0)


def test_a_version_without_state_has_no_file_of_it(state: State) -> None:
    store = ParameterStore(state)
    draft = store.draft("run", 0, 0, {"p/w": (np.dtype(np.float32), (2,))}, {})
    assert draft.state is None
    draft.parameters.write(np.ones(2, np.float32))
    store.commit_draft(draft)
    assert store.open("run", 0)[1] is None
    assert store.load("run", 0).optimizer_state == {}
    assert files(state) == {"run/00000000.parameters.safetensors"}


def test_drafts_that_are_refused_or_given_up_leave_nothing(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ParameterStore(state)
    with pytest.raises(FailedPrecondition, match="version 1"):
        drafted(store, 1)
    with pytest.raises(InvalidArgument, match="no run id"):
        store.draft("../run", 0, 0, {}, {})
    with pytest.raises(InvalidArgument, match="begins with 'p/'"):
        store.draft("run", 0, 0, {"w": (np.dtype(np.float32), ())}, {})
    with pytest.raises(InvalidTensor, match="convert"):
        store.draft("run", 0, 0, {}, {"s": (np.dtype(object), ())})
    drafted(store, 0).abort()
    with pytest.raises(Internal, match="not whole"):
        store.commit_draft(store.draft("run", 0, 0, {"p/w": (np.dtype(np.float32), (2,))}, {}))
    assert files(state) == set()
    first, second = drafted(store, 0), drafted(store, 0)
    store.commit_draft(first)
    with pytest.raises(FailedPrecondition, match="version 0"):
        store.commit_draft(second)
    draft = drafted(store, 1)
    with monkeypatch.context() as patch:

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceExhausted, match="free space"):
            store.commit_draft(draft)
    assert len(files(state)) == 2  # those of version 0
    with pytest.raises(InvalidArgument, match="record of round 2"):
        store.commit_draft(drafted(store, 1), {"loss": np.float32(1)})
    assert (store.latest("run"), len(state.records("run"))) == (0, 0)
    commit_draft(store, 1)
    draft.abort()
    assert bits(store.load("run", 1).parameters) == bits(make(1)[0])


def test_old_versions_are_forgotten_but_the_first_with_the_commit_of_a_new_one(state: State) -> None:
    store = ParameterStore(state)
    for version in range(6):
        commit_draft(store, version, keep=2)
        kept, _ = store.open("run", version)
    assert [v.version for v in state.list_versions("run")] == [0, 4, 5]
    assert files(state) == {f"run/0000000{v}.parameters.safetensors" for v in (0, 4, 5)} | {
        f"run/0000000{v}.optimizer.safetensors" for v in (4, 5)
    }
    with pytest.raises(NotFound, match=r"version 2 of run 'run' is no longer kept; there are 0 and 4 to 5"):
        store.open("run", 2)
    for version in (6, -1):
        with pytest.raises(NotFound, match=f"has no version {version}; its latest is 5"):
            store.load("run", version)
    assert bits(store.load("run", 0).parameters) == bits(make(0)[0])
    assert len(state.records("run")) == 6
    commit_draft(store, 6, keep=1)
    assert [v.version for v in state.list_versions("run")] == [0, 6]
    assert kept.read("p/w").tolist() == make(5)[0]["w"].reshape(-1).tolist()


def test_numbered_parameters_are_streamed_under_their_names(state: State) -> None:
    store = ParameterStore(state)
    arrays = [np.arange(5, dtype=np.float32), np.ones((2, 2), np.float32)]
    draft = store.draft("run", 0, 3, {f"p/{i}": (a.dtype, a.shape) for i, a in enumerate(arrays)}, {})
    for array in arrays:
        draft.parameters.write(array)
    store.commit_draft(draft)
    stream = store.stream("run", names=["b", "a"])
    data = b"".join(stream.pieces)
    assert (stream.version, stream.size) == (0, len(data))
    assert bits(safetensors.numpy.load(data)) == bits({"b": arrays[0], "a": arrays[1]})
    for names in (["b"], ["a", "b", "c"]):
        with pytest.raises(InvalidArgument, match="numbered"):
            store.stream("run", names=names)


# Dies, without a word, before the n-th system call or SQL statement of a commit, and lists them if n is 0.
CHILD = """
import json, os, re, sys
from pathlib import Path
import test_parameters as t
from aggregator.store.parameters import ParameterStore
from aggregator.store.state import State

folder, death, way = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
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
        path = re.sub("[.][0-9a-f]{8}[.]tmp$", ".tmp", os.path.relpath(target, folder))
        step(f"{name} {path}")
        return real(first, *rest, **options)
    setattr(os, name, call)
for name in ("fsync", "replace", "unlink"):
    watch(name)
state._database._connection.set_trace_callback(lambda statement: step(statement.split()[0]))
getattr(t, way)(store, store.latest("run") + 1)
print(json.dumps(steps))
"""


def child(folder: Path, death: int, way: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)])}
    command = [sys.executable, "-c", CHILD, str(folder), str(death), way]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def prepared(folder: Path, versions: int) -> Path:
    with State(folder) as state:
        state.put_run("run", "name", 0.0, {}, "running")
        for version in range(versions):
            commit(ParameterStore(state), version)
    return folder


WAYS = pytest.mark.parametrize("way", ["commit", "commit_draft"])


@WAYS
def test_the_files_are_durable_before_the_rows_name_them(tmp_path: Path, way: str) -> None:
    done = child(prepared(tmp_path, 2), 0, way)
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    new = [f"runs/run/00000002.{kind}.safetensors" for kind in ("parameters", "optimizer")]
    order = [s for path in new for s in (f"fsync {path}.tmp", f"replace {path}.tmp")]
    order += ["fsync runs/run", "BEGIN", "INSERT", "COMMIT", "unlink runs/run/00000000.optimizer.safetensors"]
    places = [steps.index(step) for step in order]
    assert places == sorted(places)
    assert places[-1] == len(steps) - 1


@WAYS
def test_a_commit_killed_anywhere_happened_or_did_not(tmp_path: Path, way: str) -> None:
    listed = json.loads(child(prepared(tmp_path / "0", 2), 0, way).stdout)
    outcomes = []
    for death in range(1, len(listed) + 1):
        folder = prepared(tmp_path / str(death), 2)
        assert child(folder, death, way).returncode == 9
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
