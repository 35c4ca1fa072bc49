"""What a cut model's files say before nodes are given anything: its course, its tables, each part's pieces.

All of it blocks on the disk, and on hashing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from aggregator.inference.calls import TABLE, KnownWeight, changing_name, constant_name, weight_name
from aggregator.inference.course import Course, graphs_to_follow
from aggregator.inference.delivery import (
    ArrayBytes,
    CutFiles,
    StoredPiece,
    digest_of,
    is_fetched,
    require_travels,
)
from aggregator.inference.known_graphs import KnownGraphs
from edge_attention.core.schedule.schedule import Constant, Schedule, TensorForm, Weight
from edge_attention.core.tensors import Array

__all__ = ["changing_pieces", "course_of", "pieces_of", "tables_in"]


def course_of(schedule: Schedule, files: CutFiles, graphs: KnownGraphs) -> Course:
    """The course, with what is to be known of its graphs. Blocks."""
    digests = {name: schedule.graphs[name] for name in graphs_to_follow(schedule)}
    return Course(
        schedule, {name: graphs.flow(one, files.graph(one).read_bytes) for name, one in digests.items()}
    )


def tables_in(
    schedule: Schedule, files: CutFiles, known: Mapping[Weight, KnownWeight], graphs: KnownGraphs
) -> dict[str, frozenset[str]]:
    """By graph the inputs in which rows are looked up, of those that have large weights. Blocks."""
    names = {
        segment.graph
        for step in schedule.steps
        for segment in step.segments
        for source in segment.inputs.values()
        if isinstance(source, Weight) and source in known and known[source].nbytes >= TABLE
    }
    digests = {name: schedule.graphs[name] for name in names}
    return {name: graphs.table(one, files.graph(one).read_bytes) for name, one in digests.items()}


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
        if weight not in known:
            array = files.weight(weight)
            require_travels(weight, array)
            form = TensorForm(array.dtype.name, array.shape)
            known[weight] = KnownWeight(digest_of(ArrayBytes(array)), form)
        name = weight_name(deployment, known[weight])
        found[name] = StoredPiece(
            name,
            known[weight].digest,
            known[weight].form.dtype,
            known[weight].form.shape,
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
            digest,  # what its file is called by; a node compares it with what it is sent
            spec.dtype,
            spec.shape,
            lambda digest=digest, spec=spec: ArrayBytes(_constant(files.constant(digest), spec)),  # type: ignore[misc]
        )
    return list(found.values())


def changing_pieces(
    deployment: str, course: Course, changing: frozenset[str], read: Callable[[Weight], Array]
) -> list[list[StoredPiece]]:
    """By part, the weights of `changing`, as `read` gives them now. Those that nodes are to fetch, by their
    digests, are read and hashed for it, once."""
    made: dict[Weight, StoredPiece] = {}
    found: list[list[StoredPiece]] = []
    for part in range(course.schedule.parts):
        own: list[StoredPiece] = []
        weights = (w for w in course.schedule.weights_of(part) if w.name in changing)
        for weight in sorted(weights, key=lambda weight: (weight.name, str(weight.extent))):
            if weight not in made:
                array = read(weight)
                digest = digest_of(ArrayBytes(array)) if is_fetched(array.nbytes) else ""
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
