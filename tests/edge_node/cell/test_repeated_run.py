"""What lanes share of runs alike, at the same time: each answer is read where its own head says."""

from __future__ import annotations

import socket

import numpy as np

from edge_node.cell.calls import RepeatedRun
from edge_node.cell.messages import KEPT, Channel, Placed, keep

FLOAT = np.dtype(np.float32)


def test_an_answer_is_read_as_its_own_head_says_though_another_lane_has_heard_another():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        window = np.zeros(4096, np.uint8)
        window[1024:1040] = np.frombuffer(np.arange(4, dtype=np.float32), np.uint8)
        channel = Channel(ours, window, np.zeros(4096, np.uint8))
        short = b"two", [Placed(FLOAT, (2,), -1, 1024)]
        long = b"four", [Placed(FLOAT, (4,), -1, 1024)]
        again = RepeatedRun(b"", [], short)
        assert again.results(channel, short)[0].tolist() == [0, 1]
        again.said = long  # by the other lane, after this one has compared the head
        assert again.results(channel, short)[0].tolist() == [0, 1]
        assert again.results(channel, long)[0].tolist() == [0, 1, 2, 3]
        assert again.results(channel, short)[0].tolist() == [0, 1]


def test_two_lanes_that_keep_something_at_the_same_time_forget_the_oldest_once():
    class Shared(dict):
        def __iter__(self):
            """The other lane is quicker, as soon as this one has seen which is the oldest."""
            oldest = next(iter(self.keys()))
            self.pop(oldest)
            return iter([oldest])

    kept = Shared({n: n for n in range(KEPT)})
    keep(kept, KEPT, KEPT)
    assert list(kept.keys()) == list(range(1, KEPT + 1))
