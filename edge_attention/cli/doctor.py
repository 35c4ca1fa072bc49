"""`edge-attention doctor`: check this box, or a fleet, and name the fixes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click
from click.core import ParameterSource

from edge_attention.cli.connection import credentials
from edge_attention.cli.output import print_json, say
from edge_attention.client.aio import AsyncClient
from edge_attention.core.printable import shown
from edge_attention.doctor.examine import Busy, Questions, examine_box, examine_port, run_fleet
from edge_attention.doctor.examine_trust import TrustAsked
from edge_attention.doctor.finding import Finding, Grade, failed, skipped, worst
from edge_attention.failing import json_option
from edge_attention.options import ADDRESS, BYTES

_STYLE = {Grade.OK: "green", Grade.SKIPPED: "dim", Grade.WARNING: "yellow", Grade.FAILED: "bold red"}
_MARK = {Grade.OK: "ok", Grade.SKIPPED: "-", Grade.WARNING: "WARNING", Grade.FAILED: "FAILED"}

_EPILOG = """
Examples:

\b
  edge-attention doctor                                   # this box, and a fleet on it if there is one
  edge-attention --aggregator hub:50051 doctor            # the fleet too
  edge-attention doctor --aggregator hub:50051 --context memory --queries 4
  edge-attention doctor --aggregator hub:50051 --idle 120 # does the router keep idle streams?
  edge-attention doctor --provider cuda --threads 4       # will a node with these run well here?
  edge-attention --token-file token doctor --aggregator hub:50051   # with TLS

