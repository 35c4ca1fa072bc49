"""The commands of the runbook are commands there are, with options they have."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from aggregator.main import main as aggregator
from edge_attention.cli.main import cli

ROOT = Path(__file__).parents[2]
PROGRAMS = {"edge-attention": cli, "edge-aggregator": aggregator}


def commands():
    """Each `edge-...` command in the console blocks, with the page it is on."""
    for page in ("runbook.md", "observability.md"):
        text = (ROOT / "docs" / page).read_text()
        for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                starts = [index for index, word in enumerate(words) if word in PROGRAMS]
                if starts:
                    yield " ".join(words[starts[0] :])


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_a_command_is_one(line):
    program, *words = line.split()
    command = PROGRAMS[program]
    context = click.Context(command, info_name=program)
    known = [command]
    for word in words:
        if isinstance(known[-1], click.Group):
            found = known[-1].get_command(context, word)
        else:  # cli/commands.py: a command that has commands
            found = getattr(known[-1], "commands", {}).get(word)
        if found is not None:
            known.append(found)
    options = {name for one in known for parameter in one.params for name in parameter.opts}
    names = {one.name for one in known}
    # RUN and NAME are for the reader to fill in.
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("--"):
            assert word in options, f"{line}: no option {word}"
        elif word.isalpha() and word.islower() and not before.startswith("--"):
            assert word in names, f"{line}: no command {word}"
