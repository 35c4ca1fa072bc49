"""What people give as arrays: converted where that is exact or expected, or the error says what mends it."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from edge_attention.core.arrays import as_array, as_dtype, as_float32, as_int64, as_numbers
from edge_attention.core.errors import EdgeAttentionError, InvalidTensor, NotFinite

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


class Tensor:
    """What torch's do, where torch is not installed: it gives no array before it is detached and copied."""

    def __init__(self, array, grad=True, device="cuda", dtype="torch.float32"):
        self.array, self.grad, self.device, self.dtype = array, grad, device, dtype

    def detach(self):
        return Tensor(self.array, False, self.device, self.dtype)

    def cpu(self):
        return Tensor(self.array, self.grad, "cpu", self.dtype)

    def float(self):
        return Tensor(self.array, self.grad, self.device)

    def __array__(self, dtype=None, copy=None):
        if self.grad or self.device != "cpu" or self.dtype == "torch.bfloat16":
            raise TypeError("Can't call numpy() on Tensor that requires grad, is elsewhere, or is bfloat16.")
        return self.array


class Exported:
    """Of another framework, which exports by DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "given",
    [
        ROWS, ROWS.astype(np.float64), ROWS.astype(np.float16), ROWS.astype(np.longdouble),
        ROWS.astype(">f4"), ROWS.astype(">f8"), ROWS.astype(np.int64), ROWS.astype(np.uint8),
        ROWS.astype(">i2"), ROWS.tolist(),
        tuple(map(tuple, ROWS.astype(int).tolist())), list(ROWS), np.asfortranarray(ROWS), ROWS[::-1][::-1],
        np.repeat(ROWS, 2, axis=1)[:, ::2], read_only(ROWS), np.ma.array(ROWS), Tensor(ROWS),
        Tensor(ROWS, dtype="torch.bfloat16"), Exported(ROWS), memoryview(ROWS),
    ],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_all_of_these_are_the_same_array(given):
    found = as_float32(given, "keys")
    assert type(found) is np.ndarray
    assert found.dtype == np.float32
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, ROWS)


def test_what_is_right_is_not_copied():
    assert as_float32(ROWS, "keys") is ROWS
    positions = np.arange(3)
    assert as_int64(positions, "positions") is positions


def test_numbers_alone_are_arrays_without_an_axis():
    for one in (1.5, np.float64(1.5), np.float16(1.5)):
        found = as_float32(one, "b")
        assert found.shape == ()
        assert found == np.float32(1.5)


def test_float64_is_rounded_as_numpy_rounds_it():
    exact = np.array([0.1, 1 / 3, 1e-40, -0.0, 3.4e38])
    np.testing.assert_array_equal(as_float32(exact, "x"), exact.astype(np.float32))
    assert np.isnan(as_float32([np.nan], "x"))  # whoever wants finite numbers says so, by place


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ([1e300], NotFinite, r"x holds 1e\+300 at \[0\], which is past float32"),
        (
            np.array([[1, 2**24 + 1]]),
            InvalidTensor,
            r"holds 16777217; float32 is exact to 16,777,216.*astype",
        ),
        (np.array([-(2**40), 1]), InvalidTensor, "holds -1099511627776"),
        ([[1], [1, 2]], InvalidTensor, "x: list is not an array of numbers"),
        (["a"], InvalidTensor, r"x: list holds no plain numbers \(dtype <U1\)"),
        ([None, 1.0], InvalidTensor, "what is missing a number"),
        (None, InvalidTensor, "x: NoneType holds no plain numbers"),
        ({"a": 1}, InvalidTensor, "x: dict holds no plain numbers"),
        (object(), InvalidTensor, "x: object holds no plain numbers"),
        (1j, InvalidTensor, "x: complex holds no plain numbers"),
        (np.array(["2026-11-29"], "M8[D]"), InvalidTensor, r"dtype datetime64\[D\]"),
        (np.zeros(2, [("a", "f4")]), InvalidTensor, "holds no plain numbers"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), InvalidTensor, r"masked elements.*\.filled"),
        (len, InvalidTensor, "x: builtin_function_or_method"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(given, error, said):
    with pytest.raises(error, match=said):
        as_float32(given, "x")


@pytest.mark.parametrize(
    "given", [[0, 2, 5], [0.0, 2.0, 5.0], np.array([0, 2, 5], ">u2"), np.array([0, 2, 5.0], np.float16)]
)
def test_whole_numbers_are_int64(given):
    found = as_int64(given, "positions")
    assert found.dtype == np.int64
    assert found.dtype.isnative
    assert found.tolist() == [0, 2, 5]


@pytest.mark.parametrize(
    "given",
    [
        [0.5],
        [np.nan],
        [np.inf],
        [1e30],
        np.array([np.inf], np.float16),
        np.array([2**63], np.uint64),
        [True],
        ["1"],
    ],
)
def test_what_is_not_whole_is_refused(given):
    with pytest.raises(InvalidTensor, match="positions"):
        as_int64(given, "positions")


def test_another_dtype_holds_all_of_it_or_refuses():
    for dtype in (np.uint8, np.int32, np.float16, np.float64, np.bool_):
        found = as_dtype([0, 1], np.dtype(dtype), "x")
        assert found.dtype == dtype
        assert found.tolist() == [0, 1]
    assert as_dtype(0.1, np.dtype(np.float32), "x") == np.float32(0.1)
    lacking = as_dtype([1.5, np.nan], np.dtype(np.float64), "x")
    np.testing.assert_array_equal(lacking, [1.5, np.nan])
    for value, dtype in (([300], np.uint8), ([1.5], np.int32), ([0.1], np.float16), ([2], np.bool_)):
        with pytest.raises(InvalidTensor, match=r"x has dtype .* cannot hold all of it"):
            as_dtype(value, np.dtype(dtype), "x")


def test_arrays_of_any_kind_travel_in_their_own_dtype_but_floats():
    assert as_numbers(ROWS.astype(np.float64), "x").dtype == np.float32
    assert as_numbers([1, 2], "x").dtype == np.int64
    assert as_numbers(np.array([1], ">i4"), "x").dtype == np.dtype(np.int32)
    assert as_numbers([True], "x").dtype == bool


NUMBERS = of_numpy.integer_dtypes() | of_numpy.unsigned_integer_dtypes() | of_numpy.floating_dtypes()


@given(
    of_numpy.arrays(
        NUMBERS | of_numpy.boolean_dtypes(), of_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0)
    )
)
def test_a_number_is_what_it_was_or_is_refused(array):
    try:
        found = as_float32(array, "x")
    except EdgeAttentionError:
        assert array.dtype.kind in "iuf"
        big = np.abs(array.astype(np.longdouble))
        assert ((big > 2**24) if array.dtype.kind in "iu" else (big > np.finfo(np.float32).max)).any()
        return
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, array.astype(np.float32))
    if array.dtype.kind != "f":
        np.testing.assert_array_equal(found.astype(np.float64), array.astype(np.float64))


@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.booleans(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    )
)
def test_nothing_but_the_catalogue_s_errors_comes(value):
    for convert in (as_array, as_float32, as_int64, as_numbers):
        with contextlib.suppress(InvalidTensor):
            assert convert(value, "x").dtype.kind in "biuf"


def test_a_tensor_of_torch():
    torch = pytest.importorskip("torch")
    rows = torch.from_numpy(ROWS.copy())
    for one in (
        rows, rows.double(), rows.half(), rows.bfloat16(), rows.clone().requires_grad_(),
        rows.bfloat16().requires_grad_() * 1, rows.t().t(), rows.to(torch.int32),
        torch.stack([rows, rows], -1)[..., 0],
        torch.nn.Parameter(rows),
    ):  # fmt: skip
        np.testing.assert_array_equal(as_float32(one, "keys"), ROWS)
    with pytest.raises(InvalidTensor, match=r"keys: torch\.Tensor is not an array of numbers"):
        as_float32(rows.to_sparse(), "keys")


def test_tables_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS.astype(float))
    np.testing.assert_array_equal(as_float32(frame, "x"), ROWS)
    np.testing.assert_array_equal(as_float32(frame.astype("Float32"), "x"), ROWS)
    np.testing.assert_array_equal(as_int64(frame[1], "x"), [1, 5, 9])
    frame[0] = ["a", "b", "c"]
    with pytest.raises(InvalidTensor, match=r"x: pandas\.DataFrame holds no plain numbers"):
        as_float32(frame, "x")
    with pytest.raises(InvalidTensor, match=r"pandas\.Series"):
        as_float32(frame[0], "x")
