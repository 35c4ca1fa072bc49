"""safetensors in pieces, against the safetensors library both ways; damaged and hostile files are refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.store.tensor_file import TensorFile, TensorFileWriter
from edge_attention.core.errors import DataLoss, DiskFull, Internal, InvalidTensor, ResourceExhausted

DTYPES = ["<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "<u8", "<u4", "<u2", "u1", "?"]
ARRAYS = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 2, shape).astype(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 2**31),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda n: n != "__metadata__")
TENSORS = st.dictionaries(NAMES, ARRAYS, max_size=5)


def specs(tensors):
    return {name: (array.dtype, array.shape) for name, array in tensors.items()}


def sha(data) -> str:
    return hashlib.sha256(data).hexdigest()


def in_turns(writer: TensorFileWriter, tensors, step: int) -> None:
    """Pieces of `step` elements, tensors by turns."""
    flat = {name: array.reshape(-1) for name, array in tensors.items()}
    for start in range(0, max((a.size for a in flat.values()), default=0), step):
        for name, array in flat.items():
            if start < array.size:
                writer.write_at(name, start, array[start : start + step])


@settings(max_examples=50, deadline=None)
@given(TENSORS, st.dictionaries(NAMES, NAMES, max_size=2), st.integers(1, 7), st.booleans())
def test_the_library_reads_what_is_written(tmp_path_factory, tensors, metadata, step, turns) -> None:
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    writer = TensorFileWriter(path, specs(tensors), metadata)
    if turns:
        in_turns(writer, tensors, step)
    else:
        for name in writer.specs:
            flat = tensors[name].reshape(-1)
            for start in range(0, flat.size, step):
                writer.write(flat[start : start + step])
    written = writer.finish()
    data = path.read_bytes()
    assert written.digest == sha(data)
    assert written.digests == {name: sha(array.tobytes()) for name, array in tensors.items()}
    loaded = safetensors.numpy.load(data)
    assert specs(loaded) == specs(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(loaded[name], array)
    with safetensors.safe_open(path, framework="numpy") as opened:
        assert (opened.metadata() or {}) == metadata
    with TensorFile(path) as file:
        assert file.metadata == metadata
        file.verify(written.digest)
        assert file.digests == written.digests


@settings(max_examples=50, deadline=None)
@given(TENSORS, st.data())
def test_what_the_library_writes_is_read(tmp_path_factory, tensors, data) -> None:
    path = tmp_path_factory.getbasetemp() / "library.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"k": "v"}))
    with TensorFile(path) as file:
        assert file.specs == specs(tensors)
        assert file.metadata == {"k": "v"}
        for name, array in tensors.items():
            np.testing.assert_array_equal(file.read(name).reshape(array.shape), array)
            start = data.draw(st.integers(0, array.size))
            stop = data.draw(st.integers(start, array.size))
            np.testing.assert_array_equal(file.read(name, start, stop), array.reshape(-1)[start:stop])
            where, offset, nbytes = file.location(name)
            assert where.read_bytes()[offset : offset + nbytes] == array.tobytes()
            assert file.digest(name) == sha(array.tobytes())


def test_renamed_is_the_same_under_other_names(tmp_path: Path) -> None:
    path = tmp_path / "f"
    tensors = {"p/0": np.arange(6, dtype=np.float32).reshape(2, 3), "p/1": np.ones(3, np.int64)}
    path.write_bytes(safetensors.numpy.save(tensors))
    file = TensorFile(path)
    size, pieces = file.renamed({"p/0": "weight", "p/1": "é"}, {"run": "r"})
    data = b"".join(pieces)
    assert len(data) == size
    loaded = safetensors.numpy.load(data)
    np.testing.assert_array_equal(loaded["weight"], tensors["p/0"])
    np.testing.assert_array_equal(loaded["é"], tensors["p/1"])
    with pytest.raises(InvalidTensor, match="one name"):
        file.renamed({"p/0": "a", "p/1": "a"}, {})
    with pytest.raises(InvalidTensor, match="rename"):
        file.renamed({"p/0": "__metadata__", "p/1": "a"}, {})


def test_larger_elements_lie_first_so_that_each_is_aligned(tmp_path: Path) -> None:
    tensors = {"b": np.ones(3, bool), "f": np.ones(2, np.float32), "d": np.ones(1, np.int64)}
    writer = TensorFileWriter(tmp_path / "f", specs(tensors), {})
    assert list(writer.specs) == ["d", "f", "b"]
    in_turns(writer, tensors, 1)
    writer.finish()
    file = TensorFile(tmp_path / "f")
    assert all(file.location(name)[1] % array.itemsize == 0 for name, array in tensors.items())


def test_nothing_is_there_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"before")
    array = np.arange(4, dtype=np.float32)
    writer = TensorFileWriter(path, {"x": (array.dtype, (4,))}, {})
    writer.write(array[:3])
    for start, piece in ((2, array[:1]), (3, array[:2]), (3, array[:1].astype(np.float64))):
        with pytest.raises(Internal, match="do not follow 3 of 4 of float32 in tensor 'x'"):
            writer.write_at("x", start, piece)
    with pytest.raises(Internal, match="not whole: x"):
        writer.finish()
    writer.abort()
    writer.abort()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"f": b"before"}

    writer = TensorFileWriter(path, {"x": (array.dtype, (4,))}, {})
    writer.write(array)
    with pytest.raises(Internal, match="more"):
        writer.write(array)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceExhausted, match="free space"):
            writer.finish()
    writer.abort()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"f": b"before"}


def test_two_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    spec = {"x": (np.dtype(np.float32), (2,))}
    first, second = (TensorFileWriter(tmp_path / "f", spec, {}) for _ in range(2))
    first.write(np.zeros(2, np.float32))
    second.write(np.ones(2, np.float32))
    first.finish()
    second.abort()
    first.abort()
    assert TensorFile(tmp_path / "f").read("x").tolist() == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("spec", [(np.dtype("complex64"), (1,)), (np.dtype(object), (1,))])
def test_what_such_a_file_cannot_hold(tmp_path: Path, spec) -> None:
    with pytest.raises(InvalidTensor, match=r"'x' is .* convert"):
        TensorFileWriter(tmp_path / "f", {"x": spec}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_stays_readable_when_its_name_goes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(safetensors.numpy.save({"x": np.arange(3, dtype=np.int64)}))
    file = TensorFile(tmp_path / "f")
    (tmp_path / "f").unlink()
    assert file.read("x", 1).tolist() == [1, 2]
    with pytest.raises(Internal, match="no elements"):
        file.read("x", 2, 4)
    with pytest.raises(DataLoss, match="cannot be read"):
        TensorFile(tmp_path / "f")


def head(entries: object, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changed: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changed}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        head(b"not json"),
        head([]),
        head(b"[" * 100_000),
        head({"x": []}),
        head({"x": {}}),
        head({"x": entry(dtype="F33")}, bytes(8)),
        head({"x": entry(shape=[3])}, bytes(8)),
        head({"x": entry(shape=[-2])}, bytes(8)),
        head({"x": entry(shape=["2"])}, bytes(8)),
        head({"x": entry(shape=2)}, bytes(8)),
        head({"x": entry(data_offsets=[8, 16])}, bytes(16)),
        head({"x": entry(data_offsets=[0])}, bytes(8)),
        head({"x": entry(), "y": entry()}, bytes(8)),
        head({"x": entry()}, bytes(7)),
        head({"x": entry()}, bytes(9)),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(data)
    with pytest.raises(InvalidTensor, match="f is not a safetensors file"):
        TensorFile(path)
    still_open = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    assert str(path) not in still_open


def test_changed_bytes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "f"
    data = safetensors.numpy.save({"x": np.arange(3, dtype=np.int64)})
    path.write_bytes(data[:-1] + b"\1")
    file = TensorFile(path)
    with pytest.raises(DataLoss, match=r"f is damaged.*restore"):
        file.verify(sha(data))
    os.truncate(path, len(data) - 8)
    with pytest.raises(DataLoss, match=r"f is damaged.*restore"):
        file.read("x")


def test_a_full_disk_is_said_of_the_file_and_always_in_the_same_words(tmp_path: Path, monkeypatch) -> None:
    """The temporary one is called otherwise at each try: a run that waits for room said so each time."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    path, said = tmp_path / "p.safetensors", set()
    for _ in range(2):
        with pytest.raises(DiskFull) as error:
            TensorFileWriter(path, specs({"a": np.ones(3, np.float32)}), {})
        said.add(error.value.message)
    assert said == {f"{path} cannot be written: No space left on device; free space there"}
    assert not list(tmp_path.iterdir())
