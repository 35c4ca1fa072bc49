"""How a command that failed says so: in a line on stderr and, if it was given --json, as an object on stdout.

    {"error": {"name": "NotFound", "status": "NOT_FOUND", "message": "no run 'r1'; ...", "retry_after": null}}

`name` is the class of `core/errors.py`; "UsageError" where the command line itself is wrong (exit code 2),
"OSError" of a file or the system. The object is one line, the last that the command prints.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import click

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.printable import json_line, shown

_KEY = "edge_attention.failing"
_wanted: ContextVar[bool] = ContextVar("json_wanted", default=False)


def want_json(wanted: bool = True) -> None:
    """From here on what fails in this process is said as an object, too; with False no longer."""
    _wanted.set(wanted)


def _given(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    if value:
        want_json()
        ctx.meta[_KEY] = True
    # Given to a group it is meant for its command: `contexts --json list`.
    return value or _KEY in ctx.meta


json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_given, help="Print JSON instead of text."
)


def say_error(message: str) -> None:
    """Print an error to stderr. Lines after its first are indented: none passes for another error."""
    first, *more = message.split("\n")
    click.echo("\n".join(map(shown, (first, *(f"    {line.strip()}" for line in more)))), err=True)


def say_failure(program: str, name: str, status: str, message: str, retry_after: float | None = None) -> None:
    """Say an error: as a line on stderr, and as an object where that is wanted."""
    say_error(f"{program}: {message}")
    _say_object(name, status, message, retry_after)


def say_usage(error: click.ClickException, arguments: Sequence[str]) -> None:
    """Say what is wrong in the command line: as click does, and as an object.

    Args:
        arguments: all of the command line. What is wrong in it may have kept click from coming to --json.
    """
    error.show()
    context = getattr(error, "ctx", None)
    if context is not None and "--json" in arguments and json_option_of(context.command):
        want_json()
    _say_object("UsageError", "INVALID_ARGUMENT", error.format_message(), None)


def json_option_of(command: click.Command) -> bool:
    """Whether `command` has --json without a value."""
    return any("--json" in one.opts and getattr(one, "is_flag", False) for one in command.params)


def _say_object(name: str, status: str, message: str, retry_after: float | None) -> None:
    if not _wanted.get():
        return
    said = {"name": name, "status": status, "message": message, "retry_after": retry_after}
    try:
        click.echo(json_line(json.dumps({"error": said})))
        sys.stdout.flush()
    except OSError:  # nobody reads it any more; it is on stderr
        pass


def run(call: Callable[[], Any], program: str, arguments: Sequence[str], traceback: bool) -> int:
    """Run a command, and say why it failed.

    Args:
        call: click's `main` of the program, with `standalone_mode=False`.
        traceback: a defect of ours is raised, and not said in a line.

    Returns:
        What the process ends with: 0 done, 1 an error, 2 bad usage, 130 interrupted, or what the command
        says.
    """
    want_json(False)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this: what is printed goes nowhere
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    out = sys.stdout
    for stream in (sys.stdout, sys.stderr):
        # In an encoding that lacks a character it is an escape, and no end of the command.
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="backslashreplace")
    try:
        result = call()
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        say_usage(error, arguments)
        return error.exit_code
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except SystemExit as end:
        # Where nobody reads the pipe click puts another stdout there, and rich ends with 1.
        if sys.stdout is not out or isinstance(end.__context__, BrokenPipeError):
            return 0
        raise
    except BrokenPipeError:
        # Whoever read the output has enough. Python would complain once more as it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except EdgeAttentionError as error:
        say_failure(program, type(error).__name__, error.status, error.message, error.retry_after)
    except OSError as error:
        said = f"{error.filename or 'the system'}: {error.strerror or error}"
        say_failure(program, "OSError", "UNKNOWN", said)
    except Exception as error:
        if traceback:
            raise
        said = (
            f"a defect: {type(error).__name__}: {error}; EDGE_ATTENTION_TRACEBACK=1 shows where it happened"
        )
        say_failure(program, "Internal", "INTERNAL", said)
    return 1


class ProgramGroup(click.Group):
    """A program of several commands, all of which fail in the same words."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        arguments = sys.argv[1:] if args is None else list(args)
        extra["standalone_mode"] = False
        call = partial(super().main, arguments, *more, **extra)
        sys.exit(run(call, self.name or "", arguments, traceback=True))
