"""What the three command lines share: types of options, and logging."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edge_attention.allocator import keep_blocks
from edge_attention.core.addresses import meant_by
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.printable import shown
from edge_attention.grpc_polling import poll_directly

__all__ = [
    "ADDRESS",
    "BYTES",
    "LOG_LEVELS",
    "Daemon",
    "name_sources",
    "name_variables",
    "read_secret",
    "set_up",
    "sizes_said",
    "unknown_variables",
]

log = logging.getLogger(__name__)

LOG_LEVELS = ("debug", "info", "warning", "error")

LEAST_BYTES = 65_536
"""Nothing that a size is an option of works with less."""

_CLUSTERS = re.compile(r"SERVICE_(HOST|PORT)|PORT_\d+_(TCP|UDP|SCTP)")

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate(("k", "m", "g", "t"), start=1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]")


class _Address(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.4
    """`HOST:PORT` as (host, port); an IPv6 host stands in brackets, and keeps them."""

    name = "HOST:PORT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        if "://" in str(value):
            meant = meant_by(str(value))
            self.fail(f"{value!r} is a web address; this one is HOST:PORT, as {meant!r}", param, ctx)
        host, colon, port = str(value).rpartition(":")
        if not colon or not _HOST.fullmatch(host):
            self.fail(f"{value!r} is not HOST:PORT, as aggregator.example:50051 or [::1]:50051", param, ctx)
        if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
            self.fail(f"{port!r} in {value!r} is not a port; ports are 0 to 65535", param, ctx)
        return host, int(port)


def sizes_said(given: Sequence[str]) -> dict[str, int]:
    """The sizes of `--dimensions NAME=SIZE`, which may be repeated, by name.

    Raises:
        click.BadParameter: one is written otherwise, or named twice.
    """
    found: dict[str, int] = {}
    for one in given:
        name, _, size = one.partition("=")
        whole = size.isascii() and size.isdigit() and len(size) <= 10
        if not name or not whole or not 0 < int(size) < 1 << 31:
            raise click.BadParameter(f"{one!r} is not NAME=SIZE, as sequence=128", param_hint="--dimensions")
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice; give it one size", param_hint="--dimensions")
        found[name] = int(size)
    return found


class _Bytes(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.4
    """A number of bytes: `1048576`, `500MB`, `2GiB`."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None or match[2].lower() == "i":
            self.fail(
                f"{value!r} is not a size: write bytes, or a number with kB, MB, GB, MiB, GiB", param, ctx
            )
        size = int(float(match[1]) * _UNITS[match[2].lower()])
        if size < LEAST_BYTES:
            self.fail(f"{value!r} is {size:,} bytes; give {LEAST_BYTES:,} or more", param, ctx)
        return size


class Daemon(click.Command):
    """A program of one command. That nobody reads what it prints, as of `--help | head`, is no error."""

    def main(self, *args: Any, **extra: Any) -> Any:
        out = sys.stdout
        try:
            return super().main(*args, **extra)
        except SystemExit as end:  # click puts another stdout there then, and ends with 1
            sys.exit(end.code if sys.stdout is out else 0)


ADDRESS = _Address()
BYTES = _Bytes()


def name_variables(command: click.Command, prefix: str) -> None:
    """Give each option the environment variable of its flag: `--x-y` of `a b` is PREFIX_A_B_X_Y.

    click by itself goes by the name of the function's parameter, which is not always the flag's.
    """
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.expose_value and parameter.envvar is None:
            flag = max(parameter.opts, key=len).removeprefix("--")
            parameter.envvar = f"{prefix}_{flag}".upper().replace("-", "_")
            name_source(parameter)
    for name, sub in _commands(command).items():
        name_variables(sub, f"{prefix}_{name}")


def name_source(option: click.Option) -> None:
    """Have a refusal of the option's value name the environment variable, where it came from one.

    click names the flag alone, which nobody gave.
    """
    process = option.process_value

    def process_value(ctx: click.Context, value: Any) -> Any:
        try:
            return process(ctx, value)
        except click.BadParameter as error:
            source = ctx.get_parameter_source(option.name or "")
            if source is not ParameterSource.ENVIRONMENT:
                raise
            named = option.envvar or f"{ctx.auto_envvar_prefix}_{option.name}".upper()
            hint = f"'{max(option.opts, key=len)}' (from {named})"
            raise click.BadParameter(error.message, ctx, option, hint) from None

    option.process_value = process_value  # type: ignore[method-assign]


