"""The table of docs/reliability.md as data: what is promised for every fault, operation and victim.

Docs and tests cannot differ: `python -m tests.faults --page` writes the page's tables from here, and a cell
is run against what is here.
"""

from __future__ import annotations

import fnmatch
import itertools
from dataclasses import dataclass
from enum import Enum

RECOVERY = 30.0
"""Seconds after the end of a fault in which all must be well again."""

FAULTS = {
    "kill": "`kill -9`, started again after 2 s",
    "stop-10": "`SIGSTOP` for 10 s, twice the lease",
    "stop-60": "`SIGSTOP` for 60 s, longer than keepalives",
    "partition": "12 s in which nothing gets through and nobody is told",
    "slow": "a link of 16 KiB a second each way, 10 s",
    "corrupt": "a bit flipped in about every 16,000 bytes, 10 s",
    "disk-full": "no byte left on its disk, 8 s",
    "clock": "its clock an hour ahead, then an hour back, 4 s each",
    "memory": "64 KiB more in its control group, 8 s: the kernel ends it, it is started again",
    "flapping": "all connections cut every other second, 10 s",
    "half-open": "its connections die without a word; new ones work",
}
OPERATIONS = {
    "attend": "Attend, with a deadline of 2 s, over a context that lies on two nodes",
    "append": "Append 40 tokens at a time, placed by the aggregator, on nodes with a `--store`",
    "fusion": "A fusion run of three nodes",
    "federated": "A federated run of three nodes",
    "enrolment": "Enrolment and renewal, with certificates of 20 s, or four times what a client is away",
}
VICTIMS = {"node": "one node", "aggregator": "the aggregator", "client": "the client"}


class Level(Enum):
    """What calls may do while the fault lasts, and until it is over for RECOVERY seconds."""

    UNHARMED = "every call does what it does on a quiet day"
    LABELLED = "every answer is exact, or says that it is not and is within its certified bound"
    FAILS = "a call may end with an error that says what is away, within its deadline and 1 s"


@dataclass(frozen=True)
class Promise:
    """What a cell promises. `nonsense`: why there is nothing to try; then nothing is promised."""

    text: str
    level: Level = Level.FAILS
    nonsense: str = ""
    ends: bool = False
    """Whether the fault may end the victim's process."""
    reasons: bool = False
    """Whether a run may end as failed, with the reason, and be resumed."""


U, L, F = Level.UNHARMED, Level.LABELLED, Level.FAILS
NO_FILES = Promise("", nonsense="a client keeps no files here")

_ATTEND = {
    "node": {
        "*": Promise("in time: exact, or labelled with a bound", L),
        "disk-full": Promise("exact all along: nothing is written", U),
        "clock": Promise("exact all along: no wait looks at the wall clock", U),
        "kill": Promise("labelled while it is away; then exact, from its `--store`", L, ends=True),
        "memory": Promise("labelled; if it ends, as `kill -9`", L, ends=True),
    },
    "aggregator": {
        "*": Promise("fails in time; exact again"),
        "disk-full": Promise("exact all along: nothing is written", U),
        "clock": Promise("exact all along", U),
        "kill": Promise("fails in time; contexts are in `--state`, exact again", ends=True),
        "memory": Promise("fails in time; if it ends, as `kill -9`", ends=True),
    },
    "client": {
        "*": Promise("fails in time; exact again"),
        "kill": Promise("the next client is answered exactly", ends=True),
        "stop-*": Promise("ends when the client goes on; exact again"),
        "half-open": Promise("a dead connection is replaced; exact again"),
        "disk-full": NO_FILES,
        "clock": Promise("exact all along", U),
        "memory": Promise("the program may end; the next one is answered exactly", ends=True),
    },
}
_APPEND = {
    "node": {
        "*": Promise("stored whole, or refused whole and in time; what was acknowledged stays"),
        "disk-full": Promise("refused whole while it is full; what was acknowledged stays"),
        "clock": Promise("stored all along", U),
        "kill": Promise(
            "refused whole, or goes to others; what was acknowledged is in its `--store`", ends=True
        ),
        "memory": Promise("refused whole; if it ends, as `kill -9`", ends=True),
    },
    "aggregator": {
        "*": Promise("fails in time, and is there whole or not at all; what was acknowledged stays"),
        "disk-full": Promise("refused whole while it is full; what was acknowledged stays"),
        "clock": Promise("stored all along", U),
        "kill": Promise("fails in time, whole or not at all; what was acknowledged stays", ends=True),
        "memory": Promise("fails in time; if it ends, as `kill -9`", ends=True),
    },
    "client": {
        "*": Promise("fails in time, and is there whole or not at all; what was acknowledged stays"),
        "kill": Promise("the one under way is there whole or not at all", ends=True),
        "disk-full": NO_FILES,
        "clock": Promise("stored all along", U),
        "memory": Promise("the program may end; the one under way is whole or not there", ends=True),
    },
}


