"""Boxes as people write them; what is wrong is said with its line and what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_attention.core.errors import InvalidArgument
from edge_attention.jobs.boxes_file import TEMPLATE, read_boxes

ONE = '# boxes\n[[box]]\nname = "a"\nkind = "pi5"\n'


def read(tmp_path: Path, text: str):
    path = tmp_path / "boxes.toml"
    path.write_text(text)
    return read_boxes(path)


def test_the_template_is_a_file_of_boxes(tmp_path: Path) -> None:
    boxes, links = read(tmp_path, TEMPLATE)
    assert [box.name for box in boxes] == ["kitchen-1", "kitchen-2", "kitchen-3", "hall"]
    assert boxes[0].flops == 55e9
    assert boxes[0].memory == 3e9
    assert links.to("hall").up == 5e6
    assert links.to("hall").latency == 2e-3
    assert links.hub == links.to("kitchen-1")


def test_every_key_of_the_template_can_be_said(tmp_path: Path) -> None:
    """Those that are comments in it, too."""
    text = "\n".join(
        line[2:] if line.startswith("# ") and " = " in line.partition("#")[2].partition("#")[0] else line
        for line in TEMPLATE.splitlines()
    )
    boxes, links = read(tmp_path, text)
    assert boxes[3].cores == 2
    assert boxes[3].moved == 35e9
    assert links.to("hall").medium == "wifi"
    assert links.call_seconds == 0.2e-3


def test_without_an_aggregator_its_link_costs_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, ONE)[1].hub.down == float("inf")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "there is no box"),
        ("box = 1\n", 1, "there is no box"),
        (ONE + "speed = 3\n", 5, "the key 'speed' is unknown"),
        (ONE.replace("pi5", "pi9"), 4, "'pi9' is no kind; there are pi4, pi5"),
        ('[[box]]\nname = "a"\n', 1, "say how fast 'a' is"),
        (ONE + "gflops = 3\n", 5, "by one of kind"),
        (ONE + "memory_mb = 'much'\n", 5, "it must be a number"),
        (ONE + "memory_mb = -1\n", 5, "a number above 0"),
        (ONE + "memory_mb = nan\n", 5, "a number above 0"),
        (ONE + ONE, 7, "a second box 'a'"),
        ('[[box]]\nkind = "pi5"\n', 1, "no name"),
        (ONE + "link = '5g'\n", 5, "'5g' is no link; there are local, 1gbe"),
        (ONE + "down_mbit = 0\n", 5, "above 0"),
        (ONE + "latency_ms = true\n", 5, "must be a number"),
        (ONE + "count = 1.5\n", 5, "whole number"),
        (ONE + "count = 100_000\n", 5, "at most 1,000"),
        (ONE + "cores = 2\n", 5, "said together"),
        (ONE + "[aggregator]\nlink = 3\n", 6, "it must be a string"),
        (ONE + "[aggregator]\nlinks = 3\n", 6, "did you mean 'link'?"),
        ("[other]\n" + ONE, 1, "'other' is unknown"),
        ("aggregator = 3\n" + ONE, 1, "[aggregator]"),
        ("box = [1]\n", 1, "a box is a table"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        read(tmp_path, text)
    assert f"boxes.toml, line {line}: " in error.value.message
    assert says in error.value.message
