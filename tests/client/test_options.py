"""Types of options the three command lines share."""

from __future__ import annotations

import subprocess
import sys

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


def test_a_message_is_one_line_of_the_log_and_a_traceback_more():
    code = """if True:
        import logging
        from edge_attention.options import set_up
        set_up("info")
        log = logging.getLogger("x")
        log.warning("node a failed: %s", "bad\\n2026-01-01 INFO    node b registered\\x1b[2J")
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("own")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, *rest = done.stderr.splitlines()
    assert first.endswith(r" WARNING node a failed: bad\x0a2026-01-01 INFO    node b registered\x1b[2J")
    assert second.endswith(" ERROR   own")
    assert rest[0] == "Traceback (most recent call last):"
