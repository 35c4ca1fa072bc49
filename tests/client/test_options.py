"""Types of options the three command lines share."""

from __future__ import annotations

import click
import pytest

from edge_attention.options import BYTES


@pytest.mark.parametrize(
    ("text", "size"), [("1MB", 10**6), ("64KiB", 65_536), ("2GiB", 2 << 30), ("70000", 70_000)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert BYTES.convert(text, None, None) == size


@pytest.mark.parametrize("text", ["0", "10", "1kB", "-1GB", "much", "1 i"])
def test_a_size_that_is_none_or_nothing_is_refused(text):
    with pytest.raises(click.BadParameter, match=r"is not a size|or more"):
        BYTES.convert(text, None, None)
