"""What `edge_attention.torch.export` notes in a file of the module it came from: which initializer is what.

The note is a property of the graph, so that it is still there in a trained file. It is somebody else's word,
as all of a file is: it names initializers, and decides no more than which of them are one weight each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx import GraphProto

__all__ = ["ModuleNote", "module_note", "write_note"]

KEY = "edge_attention.module"


@dataclass(frozen=True)
class ModuleNote:
    """Names are those of the module's `state_dict`.

    Attributes:
        trained: initializers that are parameters, each one weight however often it is read.
        frozen: initializers that are parameters without gradients.
        buffers: initializers that are buffers, as a batch norm's running statistics.
        tied: another name of a parameter -> the one that it has in the file.
        unused: parameters that the outputs do not depend on, which are not in the file.
        padding: tables of embeddings -> the row that lookups do not train (`padding_idx`).
    """

    trained: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    padding: Mapping[str, int] = field(default_factory=dict)


def write_note(graph: GraphProto, note: ModuleNote) -> None:
    """Note it in `graph`."""
    said = {name: list(getattr(note, name)) for name in ("trained", "frozen", "buffers", "unused")}
    graph.metadata_props.add(
        key=KEY, value=json.dumps({**said, "tied": dict(note.tied), "padding": dict(note.padding)})
    )


def module_note(graph: GraphProto) -> ModuleNote | None:
    """What is noted in `graph`; None where nothing is, or nothing that is understood."""
    text = next((note.value for note in graph.metadata_props if note.key == KEY), None)
    if text is None:
        return None
    try:
        said = json.loads(text)
        tied, padding = said["tied"], said.get("padding", {})  # a note of an earlier release has no padding
        names = {name: _names(said[name]) for name in ("trained", "frozen", "buffers", "unused")}
        _names([*tied.keys(), *tied.values(), *padding.keys()])
        if not all(isinstance(row, int) and row >= 0 for row in padding.values()):
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return ModuleNote(**names, tied=tied, padding=padding)


def _names(listed: Any) -> tuple[str, ...]:
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise TypeError
    return tuple(listed)
