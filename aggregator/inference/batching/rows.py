"""Several requests as one, and its answer as theirs: rows of the first axis, one after the other."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from aggregator.inference.model_answer import ModelAnswer
from edge_attention.core.errors import Internal
from edge_attention.core.tensors import Array

__all__ = ["joined", "kind_of", "padded_rows", "rows_of", "shapes_of", "shared"]


def rows_of(feeds: Mapping[str, Array]) -> int:
    """The rows that all inputs have; 0: they have not as many, or none."""
    sizes = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
    return sizes.pop() if len(sizes) == 1 else 0


def kind_of(feeds: Mapping[str, Array], partial: bool) -> Hashable:
    """What requests have in common that are alike but for their rows."""
    return partial, tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in feeds.items()))


def shapes_of(kind: Hashable, rows: int) -> dict[str, tuple[int, ...]]:
    """Of the inputs of a batch of that kind."""
    assert isinstance(kind, tuple)
    return {name: (rows, *rest) for name, _, rest in kind[1]}


def padded_rows(rows: int, most: int) -> int:
    """The next power of two; `most` beyond the last one."""
    return min(1 << (rows - 1).bit_length(), most)


def joined(requests: Sequence[Mapping[str, Array]], rows: int) -> Mapping[str, Array]:
    """The inputs of all of them, in order. Where they have fewer rows than `rows` the last one is repeated:
    what comes of it is nobody's."""
    if len(requests) == 1 and rows_of(requests[0]) == rows:
        return requests[0]
    found = {}
    for name in requests[0]:
        pieces = [one[name] for one in requests]
        lacking = rows - sum(len(piece) for piece in pieces)
        if lacking > 0:
            pieces.append(np.broadcast_to(pieces[-1][-1:], (lacking, *pieces[-1].shape[1:])))
        found[name] = np.concatenate(pieces)
    return found


def shared(answer: ModelAnswer, counts: Sequence[int], rows: int) -> list[ModelAnswer]:
    """What of the answer is each request's, of `counts` rows; `rows` of all, with those that padded it.

    Bytes are shared by rows.

    Raises:
        Internal: a result has not as many rows, which the model's analysis had said.
    """
    for name, array in answer.results.items():
        if not array.ndim or len(array) != rows:
            raise Internal(
                f"output {name!r} is {list(array.shape)} for {rows} rows: the model was taken for one whose "
                "rows do not meet; deploy it with max_batch 1"
            )
    found, start, total = [], 0, sum(counts)
    for count in counts:
        stop = start + count
        found.append(
            replace(
                answer,
                results={name: array[start:stop] for name, array in answer.results.items()},
                sent={node: size * count // total for node, size in answer.sent.items()},
                received={node: size * count // total for node, size in answer.received.items()},
                rows=rows,
            )
        )
        start = stop
    return found
