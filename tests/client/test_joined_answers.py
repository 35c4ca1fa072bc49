"""One answer of the replies to a divided call: it stands on what all of its queries' replies stand on."""

from __future__ import annotations

import numpy as np

from edge_attention.client.results import join
from edge_attention.core.messages.attention import AttendResponse, Missing


def reply(coverage, *missing):
    out, lse = np.zeros((1, 2, 3), np.float32), np.zeros((1, 2), np.float32)
    return AttendResponse(out, lse, not missing, coverage, (), 1000, missing=missing)


def gap(*stretches):
    bounds = tuple(edge for part in stretches for edge in (part.start, part.stop))
    whole = range(stretches[0].start, stretches[-1].stop)
    several = bounds if len(stretches) > 1 else ()
    return Missing("s1", whole, ("b",), "node 'b' is lost", sum(map(len, stretches)), several)


def test_what_parts_lack_of_one_shard_is_all_of_it_missing():
    """Queries of each part see other tokens of it (a window)."""
    found = join(
        [
            reply((range(500),), gap(range(500, 600))),
            reply((range(500),), gap(range(700, 720), range(740, 800))),
            reply((range(1000),)),
        ],
        1.0,
    )
    assert not found.exact
    assert found.coverage == (range(500), range(600, 700), range(720, 740), range(800, 1000))
    (lacks,) = found.missing
    assert lacks.stretches == (range(500, 600), range(700, 720), range(740, 800))
    assert (lacks.tokens, lacks.count, lacks.holders) == (range(500, 800), 180, ("b",))


def test_the_same_gap_in_every_part_is_one():
    found = join([reply((range(500),), gap(range(500, 600)))] * 3, 1.0)
    assert found.missing == (gap(range(500, 600)),)
    assert found.coverage == (range(500),)
