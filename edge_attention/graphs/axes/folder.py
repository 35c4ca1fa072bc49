"""A cut model on disk, as the aggregator keeps it: what a process apart writes, and what nodes are sent from.

    schedule.json            core/schedule/saved.py
    graphs/<digest>.onnx     of segments
    constants/<digest>       arrays, as they lie in memory; dtype and shape are the schedule's
    weights.json             initializer -> where its bytes are in the model's file or beside it

Weights stay in the model's own file, and are read from there piece by piece.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from edge_attention.core.errors import DataLoss, NotFound
from edge_attention.core.schedule.extents import take
from edge_attention.core.schedule.saved import dumps, loads
from edge_attention.core.schedule.schedule import Schedule, Weight
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.emit import Emitted
from edge_attention.graphs.axes.model_reading import OpenModel, WeightPlace, mapped

__all__ = ["CutFolder", "write_cut", "write_file", "write_weights"]


def write_cut(emitted: Emitted, model: OpenModel, folder: Path) -> None:
    """Write all of a cut into `folder`, which is made. What is there already of the same digest stays.

    Raises OSError as the disk does.
    """
    for name in ("graphs", "constants"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for digest, data in emitted.graphs.items():
        write_file(folder / "graphs" / f"{digest}.onnx", data)
    for digest, value in emitted.constants.items():
        write_file(folder / "constants" / digest, value.tobytes())
    needed = frozenset(
        source.name
        for step in emitted.schedule.steps
        for segment in step.segments
        for source in segment.inputs.values()
        if isinstance(source, Weight)
    )
    write_weights(model, needed, folder)
    # Last: a folder that has it has all.
    write_file(folder / "schedule.json", dumps(emitted.schedule).encode())


def write_weights(model: OpenModel, needed: frozenset[str], folder: Path) -> None:
    """Write where these initializers are; of small ones, what they are. Raises OSError as the disk does."""
    places = {name: _row(place) for name, place in model.places.items() if name in needed}
    small = {
        tensor.name: _held(numpy_helper.to_array(tensor))
        for tensor in model.model.graph.initializer
        if tensor.name in needed and tensor.name not in places
    }
    write_file(folder / "weights.json", json.dumps({"places": places, "small": small}).encode())


class CutFolder:
    """Reads what `write_cut` wrote. Each call blocks for as long as the disk does.

    Args:
        model: the model's file, as it was when it was cut.
        folder: of the cut.
    """

    def __init__(self, model: Path, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._weights: Mapping[str, Array | WeightPlace] | None = None

    def schedule(self) -> Schedule:
        """Raises DataLoss: it is not there, or is damaged."""
        return loads(self._text("schedule.json"))

    def graph(self, digest: str) -> Path:
        """The file of a graph."""
        return self._folder / "graphs" / f"{digest}.onnx"

    def constant(self, digest: str) -> Path:
        """The file that has an array's bytes, in C order, little-endian."""
        return self._folder / "constants" / digest

    def weight(self, weight: Weight) -> Array:
        """The elements of a piece: mapped from the model's file where it is one range of it.

        Raises:
            NotFound: the cut has no such weight.
            DataLoss: the model's file is gone, or shorter than it was.
        """
        if self._weights is None:
            self._weights = self._index()
        found = self._weights.get(weight.name)
        if found is None:
            raise NotFound(f"the cut has no weight {weight.name[:80]!r}")
        whole = mapped(self._model, found) if isinstance(found, WeightPlace) else found
        try:
            return take(whole, weight.extent)
        except (ValueError, IndexError) as error:
            raise DataLoss(f"{weight.name[:80]!r} is another than when the model was cut: {error}") from None

    def _index(self) -> dict[str, Array | WeightPlace]:
        try:
            data = json.loads(self._text("weights.json"))
            found: dict[str, Array | WeightPlace] = {
                str(name): WeightPlace(str(file), int(offset), str(dtype), tuple(map(int, shape)))
                for name, (file, offset, dtype, shape) in data["places"].items()
            }
            for name, (dtype, shape, held) in data["small"].items():
                found[str(name)] = np.frombuffer(bytes.fromhex(held), dtype).reshape(shape)
        except (ValueError, KeyError, TypeError) as error:
            raise DataLoss(f"weights.json cannot be read ({error}): deploy the model again") from None
        return found

    def _text(self, name: str) -> str:
        try:
            return (self._folder / name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise DataLoss(f"{name} of a cut model cannot be read ({error}): deploy it again") from None


def _row(place: WeightPlace) -> list[Any]:
    return [place.file, place.offset, place.dtype, list(place.shape)]


def _held(value: Array) -> list[Any]:
    return [value.dtype.name, list(value.shape), value.tobytes().hex()]


def write_file(path: Path, data: bytes) -> None:
    """All of it or nothing; what is there of a digest stays."""
    if path.exists() and path.suffix != ".json":
        return
    beside = path.with_name(f"{path.name}.part")
    beside.write_bytes(data)
    beside.replace(path)
