"""A command that does its work on an argument and has commands of its own beside that."""

from __future__ import annotations

from typing import Any

import click


class Commands(click.Command):
    """`command ARGUMENT` is this command; `command NAME ...` is the command `commands[NAME]`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands: dict[str, click.Command] = {}

    def add(self, command: click.Command) -> click.Command:
        """Make `command` one of this command's own; for use as a decorator."""
        self.commands[command.name or ""] = command
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and args[0] in self.commands:
            return self.commands[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
            )
