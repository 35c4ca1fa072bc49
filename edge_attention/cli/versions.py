"""Which version of a run's parameters a command is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from edge_attention.client.runs import BEST, WhichVersion

__all__ = ["best_option", "chosen_version", "version_option"]

version_option: Callable[[Any], Any] = click.option(
    "--version", type=click.IntRange(min=0), help="By default the latest; 0: the initial ones."
)
best_option: Callable[[Any], Any] = click.option(
    "--best", is_flag=True, help="Of the versions evaluated, the one with the lowest loss, instead."
)


def chosen_version(version: int | None, best: bool) -> WhichVersion:
    """As a run takes it.

    Raises:
        click.UsageError: both are given.
    """
    if best and version is not None:
        raise click.UsageError("give --version or --best, not both")
    return BEST if best else version
