"""Types of options the three command lines share."""

from __future__ import annotations

import logging

import click
import pytest

from edge_attention.options import BYTES, OneLine


@pytest.mark.parametrize(
    ("text", "size"), [("1MB", 10**6), ("64KiB", 65_536), ("2GiB", 2 << 30), ("70000", 70_000)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert BYTES.convert(text, None, None) == size


@pytest.mark.parametrize("text", ["0", "10", "1kB", "-1GB", "much", "1 i"])
def test_a_size_that_is_none_or_nothing_is_refused(text):
    with pytest.raises(click.BadParameter, match=r"is not a size|or more"):
        BYTES.convert(text, None, None)


def test_a_log_line_cannot_be_forged():
    formatter = OneLine("%(levelname)s %(message)s")

    def said(message, *arguments, error=None):
        info = (type(error), error, None) if error else None
        record = logging.LogRecord("x", logging.INFO, "x", 1, message, arguments, info)
        return formatter.format(record)

    forged = "x\n2026-11-25 INFO node evil registered\r\x1b[31m\x7f\x9b\u2028ä"
    line = said("refused %s", forged)
    assert line == r"INFO refused x\n2026-11-25 INFO node evil registered\r\x1b[31m\x7f\x9b\u2028ä"
    first, *rest = said("failed", error=ValueError(forged)).splitlines()
    assert first == "INFO failed"
    assert rest
    assert all(line.startswith("  ") and "\x1b" not in line for line in rest)
