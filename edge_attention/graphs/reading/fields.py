"""The fields of an ONNX file that this project knows, and messages to read and write them with.

A pool of its own: the package `onnx`, loaded in the same process or not, registers messages of the same form.
Numbers and types are those of onnx.proto. What is not in the table is refused by the reader; what is `bytes`
here and a message there is dropped without a look at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["FIELDS", "Field", "new_model"]

_TYPES = {"int32": 5, "int64": 3, "uint64": 4, "float": 2, "double": 1, "string": 9, "bytes": 12}
_MESSAGE = 11


class Field(NamedTuple):
    name: str
    kind: str
    """A scalar type, or the name of a message of the table."""
    repeated: bool

    @property
    def is_message(self) -> bool:
        return self.kind not in _TYPES


def _table(**messages: str) -> dict[str, dict[int, Field]]:
    """Message to number to field, from `number name kind` by line; `*`: repeated."""
    found: dict[str, dict[int, Field]] = {}
    for message, text in messages.items():
        found[message] = {}
        for line in text.strip().splitlines():
            number, name, kind = line.split()
            found[message][int(number)] = Field(name, kind.strip("*"), kind.startswith("*"))
    return found


FIELDS: Mapping[str, Mapping[int, Field]] = _table(
    Model="""
        1 ir_version int64
        2 producer_name string
        3 producer_version string
        4 domain string
        5 model_version int64
        6 doc_string string
        7 graph Graph
        8 opset_import *OperatorSet
        14 metadata_props *Note
        20 training_info *bytes
        25 functions *Function
        26 configuration *bytes
    """,
    OperatorSet="""
        1 domain string
        2 version int64
    """,
    Graph="""
        1 node *Node
        2 name string
        5 initializer *Tensor
        10 doc_string string
        11 input *Value
        12 output *Value
        13 value_info *Value
        14 quantization_annotation *bytes
        15 sparse_initializer *bytes
        16 metadata_props *Note
    """,
    Function="""
        1 name string
        4 input *string
        5 output *string
        6 attribute *string
        7 node *Node
        8 doc_string string
        9 opset_import *OperatorSet
        10 domain string
        11 attribute_proto *Attribute
        12 value_info *Value
        13 overload string
        14 metadata_props *Note
    """,
    Node="""
        1 input *string
        2 output *string
        3 name string
        4 op_type string
        5 attribute *Attribute
        6 doc_string string
        7 domain string
        8 overload string
        9 metadata_props *Note
        10 device_configurations *bytes
    """,
    Attribute="""
        1 name string
        2 f float
        3 i int64
        4 s bytes
        5 t Tensor
        6 g Graph
        7 floats *float
        8 ints *int64
        9 strings *bytes
        10 tensors *Tensor
        11 graphs *Graph
        13 doc_string string
        14 tp Type
        15 type_protos *Type
        20 type int32
        21 ref_attr_name string
        22 sparse_tensor bytes
        23 sparse_tensors *bytes
    """,
    Value="""
        1 name string
        2 type Type
        3 doc_string string
        4 metadata_props *Note
    """,
    Type="""
        1 tensor_type TensorType
        4 sequence_type ElementType
        5 map_type bytes
        6 denotation string
        7 opaque_type bytes
        8 sparse_tensor_type bytes
        9 optional_type ElementType
    """,
    TensorType="""
        1 elem_type int32
        2 shape Shape
    """,
    ElementType="""
        1 elem_type Type
    """,
    Shape="""
        1 dim *Dimension
    """,
    Dimension="""
        1 dim_value int64
        2 dim_param string
        3 denotation string
    """,
    Tensor="""
        1 dims *int64
        2 data_type int32
        3 segment bytes
        4 float_data *float
        5 int32_data *int32
        6 string_data *bytes
        7 int64_data *int64
        8 name string
        9 raw_data bytes
        10 double_data *double
        11 uint64_data *uint64
        12 doc_string string
        13 external_data *bytes
        14 data_location int32
        16 metadata_props *Note
    """,
    Note="""
        1 key string
        2 value string
    """,
)


def _factory() -> Any:
    package = "edge_attention.reading"
    # Edition 2023: text must be UTF-8, a field knows whether it was given, numbers are written packed.
    file = descriptor_pb2.FileDescriptorProto(
        name="edge_attention/reading.proto",
        package=package,
        syntax="editions",
        edition=descriptor_pb2.EDITION_2023,
    )
    for message, fields in FIELDS.items():
        made = file.message_type.add(name=message)
        for number, field in fields.items():
            one = made.field.add(name=field.name, number=number, label=3 if field.repeated else 1)
            one.type = _TYPES.get(field.kind, _MESSAGE)  # type: ignore[assignment]
            if field.is_message:
                one.type_name = f".{package}.{field.kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Model"))


_MODEL = _factory()


def new_model() -> Any:
    """An empty model, to parse into and to serialize."""
    return _MODEL()
