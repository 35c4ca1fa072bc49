"""Where the rows of a round are drawn."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from aggregator.training.federated.work import FEW_ROWS, Work


class Drawn(Exception):
    """The rows were asked for."""


@dataclass
class Samples:
    rows: int
    drawn: int
    threads: list[int] = field(default_factory=list)

    def of_round(self, number):
        self.threads.append(threading.get_ident())
        raise Drawn


@pytest.mark.parametrize(
    ("rows", "drawn", "on_the_loop"),
    [
        (FEW_ROWS, FEW_ROWS, True),
        (FEW_ROWS + 1, 1, False),
        # Of a small dataset a round of many steps draws as many as of a large one.
        (100, FEW_ROWS + 1, False),
    ],
)
def test_rows_of_a_round_are_drawn_beside_the_loop_unless_they_are_few(rows, drawn, on_the_loop):
    samples = Samples(rows, drawn)
    programs = SimpleNamespace(
        plan=SimpleNamespace(specs=lambda encoding: {}),
        encoding=None,
        job=SimpleNamespace(push=SimpleNamespace(difference=False)),
    )
    work = Work("r", None, None, programs, None, {"a": samples})
    with pytest.raises(Drawn):
        asyncio.run(work.update("a", SimpleNamespace(number=1), lambda there: None))
    assert (samples.threads == [threading.get_ident()]) is on_the_loop
