"""An aggregator that misbehaves does not fill a client's memory with an answer, nor gives it a wrong one."""

from __future__ import annotations

import numpy as np
import pytest

from aggregator.inference.feeds import pieces
from edge_attention.client import arriving_outputs
from edge_attention.client.arriving_outputs import ArrivingOutputs
from edge_attention.core.errors import DataLoss
from edge_attention.core.messages.inference import ModelTensor, TensorPiece
from edge_attention.core.tensors import DataType

OUTPUTS = {"y": np.arange(6, dtype=np.float32).reshape(2, 3), "z": np.int64(7), "none": np.zeros((0, 4))}


def told(arrays):
    return [ModelTensor(n, DataType.of(a.dtype), tuple(map(str, a.shape))) for n, a in arrays.items()]


def test_what_was_sent_arrives(monkeypatch):
    monkeypatch.setattr("aggregator.inference.feeds.PIECE_BYTES", 7)
    arriving = ArrivingOutputs("m")
    arrays = {name: np.asarray(value) for name, value in OUTPUTS.items()}
    arriving.begin(told(arrays))
    for piece in pieces(arrays):
        arriving.take(piece)
    for name, found in arriving.arrays().items():
        np.testing.assert_array_equal(found, arrays[name])
        assert found.dtype == arrays[name].dtype


FLOATS = ModelTensor("y", DataType.FLOAT32, ("2", "3"))


def piece(data=bytes(24), name="y", data_type=DataType.FLOAT32, shape=(2, 3), offset=0):
    return TensorPiece(name, data_type, shape, offset, data)


@pytest.mark.parametrize(
    ("come", "says"),
    [
        ([piece(name="other")], "no output that was told of"),
        ([piece(data_type=DataType.INT32)], "no output that was told of"),
        ([piece(shape=(3, 2))], "no output that was told of"),
        ([piece(bytes(25))], "25 bytes at 0"),
        ([piece(), piece()], "24 bytes at 0"),
        ([piece(bytes(12)), piece(bytes(16), offset=12)], "16 bytes at 12"),
        ([piece(bytes(12), offset=12)], "12 bytes at 12"),
        ([piece(bytes(12))], "did not come whole"),
        ([], "did not come whole"),
    ],
)
def test_pieces_that_are_none_of_the_outputs_are_refused(come, says):
    def answer():
        arriving = ArrivingOutputs("m")
        arriving.begin([FLOATS])
        for one in come:
            arriving.take(one)
        return arriving.arrays()

    with pytest.raises(DataLoss, match=says):
        answer()


def test_a_report_that_promises_too_much_is_refused_before_anything_is_kept(monkeypatch):
    with pytest.raises(DataLoss, match="no output"):
        ArrivingOutputs("m").take(piece())
    for shape in (("9" * 19,), ("65536", "65536"), ("-1",), ("batch",), ("\u00b2",)):
        with pytest.raises(DataLoss, match="damaged"):
            ArrivingOutputs("m").begin([ModelTensor("y", DataType.FLOAT32, shape)])
    with pytest.raises(DataLoss, match="twice"):
        ArrivingOutputs("m").begin([FLOATS, FLOATS])
    with pytest.raises(DataLoss, match="24 bytes or more"):
        ArrivingOutputs("m", 23).begin([FLOATS])
    monkeypatch.setattr(arriving_outputs, "OUTPUTS", 1)
    with pytest.raises(DataLoss, match="of 1 outputs"):
        ArrivingOutputs("m").begin([FLOATS, ModelTensor("x", DataType.FLOAT32, ("1",))])
    arriving = ArrivingOutputs("m")
    arriving.begin([FLOATS])
    with pytest.raises(DataLoss, match="two reports"):
        arriving.begin([FLOATS])