\b
Exit codes: 0 nothing failed (warnings are named), 1 something failed, 2 bad usage.
What each check means and what to do: docs/doctor.md.
"""


def _from(variable: str, otherwise: str | None = None) -> Callable[[], str | None]:
    """A default: what a daemon on this box is told by its own environment variable."""
    return lambda: os.environ.get(variable) or otherwise


@click.command(epilog=_EPILOG)
@click.option(
    "--aggregator",
    "own",
    type=ADDRESS,
    help="The fleet to check; the same as before the command.  [default: one on this box, if it answers]",
)
@click.option("--context", metavar="NAME", help="Also measure whether fewer nodes would be faster for it.")
@click.option("--queries", type=click.IntRange(1, 256), default=1, help="Queries at a time with --context.")
@click.option(
    "--idle",
    type=click.FloatRange(0, 3600),
    default=2.0,
    help="Seconds a stream is left idle, to see whether it is cut; NAT tables show with 120 and more.",
)
@click.option(
    "--bandwidth/--no-bandwidth", default=True, help="Send up to 4 MiB to each node and back, to time it."
)
@click.option(
    "--timeout", type=click.FloatRange(0.1, 600), default=10.0, help="Seconds any one wait may take."
)
@click.option(
    "--provider",
    default=_from("EDGE_NODE_PROVIDER", "auto"),
    show_default=False,
    help="What a node on this box is to run on, as cuda.  [default: EDGE_NODE_PROVIDER, or auto]",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=_from("EDGE_NODE_THREADS"),
    show_default=False,
    help="Threads it is started with.  [default: EDGE_NODE_THREADS, or cores]",
)
@click.option(
    "--memory-limit",
    type=BYTES,
    default=_from("EDGE_NODE_MEMORY_LIMIT"),
    show_default=False,
    help="Bytes it may store, as 2GB.  [default: EDGE_NODE_MEMORY_LIMIT, or half of what is there]",
)
@click.option(
    "--node-identity",
    type=click.Path(file_okay=False, path_type=Path),
    default=_from("EDGE_NODE_IDENTITY"),
    show_default=False,
    help="The identity folder of a node on this box.  [default: EDGE_NODE_IDENTITY]",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default=_from("EDGE_AGGREGATOR_STATE"),
    show_default=False,
    help="The state folder of an aggregator on this box.  [default: EDGE_AGGREGATOR_STATE]",
)
@click.option("--problems", is_flag=True, help="Print warnings and failures alone.")
@json_option
@click.pass_context
def doctor(
    ctx: click.Context,
    own: tuple[str, int] | None,
    context: str | None,
    queries: int,
    idle: float,
    bandwidth: bool,
    timeout: float,
    provider: str,
    threads: int | None,
    memory_limit: int | None,
    node_identity: Path | None,
    state: Path | None,
    problems: bool,
    as_json: bool,
) -> int:
    """Check this box, and the fleet of an aggregator, and name the fix.

    Each line is one check: ok, WARNING, FAILED, or - where it could not be measured, with what was measured
    and, if there is something to do, one sentence that says what. Nothing is changed anywhere.

    A node's probe sends a few small messages and at most 4 MiB to it and back; --context asks it some
    hundred queries.
    """
    address = f"{own[0]}:{own[1]}" if own else str(ctx.obj)
    host, _, port = address.rpartition(":")
    named = own is not None or _given(ctx)
    shown = credentials()
    trust = TrustAsked(shown.access, shown.token_file, shown.authority, shown.identity, node_identity, state)
    asked = Questions(
        host=host,
        port=int(port),
        trust=trust,
        timeout=timeout,
        idle=idle,
        context=context or "",
        queries=queries,
        bandwidth=bandwidth,
        provider=provider,
        threads=threads,
        memory_limit=memory_limit,
    )
    findings: list[Finding] = []
    with _progress(as_json) as busy:
        busy("checking this box")
        proxied = examine_box(asked, findings.append)
        busy(f"connecting to {address}")
        before = len(findings)
        if examine_port(asked, findings.append, proxied=proxied):
            client = partial(
                AsyncClient,
                address,
                timeout=timeout,
                token=shown.token,
                authority=shown.authority,
                identity=shown.identity,
            )
            run_fleet(client, asked, findings.append, busy)
        elif not named:
            # Nobody said there was one.
            del findings[before:]
            findings.append(
                skipped("port", "aggregator", f"none answers at {address}: only this box was checked")
            )
    if context and not any(f.check == "fewer nodes" for f in findings):
        findings.append(
            failed(
                "fewer nodes", f"context {context}", "not measured", "see above why the fleet was not asked"
            )
        )
    status = worst(findings)
    if as_json:
        print_json({"status": status, "aggregator": address, "findings": findings})
    else:
        _print(findings, problems)
    return 1 if status is Grade.FAILED else 0


def _given(ctx: click.Context) -> bool:
    """Whether somebody named the aggregator before the command, or in the environment."""
    parent = ctx.parent
    return parent is not None and parent.get_parameter_source("aggregator") is not ParameterSource.DEFAULT


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Busy]:
    """Says on stderr what is waited for, where a person sees it."""
    if quiet or not sys.stderr.isatty() or not _rich():
        yield lambda what: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda what: status.update(f"{what} ...")


def _rich() -> bool:
    """Whether tables can be drawn: a box that is only a node need not have the package."""
    return find_spec("rich") is not None


def _print(findings: Sequence[Finding], problems: bool) -> None:
    bad = {status: [f for f in findings if f.status is status] for status in (Grade.FAILED, Grade.WARNING)}
    shown = [f for f in findings if f.status in bad] if problems else findings
    if shown:
        _table(shown) if _rich() else _lines(shown)
    for status, what in ((Grade.FAILED, "failed"), (Grade.WARNING, "warning")):
        if found := bad[status]:
            plural = "s" if what == "warning" and len(found) > 1 else ""
            say(f"{len(found)} {what}{plural}: {', '.join(f'{f.check} of {f.subject}' for f in found)}")
    if not any(bad.values()):
        say(f"all {sum(f.status is Grade.OK for f in findings)} checks are ok")


def _lines(findings: Sequence[Finding]) -> None:
    for finding in findings:
        say(f"{_MARK[finding.status]:8}{finding.subject}, {finding.check}: {finding.measured}")
        if finding.fix:
            say(f"        -> {finding.fix}")


def _table(findings: Sequence[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("of", "check", "", "measured, and what to do"):
        table.add_column(column, overflow="fold")
    last = ""
    for finding in findings:
        said = Text(shown(finding.measured))
        if finding.fix:
            said.append(f"\n→ {shown(finding.fix)}", style="bold" if finding.status is Grade.FAILED else "")
        subject = finding.subject if finding.subject != last else ""
        last = finding.subject
        mark = Text(_MARK[finding.status], style=_STYLE[finding.status])
        table.add_row(shown(subject), finding.check, mark, said)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    console.print(table)