def _training(end: str) -> dict[str, dict[str, Promise]]:
    waits = f"the round waits for it; {end}"
    return {
        "node": {
            "*": Promise(waits),
            "disk-full": Promise(f"goes on, or ends with the reason and is resumed; {end}", reasons=True),
            "clock": Promise(f"goes on; {end}"),
            "kill": Promise(waits, ends=True),
            "memory": Promise(
                f"the round is asked again, or ends with the reason and is resumed; {end}",
                ends=True,
                reasons=True,
            ),
        },
        "aggregator": {
            "*": Promise(f"goes on afterwards; {end}"),
            "disk-full": Promise(f"goes on, or ends with the reason and is resumed; {end}", reasons=True),
            "clock": Promise(f"goes on; {end}"),
            "kill": Promise(f"goes on from the last committed version; {end}", ends=True),
            "memory": Promise(
                f"if it ends, as `kill -9`; or ends with the reason and is resumed; {end}",
                ends=True,
                reasons=True,
            ),
        },
        "client": {
            "*": Promise(f"goes on without it; it hears every round, each once; {end}"),
            "kill": Promise(f"goes on without it; the next client hears every round; {end}", ends=True),
            "disk-full": NO_FILES,
            "memory": Promise(f"goes on without it; the next client hears every round; {end}", ends=True),
        },
    }


_ENROLMENT = {
    "node": {
        "*": Promise("others enrol all along; it is back, with a certificate that is good", U),
        "kill": Promise(
            "others enrol all along; it is back with the identity in its `--store`", U, ends=True
        ),
        "clock": Promise("it renews, or enrols anew with its token, once its clock is right", U),
        "disk-full": Promise("it keeps the certificate it has, and renews once there is room", U),
        "memory": Promise("others enrol all along; if it ends, as `kill -9`", U, ends=True),
    },
    "aggregator": {
        "*": Promise("fails in time; then enrols and renews, and whoever was enrolled is known"),
        "disk-full": Promise("refused in time while it is full; then enrols and renews"),
        "clock": Promise("refused while the clock is wrong; then enrols and renews"),
        "kill": Promise(
            "fails in time; then enrols and renews, and whoever was enrolled is known", ends=True
        ),
        "memory": Promise("fails in time; if it ends, as `kill -9`", ends=True),
    },
    "client": {
        "*": Promise("fails in time; then enrols and renews"),
        "kill": Promise("the next client goes on with the identity kept", ends=True),
        "clock": Promise(
            "certificates do not fit its clock meanwhile, and it says so; then enrols and renews"
        ),
        "disk-full": Promise("refused in time: nothing can be kept; then enrols and renews"),
        "memory": Promise("the program may end; the next one goes on with the identity kept", ends=True),
    },
}
_TABLE = {
    "attend": _ATTEND,
    "append": _APPEND,
    "fusion": _training("ends where the undisturbed run ends, to 1e-4"),
    "federated": _training("ends with the bits of the undisturbed run"),
    "enrolment": _ENROLMENT,
}

TOLERANCE = {"fusion": 1e-4, "federated": 0.0}
"""How far the parameters of a disturbed run may be from those of an undisturbed one."""


@dataclass(frozen=True, order=True)
class Cell:
    """A place in the table."""

    fault: str
    operation: str
    victim: str

    def __str__(self) -> str:
        return f"{self.fault}/{self.operation}/{self.victim}"

    @property
    def promise(self) -> Promise:
        """The most particular one: a name before a pattern, a pattern before `*`."""
        found = _TABLE[self.operation][self.victim]
        if self.fault in found:
            return found[self.fault]
        return next((found[p] for p in found if p != "*" and fnmatch.fnmatch(self.fault, p)), found["*"])


CELLS = [Cell(*names) for names in itertools.product(FAULTS, OPERATIONS, VICTIMS)]
"""All of them, those that make no sense included."""

QUICK = [
    Cell(*name.split("/"))
    for name in (
        "stop-60/attend/node",  # the longest first
        "stop-60/federated/aggregator",
        "kill/attend/node",
        "kill/append/aggregator",
        "kill/fusion/node",
        "kill/federated/client",
        "kill/enrolment/aggregator",
        "stop-10/append/node",
        "stop-10/fusion/aggregator",
        "stop-10/enrolment/client",
        "partition/attend/aggregator",
        "partition/append/client",
        "partition/federated/node",
        "slow/attend/client",
        "slow/fusion/node",
        "corrupt/attend/node",
        "corrupt/append/aggregator",
        "corrupt/federated/node",
        "corrupt/fusion/aggregator",
        "disk-full/append/node",
        "disk-full/federated/aggregator",
        "disk-full/enrolment/aggregator",
        "clock/attend/aggregator",
        "clock/enrolment/node",
        "memory/append/node",
        "memory/federated/aggregator",
        "flapping/append/node",
        "flapping/fusion/client",
        "half-open/attend/client",
        "half-open/federated/node",
        "half-open/enrolment/node",
    )
]
"""What CI runs: every fault, every operation, every victim."""


def chosen(patterns: tuple[str, ...], quick: bool) -> list[Cell]:
    """The cells that make sense, and whose names fit one of `patterns`; parts left out are any."""
    among = QUICK if quick else CELLS
    wanted = ["/".join([*p.split("/"), "*", "*"][:3]) for p in patterns] or ["*"]
    return [
        cell
        for cell in among
        if not cell.promise.nonsense and any(fnmatch.fnmatch(str(cell), p) for p in wanted)
    ]


def tables() -> str:
    """A table an operation, in Markdown."""
    parts = []
    for operation, what in OPERATIONS.items():
        lines = [f"### {what}", "", f"| at | {' | '.join(VICTIMS.values())} |", "|---|---|---|---|"]
        for fault, meaning in FAULTS.items():
            cells = [Cell(fault, operation, victim).promise for victim in VICTIMS]
            lines.append(
                f"| {meaning} | {' | '.join(c.text or f'nothing to try: {c.nonsense}' for c in cells)} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
