"""What the files below deploy/ say to the daemons, read by the daemons' own command lines."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
_COMMANDS = {"edge-node": "edge_node.main", "edge-aggregator": "aggregator.main"}
_CLIENT = "edge_attention.cli.main"


def command(program: str) -> click.Command:
    """The click command behind an entry point of pyproject.toml."""
    found = importlib.import_module(_COMMANDS[program]).main
    assert isinstance(found, click.Command)
    return found


def prefix(program: str) -> str:
    return program.upper().replace("-", "_") + "_"


def variables(program: str) -> dict[str, click.Option]:
    """Each environment variable of a daemon's options."""
    names = {}
    for option in command(program).params:
        if isinstance(option, click.Option) and option.expose_value:
            given = option.envvar or f"{prefix(program)}{option.name}".upper()
            for name in [given] if isinstance(given, str) else given:
                names[name] = option
    return names


def parsed(program: str, flags: list[str], environment: Mapping[str, str], monkeypatch) -> dict[str, object]:
    """The values the daemon would run with. Raises click.UsageError where it would refuse one.

    Variables with the daemon's prefix must be its options: the daemon itself would ignore a misspelt one.
    """
    known = variables(program)
    for name, value in environment.items():
        if name.startswith(prefix(program)):
            assert name in known, f"{program} has no option {name}; it has {', '.join(sorted(known))}"
        monkeypatch.setenv(name, value)
    context = command(program).make_context(program, flags, resilient_parsing=False)
    return context.params


def client_variables() -> set[str]:
    """Environment variables of `edge-attention` itself, before its subcommands."""
    main = importlib.import_module(_CLIENT).cli
    names = set[str]()
    for option in main.params:
        given = option.envvar or f"EDGE_ATTENTION_{option.name}".upper()
        names |= {given} if isinstance(given, str) else set(given)
    return names
