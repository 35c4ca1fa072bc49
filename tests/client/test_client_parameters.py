"""The reader of safetensors files against the package's writer, and against files that lie."""

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from edge_attention.core.errors import DataLoss
from edge_attention.jobs.parameters import Parameters, read_safetensors

DTYPES = st.sampled_from(
    [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


@given(st.dictionaries(st.text(max_size=8), ARRAYS, max_size=5))
def test_it_reads_what_the_package_writes(arrays):
    arrays.pop("__metadata__", None)
    found = read_safetensors(save(arrays, metadata={"run": "r"}))
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert not found[name].flags.writeable


def file(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(shape, begin, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, stop]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        file({"a": entry([2], 0, 8)}),  # cut short
        file({"a": entry([2], 0, 8)}, bytes(9)),  # and too long
        file({"a": entry([3], 0, 8)}, bytes(8)),
        file({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)),  # overlap
        file({"a": entry([1], 4, 8)}, bytes(8)),  # gap
        file({"a": entry([-1], 0, 4)}, bytes(4)),
        file({"a": entry([True], 0, 4)}, bytes(4)),
        file({"a": entry([1] * 9, 0, 4)}, bytes(4)),
        file({"a": entry([0, 2**62, 2**62], 0, 0)}),
        file(b"[" * 100_000),
        file({"a": entry([1], 0, 4, "F33")}, bytes(4)),
        file({"a": entry([1], 0, 4, ["F32"])}, bytes(4)),
        file({"a": 3}),
        file([1, 2]),
        file(b"{\xff}"),
        file(b"not json"),
        (2**63).to_bytes(8, "little") + b"{}",
    ],
)
def test_it_refuses_what_is_no_such_file(data):
    with pytest.raises(DataLoss, match="version 3"):
        read_safetensors(data, "version 3")


@given(st.binary(max_size=200), st.integers(0, 200))
def test_damage_never_raises_anything_else(noise, at):
    data = bytearray(save({"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2))}))
    data[at : at + len(noise)] = noise
    with suppress(DataLoss):
        read_safetensors(bytes(data))


def test_parameters_are_a_mapping():
    parameters = Parameters({"w": np.ones(2)}, 7, "r1")
    assert dict(parameters).keys() == {"w"}
    assert (parameters.version, len(parameters)) == (7, 1)
    assert repr(parameters) == "<Parameters of run 'r1', version 7: 1 arrays>"
