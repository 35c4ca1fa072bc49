"""`edge-attention`: the command line of clients. Each command is a module of this package."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from edge_attention.cli.connection import Credentials, remember
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.keywords import hint
from edge_attention.failing import run, want_json
from edge_attention.options import ADDRESS, name_variables

PREFIX = "EDGE_ATTENTION"
_FILE = click.Path(dir_okay=False, path_type=Path)

_COMMANDS = {
    "attend": "edge_attention.cli.attend:attend",
    "contexts": "edge_attention.cli.contexts:contexts",
    "data": "edge_attention.cli.data:data",
    "deploy": "edge_attention.cli.deployed:deploy",
    "demo": "edge_attention.demo.command:demo",
    "doctor": "edge_attention.cli.doctor:doctor",
    "enrol": "edge_attention.cli.enrol:enrol",
    "generate": "edge_attention.cli.generate:generate",
    "ensemble": "edge_attention.cli.ensemble:ensemble",
    "infer": "edge_attention.cli.deployed:infer",
    "models": "edge_attention.cli.deployed:models",
    "nodes": "edge_attention.cli.nodes:nodes",
    "parameters": "edge_attention.cli.parameters:parameters",
    "plan": "edge_attention.cli.plan_command:plan",
    "runs": "edge_attention.cli.runs:runs",
    "predict": "edge_attention.cli.predict:predict",
    "train": "edge_attention.cli.train:train",
    "undeploy": "edge_attention.cli.deployed:undeploy",
    "simulate": "edge_attention.cli.simulate:simulate",
    "up": "edge_attention.cli.up:up",
}


class _Lazy(click.Group):
    """Imports a command when it is asked for, so that one with missing packages costs the others nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # click compares with commands that are loaded, and here none is.
        if args[0] not in _COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            meant = "; --help lists them" if args[0] == "help" else hint(args[0], _COMMANDS)
            ctx.fail(f"No such command {args[0]!r}{meant}.")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        try:
            command = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            return _unavailable(cmd_name, error.name or "a package")
        assert isinstance(command, click.Command)
        name_variables(command, f"{PREFIX}_{cmd_name}")
        return command


def _unavailable(name: str, package: str) -> click.Command:
    extra = {"demo": "demo", "plan": "aggregator"}.get(name, "cli")

    @click.command(name, context_settings={"ignore_unknown_options": True}, add_help_option=False)
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def command(rest: tuple[str, ...]) -> None:
        want_json("--json" in rest)
        raise FailedPrecondition(
            f"{name} needs {package}, which is not installed: pip install 'edge-attention[{extra}]'"
        )

    command.help = f"Not available: pip install 'edge-attention[{extra}]'."
    return command


@click.group(
    cls=_Lazy,
    context_settings={"show_default": True},
    epilog="\b\nExamples:\n"
    "  edge-attention up --nodes 2\n"
    "  edge-attention nodes\n"
    "  edge-attention --aggregator aggregator.example:50051 --token-file token train job.toml --watch\n\n"
    "Every option is also an environment variable: --aggregator is EDGE_ATTENTION_AGGREGATOR; of a "
    "command, its name comes before: --random of attend is EDGE_ATTENTION_ATTEND_RANDOM, --node of contexts "
    "append is EDGE_ATTENTION_CONTEXTS_APPEND_NODE. Options that may be repeated take several values there, "
    "separated by spaces.",
)
@click.option("--aggregator", type=ADDRESS, default="127.0.0.1:50051", help="Where the aggregator listens.")
@click.option("--token", metavar="TOKEN", help="An access token (eat_...), for an aggregator with TLS.")
@click.option("--token-file", type=_FILE, help="The same, read from a file.")
@click.option(
    "--authority",
    type=_FILE,
    help="The aggregator's authority, PEM, or a bundle of several; a token finds it by itself.",
)
@click.option(
    "--identity",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with a client certificate, made by `enrol`, instead of a token.",
)
@click.version_option(package_name="edge-attention")
@click.pass_context
def cli(
    ctx: click.Context,
    aggregator: tuple[str, int],
    token: str | None,
    token_file: Path | None,
    authority: Path | None,
    identity: Path | None,
) -> None:
    """One attention model over many small machines.

    Attend to contexts that are spread over nodes, train on data that stays where it is, deploy ONNX models in
    parts on several nodes.
    """
    ctx.obj = f"{aggregator[0]}:{aggregator[1]}"
    remember(ctx, Credentials(token, token_file, authority, identity))


name_variables(cli, PREFIX)


def main() -> None:
    """Exit codes: 0 done, 1 an error said in one line, 2 bad usage, 3 not exact, 130 interrupted."""
    sys.exit(_run())


_NUMBERS = {"integer": "is not a whole number", "float": "is not a number"}
_NUMBER = re.compile(r"is not a valid (integer|float)( range)?\b")


def _in_our_words() -> Any:
    try:
        return cli.main(prog_name="edge-attention", standalone_mode=False)
    except click.ClickException as error:
        raise _placed(error) from None


def _placed(error: click.ClickException) -> click.ClickException:
    """The error in our words; of an option that stands after the command and belongs before it, one that says
    so."""
    if isinstance(error, click.BadParameter) and _NUMBER.search(error.message):
        # In click's words a text is no "valid integer range".
        said = _NUMBER.sub(lambda found: _NUMBERS[found[1]], error.message)
        return click.BadParameter(said, error.ctx, error.param, error.param_hint)
    if isinstance(error, click.NoSuchOption) and error.ctx is not None and error.ctx.parent is not None:
        option, command = error.option_name, error.ctx.command_path.removeprefix("edge-attention ")
        if any(option in parameter.opts for parameter in cli.params):
            return click.UsageError(
                f"No such option of {command}: {option}; put it before the command, as in edge-attention "
                f"{option} ... {command}",
                error.ctx,
            )
    return error


def _run() -> int:
    return run(
        _in_our_words,
        "edge-attention",
        sys.argv[1:],
        bool(os.environ.get("EDGE_ATTENTION_TRACEBACK")),
    )


if __name__ == "__main__":
    main()
