"""What pages say to type: command lines, calls and links, as the tests of docs/ find them."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

import edge_attention
from aggregator.main import main as aggregator
from edge_attention.cli.commands import Commands
from edge_attention.cli.main import cli
from edge_attention.client.sync import Client, Context, Run, ServedModel
from edge_node.main import main as node

ROOT = Path(__file__).parents[1]
PROGRAMS: dict[str, click.Command] = {
    "edge-attention": cli,
    "edge-aggregator": aggregator,
    "edge-node": node,
}
PAGES = sorted(
    page
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.md"))
    # What was decided once may speak of what there was then.
    if page.name != "decisions.md"
)
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
_PROGRAM = re.compile(r"(?<![\w./-])(?<!-n )(?<!-u )(?<!generic )(edge-(?:attention|aggregator|node)) (.*)")
_IN_TEXT = re.compile(_PROGRAM.pattern.removesuffix("(.*)") + r"([^\n,;:`()'*.]*)")
"""The same amid prose: up to where a command line surely ends."""
_STOPS = {"|", ">", ">>", "&&", "||", "&", ";", "<"}


@dataclass(frozen=True)
class Line:
    """A command line of a page. `whole`: it could be typed as it stands; else part of one is named."""

    text: str
    whole: bool

    def __str__(self) -> str:
        return self.text


def fences(text: str) -> list[tuple[str, str]]:
    """The fenced blocks: language and content."""
    return [(found[1], found[2]) for found in _FENCE.finditer(text)]


def spans(text: str) -> list[str]:
    """What stands between single backticks, outside of blocks."""
    return [" ".join(found.split()) for found in _SPAN.findall(_FENCE.sub("", text))]


def command_lines(text: str) -> list[Line]:
    """The command lines of the three programs in a page."""
    found = []
    for language, block in fences(text):
        if language in ("python", "py", "toml", "json"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            found += _lines(_PROGRAM.finditer(line), whole=language in ("console", "bash"))
    matches = (_PROGRAM.match(span) for span in spans(text))
    return found + _lines(matches, whole=False)


def _lines(matches: Iterable[re.Match[str] | None], whole: bool) -> list[Line]:
    return [Line(f"{match[1]} {match[2]}", whole) for match in matches if match is not None]


def told_in_code() -> list[Line]:
    """The command lines that texts of our own code name: errors, helps, what is printed."""
    found: list[Line] = []
    for room in ("edge_attention", "edge_node", "aggregator"):
        for file in sorted((ROOT / room).rglob("*.py")):
            for text in _texts(ast.parse(file.read_text(encoding="utf-8"))):
                found += _lines(_IN_TEXT.finditer(text), whole=False)
    return found


def _texts(tree: ast.AST) -> Iterator[str]:
    """The strings of a module; what is put into one is an X."""
    inside: set[int] = set()
    for part in ast.walk(tree):
        if isinstance(part, ast.JoinedStr):
            inside |= {id(one) for one in part.values}
            yield "".join(
                one.value if isinstance(one, ast.Constant) and isinstance(one.value, str) else "X"
                for one in part.values
            )
        elif isinstance(part, ast.Constant) and isinstance(part.value, str) and id(part) not in inside:
            yield part.value


def words(line: str) -> list[str]:
    """Of a command line, as a shell would cut it; up to a pipe. Brackets of a usage line do not count."""
    plain = re.sub(r"[\[\]]", " ", re.sub(r"<[A-Z_]+>", "X", line))
    try:
        cut = shlex.split(plain, comments=True)
    except ValueError:  # an apostrophe of prose after it
        cut = plain.split()
    end = next((at for at, word in enumerate(cut) if word in _STOPS or word.startswith("2>")), len(cut))
    # Alternatives, and what is left out.
    return [word for word in cut[:end] if word not in ("...", "…")]


def complaint(line: Line) -> str:
    """What is wrong with a command line: a command or an option that is not there; "": nothing."""
    program, *rest = words(line.text)
    return _complaint(PROGRAMS[program], program, rest, line.whole)


def _complaint(command: click.Command, path: str, rest: list[str], whole: bool) -> str:
    below = command.commands if isinstance(command, Commands) else {}
    if rest and rest[0] in below:
        return _complaint(below[rest[0]], f"{path} {rest[0]}", rest[1:], whole)
    context = click.Context(command, info_name=path)
    try:
        _, left, _ = command.make_parser(context).parse_args(list(rest))
    except click.NoSuchOption as error:
        if not whole and error.option_name.endswith("-"):  # `--keep-*`
            return ""
        return f"{path}: {error.format_message()}"
    except click.UsageError as error:  # its option lacks the value
        return f"{path}: {error.format_message()}" if whole else ""
    if isinstance(command, click.Group):
        if not left:
            return ""
        sub = command.get_command(context, left[0])
        if sub is None:
            amid_prose = not whole and left[0] != rest[0]
            return "" if amid_prose else f"{path}: no command {left[0]!r}"
        return _complaint(sub, f"{path} {left[0]}", left[1:], whole)
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    if whole and left and not arguments:
        return f"{path} takes no {left[0]!r}"
    return ""


def each_command() -> Iterator[tuple[str, click.Command]]:
    """Every command of the three programs, and the words it is called by."""

    def walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield path, command
        below = dict(command.commands) if isinstance(command, Commands) else {}
        if isinstance(command, click.Group):
            context = click.Context(command)
            found = ((name, command.get_command(context, name)) for name in command.list_commands(context))
            below = {name: one for name, one in found if one is not None}
        for name, one in below.items():
            yield from walk(f"{path} {name}", one)

    for program, command in PROGRAMS.items():
        yield from walk(program, command)


KINDS: dict[str, type] = {"client": Client, "context": Context, "run": Run}
"""What pages call our objects."""
_GIVE = {
    (Client, "context"): Context,
    (Client, "create_context"): Context,
    (Client, "run"): Run,
    (Client, "train"): Run,
    (Client, "model"): ServedModel,
    (Client, "deploy"): ServedModel,
}


def python_calls(page: Path) -> list[ast.Call]:
    """The calls of our objects and classes that a page has in its Python blocks and between backticks."""
    text = page.read_text(encoding="utf-8")
    texts = [block for language, block in fences(text) if language in ("python", "py")]
    found = []
    for one in (*texts, *spans(text)):
        try:
            tree = ast.parse(textwrap.dedent(one))
        except SyntaxError:  # prose, another language, or part of something
            continue
        if "tritonclient" in one:  # whose clients are called client, too
            continue
        found += [part for part in ast.walk(tree) if isinstance(part, ast.Call) and _ours(part) is not None]
    return found


def _ours(call: ast.Call) -> tuple[type | None, str] | None:
    """Whose method a call is, or None and the name of what it makes; None: nothing of ours."""
    if isinstance(call.func, ast.Name):
        made = getattr(edge_attention, call.func.id, None)
        return (None, call.func.id) if isinstance(made, type) else None
    if not isinstance(call.func, ast.Attribute):
        return None
    base = call.func.value
    if isinstance(base, ast.Name) and base.id in KINDS:
        return KINDS[base.id], call.func.attr
    if isinstance(base, ast.Call) and (of := _ours(base)) is not None and of[0] is not None:
        kind = _GIVE.get((of[0], of[1]))
        return None if kind is None else (kind, call.func.attr)
    return None


def call_complaint(call: ast.Call) -> str:
    """What is wrong with a call: a method or an argument that is not there; "": nothing."""
    found = _ours(call)
    assert found is not None
    kind, name = found
    what = getattr(edge_attention if kind is None else kind, name, None)
    if what is None:
        return f"{getattr(kind, '__name__', '')} has no {name}"
    if any(isinstance(one, ast.Starred) for one in call.args) or any(
        one.arg is None for one in call.keywords
    ):
        return ""
    args = [one for one in call.args if ast.unparse(one) != "..."]  # others, of which the page does not speak
    given = [None] * (len(args) + (kind is not None))
    try:
        inspect.signature(what).bind_partial(*given, **{str(one.arg): None for one in call.keywords})
    except TypeError as error:
        return f"{name}: {error}"
    return ""
