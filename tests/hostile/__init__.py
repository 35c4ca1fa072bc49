"""Hostile graphs, for whoever wants to try something against them: the reader, the cell, whole nodes.

    for name, data, feeds, outputs in hostile_graphs(2000, seed=0):
        ...     # whatever `data` is, no process but a cell ends, no file is read

The same arguments give the same graphs. Four kinds by turns, each until it has no more:

    by_hand.py     what once ended a node or might: integer traps, loops, strings, sequences, folds, bombs
    outside.py     data outside the file, in every place and in many encodings
    operators.py   every operator of the list, from ONNX's own tests or its schema, with extreme values
    mutation.py    real graphs, changed on the wire

`files.py` and `wire.py` are what they are made with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

# For whoever runs `python -m tests.hostile`: the files beside call each other by `hostile`.
if (TESTS := str(Path(__file__).resolve().parent.parent)) not in sys.path:
    sys.path.insert(0, TESTS)

from hostile import by_hand, mutation, operators, outside
from hostile.files import Hostile

__all__ = ["Hostile", "hostile_graphs"]


def hostile_graphs(count: int, seed: int = 0, paths: tuple[str, ...] = outside.PATHS) -> Iterator[Hostile]:
    """`count` graphs: name, bytes, feeds (arrays by input, as far as it has some), names of outputs.

    `paths`: where data outside the file is said to lie; give files that a reader of them would be told by.
    """
    kinds = [by_hand.graphs(), outside.graphs(seed, paths), operators.graphs(seed), mutation.graphs(seed)]
    while True:
        for kind in list(kinds):
            if count <= 0:
                return
            made = next(kind, None)
            if made is None:
                kinds.remove(kind)
                continue
            yield made
            count -= 1
