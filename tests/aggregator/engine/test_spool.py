"""The spool: bytes in any pieces come back as tensors, in any pieces; files are there only while used."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.engine.spool import Spool, SpooledTensor
from edge_attention.core.errors import (
    DataLoss,
    Internal,
    InvalidArgument,
    InvalidTensor,
    NotFound,
    ResourceExhausted,
)
from edge_attention.core.messages.program import BulkTensor
from edge_attention.core.tensors import DataType, Encoding


def stored(spool: Spool, data: bytes, cuts: tuple[int, ...] = ()):
    file = spool.file(hashlib.sha256(data).hexdigest(), len(data))
    ends = [*sorted(cuts), len(data)]
    for start, stop in zip([0, *ends], ends, strict=False):
        file.append(data[start:stop], start)
    return file


def tensor(data_type: DataType, shape: tuple[int, ...], encoding: Encoding, size: int) -> BulkTensor:
    return BulkTensor("x", data_type, shape, encoding, "", size)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(list(DataType)),
    st.lists(st.integers(0, 5), max_size=3),
    st.lists(st.integers(0, 1000), max_size=4),
    st.data(),
)
def test_any_tensor_comes_back_in_any_pieces(tmp_path_factory, data_type, shape, cuts, data) -> None:
    spool = Spool(tmp_path_factory.getbasetemp() / "spool")
    rng = np.random.default_rng(len(cuts))
    array = rng.integers(0, 2, shape).astype(data_type.value)
    raw = array.tobytes()
    file = stored(spool, raw, tuple(cut for cut in cuts if cut <= len(raw)))
    handle = SpooledTensor(file, tensor(data_type, tuple(shape), Encoding.RAW, len(raw)))
    assert (handle.dtype, handle.shape, handle.size) == (array.dtype, array.shape, array.size)
    assert handle.nbytes == handle.file_bytes == array.nbytes
    np.testing.assert_array_equal(handle.array(), array)
    start = data.draw(st.integers(0, array.size))
    stop = data.draw(st.integers(start, array.size))
    np.testing.assert_array_equal(handle.read(start, stop), array.reshape(-1)[start:stop])
    handle.close()
    assert not file.path.exists()


def test_half_precision_is_decoded_piece_by_piece(spool: Spool) -> None:
    values = np.array([1.0, -2.5, 65504.0, np.inf, 0.0, 3.140625], np.float32)
    half = values.astype(np.float16).tobytes()
    brain = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()  # exact: the lower bits are 0
    exact = [0, 1, 3, 4, 5]
    for encoding, raw in ((Encoding.FLOAT16, half), (Encoding.BFLOAT16, brain)):
        handle = SpooledTensor(stored(spool, raw), tensor(DataType.FLOAT32, (2, 3), encoding, len(raw)))
        assert (handle.dtype, handle.nbytes, handle.file_bytes) == (np.float32, 24, 12)
        assert handle.array().dtype == np.float32
        np.testing.assert_array_equal(handle.array().reshape(-1)[exact], values[exact])
        np.testing.assert_array_equal(handle.read(3, 6), values[3:])


@pytest.mark.parametrize(
    "changed",
    [
        {"shape": (51,)},
        {"shape": (-50,)},
        {"data_type": DataType.FLOAT64},
        {"data_type": DataType.INT32, "encoding": Encoding.FLOAT16},
        {"encoding": Encoding.BFLOAT16},
    ],
)
def test_what_does_not_fit_the_bytes_is_refused(spool: Spool, changed: dict) -> None:
    file = stored(spool, bytes(200))
    fields = {"data_type": DataType.FLOAT32, "shape": (50,), "encoding": Encoding.RAW, **changed}
    with pytest.raises(InvalidTensor):
        SpooledTensor(file, tensor(size=200, **fields))


def test_a_bool_is_nought_or_one(spool: Spool) -> None:
    handle = SpooledTensor(stored(spool, b"\0\1\2"), tensor(DataType.BOOL, (3,), Encoding.RAW, 3))
    assert handle.read(0, 2).tolist() == [False, True]
    with pytest.raises(InvalidTensor, match="0 or 1"):
        handle.array()


def test_other_bytes_than_the_digest_says_come_again(spool: Spool) -> None:
    file = spool.file(hashlib.sha256(b"right").hexdigest(), 5)
    file.append(b"wr", 0)
    with pytest.raises(DataLoss, match="does not have the digest"):
        file.append(b"ong", 2)
    assert (file.received, file.whole) == (0, False)
    file.append(b"right", 0)
    assert file.whole


def test_what_comes_twice_is_written_once_and_nothing_is_left_out(spool: Spool) -> None:
    file = spool.file(hashlib.sha256(b"abcdef").hexdigest(), 6)
    for offset, data in ((0, b"abc"), (0, b"xy"), (1, b"..d"), (4, b"ef"), (0, b"abcdef")):
        file.append(data, offset)
    assert file.whole
    assert file.path.read_bytes() == b"abcdef"
    other = spool.file(hashlib.sha256(b"abcdef").hexdigest(), 6)
    for offset, data in ((1, b"b"), (0, b"abcdefg")):
        with pytest.raises(InvalidArgument, match=f"chunk at {offset} of 6 bytes does not follow 0"):
            other.append(data, offset)


def test_the_last_user_removes_the_file(spool: Spool, tmp_path: Path) -> None:
    file = stored(spool, bytes(4))
    first = SpooledTensor(file, tensor(DataType.INT32, (1,), Encoding.RAW, 4))
    file.hold()
    second = SpooledTensor(file, tensor(DataType.INT32, (), Encoding.RAW, 4))
    first.close()
    first.close()
    assert second.array() == 0
    second.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Internal, match="closed"):
        second.read()
    with pytest.raises(NotFound, match="given up"):
        file.append(b"", 4)


def test_no_descriptor_stays_open_and_nothing_lost_sight_of_stays(spool: Spool, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    files = [stored(spool, bytes([n])) for n in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(list(tmp_path.iterdir())) == 50
    del files
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_start_empties_the_folder(tmp_path: Path) -> None:
    (tmp_path / "left").write_bytes(b"x")
    Spool(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_so_and_what_came_stays(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = spool.file(hashlib.sha256(b"abcd").hexdigest(), 4)
    file.append(b"ab", 0)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceExhausted, match="free space"):
            file.append(b"cd", 2)
    assert file.received == 2
    file.append(b"cd", 2)
    assert file.whole


def test_given_up_in_the_middle_of_a_write_nothing_stays(spool: Spool, tmp_path: Path) -> None:
    file = spool.file(hashlib.sha256(bytes(400_000)).hexdigest(), 400_000)
    refused: list[bool] = []

    def write() -> None:
        try:
            for n in range(400):
                file.append(bytes(1000), 1000 * n)
        except NotFound:
            refused.append(True)

    thread = threading.Thread(target=write)
    thread.start()
    file.release()
    thread.join()
    assert list(tmp_path.iterdir()) == []
    assert refused == ([] if file.whole else [True])
