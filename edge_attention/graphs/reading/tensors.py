"""Constants and types: whether a tensor holds what its shape says, and nothing that lies elsewhere."""

from __future__ import annotations

from math import prod
from typing import Any

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.reading.bounds import MAX_ELEMENTS, MAX_RANK
from edge_attention.graphs.reading.names import check_name

__all__ = ["BITS", "STRING", "check_tensor", "check_type"]

STRING = 8

# Element type (onnx.proto, DataType) to bits and to the field that holds it where it is not raw data. Text,
# complex numbers (nothing here computes with them) and what ONNX Runtime does not read are left out.
_HELD = {
    1: (32, "float_data"),
    2: (8, "int32_data"),
    3: (8, "int32_data"),
    4: (16, "int32_data"),
    5: (16, "int32_data"),
    6: (32, "int32_data"),
    7: (64, "int64_data"),
    9: (8, "int32_data"),
    10: (16, "int32_data"),
    11: (64, "double_data"),
    12: (32, "uint64_data"),
    13: (64, "uint64_data"),
    16: (16, "int32_data"),
    17: (8, "int32_data"),
    18: (8, "int32_data"),
    19: (8, "int32_data"),
    20: (8, "int32_data"),
    21: (4, "int32_data"),
    22: (4, "int32_data"),
    23: (4, "int32_data"),
    24: (8, "int32_data"),
    25: (2, "int32_data"),
    26: (2, "int32_data"),
}
BITS = {kind: bits for kind, (bits, _) in _HELD.items()}
_NUMBERS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_ELSEWHERE = (
    "{where}: {what} keeps its data in other files: put all into one ONNX file (save it with "
    "external_data=False)"
)


def check_tensor(tensor: Any, where: str, what: str, notes: bool) -> None:
    """Check a constant and drop what is no part of its value.

    Raises:
        InvalidGraph: its data lies elsewhere, is not what the shape says, or is of a type that is not read.
    """
    name = tensor.name
    check_name(name, where, "a constant's name")
    if name:
        what = f"{what} {name!r}"
    if tensor.HasField("data_location"):
        if tensor.data_location:
            raise InvalidGraph(_ELSEWHERE.format(where=where, what=what))
        tensor.ClearField("data_location")
    if tensor.external_data:
        raise InvalidGraph(_ELSEWHERE.format(where=where, what=what))
    if tensor.HasField("segment"):
        raise InvalidGraph(f"{where}: {what} is a segment of another; store it whole")
    if not notes:
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")
    held = _HELD.get(tensor.data_type)
    if held is None:
        raise InvalidGraph(f"{where}: {what} is {_kind(tensor.data_type)}; constants are numbers here")
    if tensor.string_data:
        raise InvalidGraph(f"{where}: {what} holds text; constants are numbers here")
    dims = list(tensor.dims)
    check_dims(dims, where, what)
    count, (bits, field) = prod(dims), held
    numbers = [name for name in _NUMBERS if getattr(tensor, name)]
    if tensor.HasField("raw_data"):
        if not numbers and len(tensor.raw_data) == (count * bits + 7) // 8:
            return
        have = f"{len(tensor.raw_data):,} bytes" + (f" and {', '.join(numbers)}" if numbers else "")
    else:
        wanted = count if bits >= 8 else (count * bits + 7) // 8
        if numbers in ([], [field]) and len(getattr(tensor, field)) == wanted:
            return
        have = (
            " and ".join(f"{len(getattr(tensor, name)):,} numbers in {name}" for name in numbers) or "nothing"
        )
    raise InvalidGraph(f"{where}: {what} of shape {dims} holds {have}: the file is damaged; export it again")


def check_dims(dims: list[int], where: str, what: str) -> None:
    if len(dims) > MAX_RANK:
        raise InvalidGraph(f"{where}: {what} has {len(dims)} dimensions, more than {MAX_RANK} (MAX_RANK)")
    if any(dim < 0 for dim in dims):
        raise InvalidGraph(f"{where}: {what} has a negative dimension, {min(dims)}; export it again")
    if prod(dim for dim in dims if dim) > MAX_ELEMENTS:
        raise InvalidGraph(
            f"{where}: the shape of {what} is larger than {MAX_ELEMENTS:,} elements (MAX_ELEMENTS)"
        )


def check_type(given: Any, where: str, what: str) -> None:
    """Check the type that a value declares: a tensor of numbers, or a sequence or an optional of those.

    Raises:
        InvalidGraph: it is anything else.
    """
    while True:
        if given.HasField("denotation"):  # to clear a field of what is not there would make it be there
            given.ClearField("denotation")
        for kind in ("map_type", "opaque_type", "sparse_tensor_type"):
            if given.HasField(kind):
                raise InvalidGraph(
                    f"{where}: {what} is a {kind.removesuffix('_type')}; only tensors are allowed"
                )
        kinds = [kind for kind in ("sequence_type", "optional_type", "tensor_type") if given.HasField(kind)]
        if len(kinds) > 1:
            raise InvalidGraph(f"{where}: {what} has several types; export it again")
        if not kinds:
            return
        if kinds[0] == "tensor_type":
            break
        given = getattr(given, kinds[0]).elem_type
    tensor = given.tensor_type
    if tensor.elem_type and tensor.elem_type not in BITS:
        raise InvalidGraph(f"{where}: {what} is {_kind(tensor.elem_type)}; encode it before the graph")
    fixed = []
    for dim in tensor.shape.dim if tensor.HasField("shape") else ():
        dim.ClearField("denotation")
        if dim.HasField("dim_value") and dim.HasField("dim_param"):
            raise InvalidGraph(f"{where}: {what} has a dimension of two meanings; export it again")
        check_name(dim.dim_param, where, f"a dimension of {what}")
        fixed.append(dim.dim_value if dim.HasField("dim_value") else 1)
    check_dims(fixed, where, what)


def _kind(number: int) -> str:
    named = {STRING: "text (element type string)", 14: "complex", 15: "complex"}
    return named.get(number, f"of element type {number}, which is not read here,")
