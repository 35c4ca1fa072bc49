"""Files of opsets before MIN_OPSET, raised to it: from there on each operator is written in one way.

What sentence encoders, detectors and voices are exported with is of opset 9 to 12 as often as not.
"""

from __future__ import annotations

from onnx import ModelProto, version_converter

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.onnx_builder import IR_VERSION
from edge_attention.graphs.onnx_file import first_line, infer_shapes, opset_of, serialize
from edge_attention.graphs.reading import read_with_notes
from edge_attention.graphs.reading.bounds import MIN_OPSET

__all__ = ["modern"]


def modern(written: bytes, where: str) -> ModelProto:
    """The model in `written`, which the strict reader wrote; in MIN_OPSET, where it was of an older one.

    Raises:
        InvalidGraph: it has an operator that cannot be raised; says which.
    """
    model = ModelProto.FromString(written)
    version = opset_of(model)
    if version >= MIN_OPSET:
        return model
    model.ir_version = max(model.ir_version, IR_VERSION)  # constants need not be inputs any more
    try:
        raised = version_converter.convert_version(infer_shapes(model), MIN_OPSET)
    except Exception as error:  # whatever its C++ half raises
        raise InvalidGraph(
            f"{where}: opset {version} cannot be raised to {MIN_OPSET} ({first_line(error)}); export it with "
            f"opset {MIN_OPSET} or later"
        ) from None
    # What the converter wrote is judged as if somebody had sent it.
    return ModelProto.FromString(read_with_notes(serialize(raised), where))
