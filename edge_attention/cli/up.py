"""`edge-attention up`: a fleet on this machine, for development."""

from __future__ import annotations

import re
import signal
import socket
import time
from pathlib import Path
from types import FrameType

import click

from edge_attention.cli.local_fleet import AGGREGATOR, LocalFleet
from edge_attention.cli.output import print_json, say
from edge_attention.core.errors import FailedPrecondition
from edge_attention.failing import json_option, say_error

USUAL_PORT, USUAL_PAGE = 50051, 9464
"""Where commands, clients and nodes look that are told nothing else; the HTTP port as the docs have it."""
_WARNING = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback|Error:")


_EPILOG = """
\b
Example:
  edge-attention up --nodes 2 --data node-1:patients=a.csv --allow-release attention
"""


@click.command(epilog=_EPILOG)
@click.option("--nodes", "count", type=click.IntRange(1, 64), default=3, help="How many nodes.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="The aggregator's; 0: one that is free.  [default: 50051, where commands and clients look; or one "
    "that is free, where that is taken]",
)
@click.option(
    "--data",
    multiple=True,
    metavar="[NODE:]NAME=FILE",
    help="A dataset of every node, or of NODE (node-1, node-2, ...).",
)
@click.option("--allow-release", multiple=True, help="What every node lets leave; see edge-node --help.")
@click.option(
    "--allow-own-data",
    is_flag=True,
    help="For development alone: what a program brings a release of may leave, of all --data. Said loudly.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for what survives a restart: the aggregator's, and in nodes/NAME each node's.",
)
@json_option
def up(
    count: int,
    port: int | None,
    data: tuple[str, ...],
    allow_release: tuple[str, ...],
    allow_own_data: bool,
    state: Path | None,
    as_json: bool,
) -> None:
    """Start an aggregator and nodes on loopback; Ctrl-C stops them all."""
    names = [f"node-{i + 1}" for i in range(count)]
    datasets = _datasets(data, names)
    stop = StopAsked()
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        chosen = free_or_any(USUAL_PORT if port is None else port)
        if port and not chosen:
            raise FailedPrecondition(
                f"port {port} of 127.0.0.1 is taken, or not for this user; "
                "choose another --port, or leave it out"
            )
        with LocalFleet(state, chosen, _tell) as fleet:
            fleet.start_aggregator("--metrics-port", str(free_or_any(USUAL_PAGE)))
            for name in names:
                if stop.asked:
                    return
                own = [*(["--allow-own-data"] if allow_own_data else [])]
                if state is not None:  # its tokens, and by what it is told whether its data is the same
                    own += ["--store", str(state / "nodes" / name)]
                fleet.start_node(name, *own, data=datasets[name], allow_release=allow_release, wait=False)
            for name in names:
                if not stop.asked:
                    fleet.wait_ready(name)
            _print_ready(fleet, as_json)
            if allow_own_data:
                say(
                    "WARNING: --allow-own-data: whatever is computed from these nodes' data may leave them, "
                    "for anybody on this machine who asks. On boxes with data of others allow a job: "
                    "edge-attention train JOB.toml --plan says how.",
                    err=True,
                )
            _watch(fleet, stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not as_json:
        say("stopped")


def free_or_any(port: int) -> int:
    """`port` where nobody has it on 127.0.0.1, else 0: one that the system picks."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a fleet that has ended leaves
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port


class StopAsked:
    """Whether a signal has asked to stop.

    Not a threading.Event: its `set` takes a lock, which the thread that the signal interrupts may hold.
    """

    def __init__(self) -> None:
        self.asked = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def wait(self, seconds: float) -> bool:
        """Sleep so long, unless it was asked already; whether it was asked."""
        if not self.asked:
            time.sleep(seconds)
        return self.asked


def _tell(child: str, line: str) -> None:
    if _WARNING.search(line):
        say(f"{child}: {line}", err=True)


def _print_ready(fleet: LocalFleet, as_json: bool) -> None:
    page = fleet.child(AGGREGATOR).wait_for(r"page at (\S+)")[1]
    children = [{"name": child.name, "pid": child.pid} for child in fleet.children.values()]
    if as_json:
        print_json({"aggregator": fleet.address, "page": page, "children": children}, indent=None)
        return
    for child in children:
        where = f" at {fleet.address}" if child["name"] == AGGREGATOR else ""
        say(f"{child['name']}{where}, process id {child['pid']}")
    say(f"page: {page}")
    given = "" if fleet.address == f"127.0.0.1:{USUAL_PORT}" else f" --aggregator {fleet.address}"
    say(f"ready: edge-attention{given} nodes; Ctrl-C stops the fleet")


def _watch(fleet: LocalFleet, stop: StopAsked) -> None:
    """Until `stop`. A node that ends is reported and the others go on; without aggregator nothing does."""
    reported: set[str] = set()
    while not stop.wait(0.2):
        for child in fleet.children.values():
            if child.running or child.name in reported:
                continue
            reported.add(child.name)
            code, lines = child.process.poll(), child.last_lines()
            said = FailedPrecondition(f"{child.name} ended with exit code {code}; its last lines:", lines)
            if child.name == AGGREGATOR:
                raise said
            say_error(said.message)
            say("the others go on", err=True)


def _datasets(data: tuple[str, ...], names: list[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for text in data:
        key, equals, file = text.partition("=")
        node, colon, name = key.rpartition(":")
        if not (equals and name and file) or (colon and node not in found):
            raise click.BadParameter(
                f"{text!r} is not NAME=FILE or NODE:NAME=FILE with NODE one of {', '.join(names)}",
                param_hint="--data",
            )
        for each in [node] if colon else names:
            if name in found[each]:
                raise click.BadParameter(
                    f"node {each} is given {name!r} twice; give it one file", param_hint="--data"
                )
            found[each][name] = file
    return found
