"""Command lines of README, docs/ and our own messages are of commands and options that there are."""

from __future__ import annotations

import ast
import re

import click
import pytest
from documented import (
    PAGES,
    ROOT,
    Line,
    call_complaint,
    command_lines,
    complaint,
    each_command,
    fences,
    python_calls,
    spans,
    told_in_code,
)

import edge_attention


def lines():
    return {
        (page, str(line)): line for page in PAGES for line in command_lines(page.read_text(encoding="utf-8"))
    }


LINES = lines()


def test_there_are_many_of_them():
    assert len(LINES) > 120


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("edge-attention train job.toml --nothing", "No such option"),
        ("edge-attention trains", "no command 'trains'"),
        ("edge-attention train watch r1 --plan", "No such option"),
        ("edge-aggregator token create --name", "requires an argument"),
        ("edge-node --name a more", "takes no 'more'"),
        ("edge-attention contexts --json list | head", ""),
    ],
)
def test_what_is_none_is_seen(text, said):
    found = complaint(Line(text, whole=True))
    assert said in found if said else found == ""


@pytest.mark.parametrize(("page", "text"), LINES, ids=lambda one: getattr(one, "name", one))
def test_a_command_line_is_one(page, text):
    assert complaint(LINES[page, text]) == "", page.relative_to(ROOT)


NO_COMMANDS = ("edge-attention X", "edge-attention context 1")
"""What is put together elsewhere, and what files of contexts begin with."""
TOLD = {str(line): line for line in told_in_code() if not str(line).startswith(NO_COMMANDS)}


@pytest.mark.parametrize("text", TOLD)
def test_a_command_that_we_name_ourselves_is_one(text):
    assert complaint(TOLD[text]) == ""


OF_OTHERS = {
    "--build-arg",
    "--enable-feature",
    "--help",
    "--insecure",
    "--now",
    "--preload",
    "--service",
    "--volumes",
}
"""Options of Docker, Prometheus, grpcurl, systemd and the like that pages name, and click's own."""
OF_TOOLS = {"performance.md", "reliability.md", "files.md", "metrics.md"}
"""Pages that name options of `python -m benchmarks`, `tests` and `tools`."""


def test_every_option_that_a_page_names_is_one():
    known = {
        name
        for _, command in each_command()
        for one in command.params
        for name in (*one.opts, *one.secondary_opts)
    }
    for page in PAGES:
        if page.name not in OF_TOOLS:
            named = set(re.findall(r"`(--[a-z][a-z-]+)", page.read_text(encoding="utf-8")))
            assert named - known - OF_OTHERS == set(), page


@pytest.mark.parametrize(("path", "command"), list(each_command()), ids=str)
def test_every_command_shows_an_example(path, command):
    shown = command.get_help(click.Context(command, info_name=path))
    assert re.search(r"^ +(?:Example: )?edge-(?:attention|aggregator|node) \S", shown, re.MULTILINE), shown


def test_every_variable_that_a_page_names_is_read():
    known = {
        variable
        for path, command in each_command()
        for one in command.params
        for variable in [one.envvar, "_".join((*path.split(), str(one.name))).replace("-", "_").upper()]
    }
    code = "".join(
        file.read_text(encoding="utf-8")
        for room in ("edge_attention", "edge_node", "aggregator", "benchmarks", "tests")
        for file in (ROOT / room).rglob("*.py")
        if file.name != "test_documented.py"
    )
    of_compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"\bEDGE_(?:ATTENTION|NODE|AGGREGATOR)_[A-Z_]+[A-Z]", text))
        unread = {one for one in named - known if f'"{one}"' not in code and f"{one}:" not in of_compose}
        assert unread == set(), page


def test_every_command_is_in_the_table_of_commands():
    page = (ROOT / "docs" / "client.md").read_text(encoding="utf-8").split("## The command line")[1]
    rows = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    named = {name.split()[0] for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert {path.split()[1] for path, _ in each_command() if path.startswith("edge-attention ")} <= named


CALLS = {
    (page, ast.unparse(call)): call
    for page in PAGES
    if page.name != "errors.md"  # wrong ones, all of them
    for call in python_calls(page)
}


@pytest.mark.parametrize(("page", "text"), CALLS, ids=lambda one: getattr(one, "name", one))
def test_a_call_is_one_that_there_is(page, text):
    assert call_complaint(CALLS[page, text]) == "", page.relative_to(ROOT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("client.create_contexts('c')", "Client has no create_contexts"),
        ("context.attend(queries, causl=True)", "causl"),
        ("client.run('r').predict(rows, versions=3)", "versions"),
        ("LossSpec('mse', nothing=1)", "nothing"),
        ("run.predict(rows)", ""),
    ],
)
def test_a_call_that_is_none_is_seen(text, said):
    found = call_complaint(ast.parse(text, mode="eval").body)
    assert said in found if said else found == ""


def test_what_a_page_imports_of_us_is_there():
    found = 0
    for page in PAGES:
        for name in re.findall(r"^from edge_attention import (.*)$", page.read_text("utf-8"), re.MULTILINE):
            for one in name.split("#")[0].replace("(", "").replace(")", "").split(","):
                assert hasattr(edge_attention, one.strip()) or not one.strip(), (page, one)
                found += 1
    assert found > 10


def anchors(page):
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs" / "decisions.md"], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for file, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", page.read_text(encoding="utf-8")):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), f"{file}#{anchor}"


def test_every_target_of_make_that_a_page_names_is_one():
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        typed = "\n".join((*(block for _, block in fences(text)), *spans(text)))
        named = set(re.findall(r"^ *make ([a-z][\w-]*)", typed, re.MULTILINE))
        assert named <= known, page