def name_sources(command: click.Command) -> None:
    """`name_source` for every option of a command that has click's own `auto_envvar_prefix`."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            name_source(parameter)


def unknown_variables(command: click.Command, prefix: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that begin like the command's own and set nothing, with the one that may be meant, or ""."""
    begin = f"{prefix}_"
    known = {name.removeprefix(begin) for name in _variables(command, prefix)}
    given = (name.removeprefix(begin) for name in environment if name.startswith(begin))
    found = {}
    for name in given:
        # A cluster sets ..._SERVICE_HOST, ..._PORT and the like for a Service of the daemon's name.
        if name not in known and name != "PORT" and not _CLUSTERS.match(name):
            meant = get_close_matches(name, known, 1, 0.75)
            found[begin + name] = begin + meant[0] if meant else ""
    return found


def _commands(command: click.Command) -> Mapping[str, click.Command]:
    # A group's, or those of a command that has commands beside its argument, which is no group.
    commands: Mapping[str, click.Command] = getattr(command, "commands", {})
    return commands


def _variables(command: click.Command, prefix: str) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name:
            yield f"{prefix}_{parameter.name}".upper()
    for name, sub in _commands(command).items():
        yield from _variables(sub, f"{prefix}_{name}".upper().replace("-", "_"))


def read_secret(path: Path | None, option: str) -> bytes:
    """The secret in a file; b"" without one.

    Raises:
        InvalidArgument: it is so short that it could be guessed.
    """
    secret = path.read_bytes().strip() if path else b""
    if path and len(secret) < 16:
        raise InvalidArgument(f"{option} {path} holds {len(secret)} bytes; use 16 or more, at random")
    return secret


class OneLine(logging.Formatter):
    """A message is a line, whatever a peer has put into it: control characters are shown as escapes."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        more = getattr(record, "suppressed", 0)
        return shown(super().formatMessage(record)) + (f" ({more:,} more like it)" if more else "")

    def formatException(self, ei: Any) -> str:
        # Set in: what an error says must not look like a line of the log.
        return "\n".join("  " + shown(line) for line in super().formatException(ei).splitlines())


class Seldom(logging.Filter):
    """Lets lines that are alike through, `burst` at once and `a_second` on average; the next tells how many
    were not. What a peer can have written by sending something must not fill a disk.

    Alike are those of one message before its arguments are put in. Those for debugging all go through.
    """

    def __init__(
        self, burst: float = 1000.0, a_second: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._burst = burst
        self._a_second = a_second
        self._clock = clock
        self._lock = threading.Lock()
        self._left: OrderedDict[tuple[str, str], tuple[float, float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        key = record.name, str(record.msg)[:200]
        with self._lock:
            now = self._clock()
            left, at, suppressed = self._left.pop(key, (self._burst, now, 0))
            left = min(self._burst, left + (now - at) * self._a_second)
            may = left >= 1
            self._left[key] = (left - 1, now, 0) if may else (left, now, suppressed + 1)
            while len(self._left) > _ALIKE:
                self._left.popitem(last=False)
        if may:
            record.suppressed = suppressed
        return may


_ALIKE = 1024
"""Kinds of lines that are remembered."""


def set_up(level: str) -> None:
    """What both daemons begin with, before they load gRPC: files for this user only; a log on stderr, a line
    each (time, level, message); memory that is used again."""
    # What fails is said in our words; gRPC's own would come beside them, at every try.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    poll_directly()
    # What is kept is for this user; where a group is to read something, its mode is set.
    os.umask(0o077)
    keep_blocks()
    handler = logging.StreamHandler()
    handler.addFilter(Seldom())
    handler.setFormatter(OneLine("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    context = click.get_current_context(silent=True)
    if context is not None and context.auto_envvar_prefix:
        found = unknown_variables(context.command, context.auto_envvar_prefix, os.environ)
        for name, meant in sorted(found.items()):
            said = f"; is {meant} meant?" if meant else "; --help lists the options"
            log.warning("the environment variable %s sets no option%s", name, said)
