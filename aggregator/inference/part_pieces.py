"""What a cut model's files say before nodes are given anything: its course, its tables, each part's pieces.

All of it blocks on the disk, and on hashing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from aggregator.inference.calls import TABLE, KnownWeight, changing_name, constant_name, weight_name
from aggregator.inference.course import Course, graphs_to_follow
from aggregator.inference.delivery import ArrayBytes, CutFiles, StoredPiece, digest_of, require_travels
from edge_attention.core.schedule.schedule import Constant, Schedule, TensorForm, Weight
from edge_attention.core.tensors import Array

__all__ = ["changing_pieces", "course_of", "pieces_of", "tables_in"]


def course_of(schedule: Schedule, files: CutFiles) -> Course:
    """The course, with what is to be known of its graphs. Blocks."""
    names = graphs_to_follow(schedule)
    if not names:
        return Course(schedule)
    from edge_attention.graphs.axes.flows import flows_of  # onnx, which few plans need here

    return Course(schedule, {n: flows_of(files.graph(schedule.graphs[n]).read_bytes()) for n in names})


def tables_in(
    schedule: Schedule, files: CutFiles, known: Mapping[Weight, KnownWeight]
) -> dict[str, frozenset[str]]:
    """By graph the inputs in which rows are looked up, of those that have large weights. Blocks."""
    names = {
        segment.graph
        for step in schedule.steps
        for segment in step.segments
        for source in segment.inputs.values()
        if isinstance(source, Weight) and source in known and known[source].nbytes >= TABLE
    }
    if not names:
        return {}
    from edge_attention.graphs.axes.flows import tables_of

    return {name: tables_of(files.graph(schedule.graphs[name]).read_bytes()) for name in names}


def pieces_of(
    deployment: str,
    shape: str,
    course: Course,
    part: int,
    files: CutFiles,
    known: dict[Weight, KnownWeight],
    changing: frozenset[str] = frozenset(),
) -> list[StoredPiece]:
    """What a node needs for the part, each piece once, but for weights of `changing`. Reads every weight that
    is not `known`."""
    schedule, found = course.schedule, dict[str, StoredPiece]()
    for weight in sorted(schedule.weights_of(part), key=lambda weight: (weight.name, str(weight.extent))):
        if weight.name in changing:
            continue
        array = files.weight(weight)
        if weight not in known:
            require_travels(weight, array)
            form = TensorForm(array.dtype.name, array.shape)
            known[weight] = KnownWeight(digest_of(ArrayBytes(array)), form)
        name = weight_name(deployment, known[weight])
        found[name] = StoredPiece(
            name,
            known[weight].digest,
            array.dtype.name,
            array.shape,
            lambda weight=weight: ArrayBytes(files.weight(weight)),  # type: ignore[misc]
        )
    constants = {
        source.name
        for one in course.parts[part]
        for source in one.segment.inputs.values()
        if isinstance(source, Constant)
    }
    for constant in sorted(constants):
        digest, spec = schedule.constants[constant].digest, schedule.constants[constant].spec
        name = constant_name(deployment, shape, schedule.constants[constant])
        found[name] = StoredPiece(
            name,
            digest_of(ArrayBytes(_constant(files.constant(digest), spec))),
            spec.dtype,
            spec.shape,
            lambda digest=digest, spec=spec: ArrayBytes(_constant(files.constant(digest), spec)),  # type: ignore[misc]
        )
    return list(found.values())


def changing_pieces(
    deployment: str, course: Course, changing: frozenset[str], read: Callable[[Weight], Array]
) -> list[list[StoredPiece]]:
    """By part, the weights of `changing`, as `read` gives them now. Each is read, and hashed, once."""
    made: dict[Weight, StoredPiece] = {}
    found: list[list[StoredPiece]] = []
    for part in range(course.schedule.parts):
        own: list[StoredPiece] = []
        weights = (w for w in course.schedule.weights_of(part) if w.name in changing)
        for weight in sorted(weights, key=lambda weight: (weight.name, str(weight.extent))):
            if weight not in made:
                array = read(weight)
                digest = digest_of(ArrayBytes(array))
                made[weight] = StoredPiece(
                    changing_name(deployment, weight),
                    digest,
                    array.dtype.name,
                    array.shape,
                    lambda weight=weight: ArrayBytes(read(weight)),  # type: ignore[misc]
                )
            own.append(made[weight])
        found.append(own)
    return found


def _constant(path: Path, spec: TensorForm) -> Array:
    return np.fromfile(path, spec.dtype).reshape(spec.shape)
