"""What exporters note in a file: which initializers train, whence they are, whose a node is.

PyTorch's exporters, and ours over them (module_note.py).
"""

from __future__ import annotations

import ast
import re

from onnx import GraphProto, ModelProto, NodeProto

from edge_attention.graphs.models.module_note import module_note

__all__ = ["folded_sources", "noted_kinds", "scope"]

_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
_FOLDED = "pkg.onnxscript.optimizer.folded_from"
_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
_SCOPES = "pkg.torch.onnx.name_scopes"
_TARGET = re.compile(r"^\S+: (PARAMETER|BUFFER|CONSTANT_TENSOR)\b.*?target='([^']*)'", re.MULTILINE)


def noted_kinds(model: ModelProto) -> tuple[dict[str, bool], set[str]]:
    """What the exporter notes: initializer to whether it trains, and the parameters that are in no file."""
    noted: dict[str, bool] = {}
    for note in model.graph.metadata_props:
        if note.key == _SIGNATURE:
            noted |= {target: kind == "PARAMETER" for kind, target in _TARGET.findall(note.value)}
    parameters = {name for name, trains in noted.items() if trains}
    gone = parameters - {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.value_info:
        for note in value.metadata_props:
            if note.key == _KIND:
                noted[value.name] = note.value == "PARAMETER"
            elif note.key == _FOLDED and parameters:
                sources = parameters.intersection(_strings(note.value))
                noted[value.name] = bool(sources)
                gone -= sources
    if (own := module_note(model.graph)) is not None:
        there = [tensor.name for tensor in model.graph.initializer]
        # All parameters are listed: any other tensor is a buffer of the module's own, or what the exporter
        # computed of sizes and constants, such as the ones and zeros of a group norm or a rotary table.
        others = there if any(name in own.trained for name in there) else (*own.frozen, *own.buffers)
        noted |= dict.fromkeys(others, False) | dict.fromkeys(own.trained, True)
        gone |= set(own.unused)
    return noted, gone


def folded_sources(graph: GraphProto) -> dict[str, str]:
    """Initializers that the exporter has computed, and what it notes them to come from."""
    return {
        value.name: note.value
        for value in graph.value_info
        for note in value.metadata_props
        if note.key == _FOLDED
    }


def scope(node: NodeProto) -> tuple[str, ...]:
    """The modules a node belongs to, outermost first; empty where the exporter does not say."""
    for note in node.metadata_props:
        if note.key == _SCOPES:
            # The last is the node itself; a module called again is noted as `name@1`.
            return tuple(part.partition("@")[0] for part in _strings(note.value)[:-1])
    return ()


def _strings(text: str) -> list[str]:
    """The strings of a list that an exporter wrote down with Python's repr."""
    try:
        found = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return []
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []
