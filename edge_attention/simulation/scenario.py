"""How simulated nodes misbehave: a scenario file, and what it says of each node.

seed = 3                 # of who is meant, and of when nodes fail

[[slow]]
nodes = "10%"            # a share, a number, or names
times = 4.0              # as long as its graphs take

[[failing]]
nodes = 5
every = 20.0             # seconds between two failures, on average
down = 3.0               # seconds it is away; what it was doing is lost

[[late]]
nodes = ["node-1"]
after = 10.0             # seconds after the others
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.printable import shown
from edge_attention.core.toml_text import read_toml_text

__all__ = ["NodeCourse", "courses", "read_scenario"]

_FIELDS: Mapping[str, Mapping[str, float]] = {
    "slow": {"times": 1.0},
    "failing": {"every": 0.0, "down": 0.0},
    "late": {"after": 0.0},
}
"""Table -> what it says -> the least it may be; of `every` more."""
MOST = 1e6


@dataclass(frozen=True)
class NodeCourse:
    """What becomes of one node.

    Attributes:
        times: as long as its graphs take; 1: as they do.
        every: seconds between two failures, on average; 0: none.
        down: seconds it is away after one.
        after: seconds after the others that it comes.
        seed: of when it fails.
    """

    times: float = 1.0
    every: float = 0.0
    down: float = 0.0
    after: float = 0.0
    seed: int = 0


def read_scenario(file: Path) -> dict[str, Any]:
    """The file's tables, not yet looked at.

    Raises:
        InvalidArgument: it cannot be read, or is no TOML; says where.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{file} cannot be read as a scenario: {error}") from None
    return read_toml_text(text, f"{file} cannot be read as a scenario")


def courses(scenario: Mapping[str, Any], names: Sequence[str]) -> dict[str, NodeCourse]:
    """What the scenario says of each node.

    Raises:
        InvalidArgument: it says what cannot be; names the table, its number and the remedy.
    """
    unknown = set(scenario) - {"seed", *_FIELDS}
    if unknown:
        raise InvalidArgument(
            f"a scenario has no {', '.join(map(repr, sorted(unknown)))}; it has seed and the tables "
            f"{', '.join(f'[[{name}]]' for name in _FIELDS)}"
        )
    seed = scenario.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InvalidArgument(f"seed is {seed!r}; it must be a whole number from 0 on")
    random = np.random.default_rng(seed)
    found = {name: NodeCourse(seed=seed * 1_000_003 + at) for at, name in enumerate(names)}
    for kind, fields in _FIELDS.items():
        tables = scenario.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise InvalidArgument(f"{kind} is no list of tables; write [[{kind}]]")
        for number, table in enumerate(tables, 1):
            where = f"[[{kind}]] number {number}"
            said = _numbers(table, fields, where)
            for name in _meant(table.get("nodes"), names, random, where):
                found[name] = _said(found[name], said)
    return found


def _said(course: NodeCourse, said: Mapping[str, float]) -> NodeCourse:
    """The course with what a table says; it says nothing of the seed."""
    return replace(
        course,
        times=said.get("times", course.times),
        every=said.get("every", course.every),
        down=said.get("down", course.down),
        after=said.get("after", course.after),
    )


def _numbers(table: Mapping[str, Any], fields: Mapping[str, float], where: str) -> dict[str, float]:
    unknown = set(table) - {"nodes", *fields}
    if unknown or (lacks := [name for name in fields if name not in table]):
        what = f"no {sorted(unknown)[0]!r}" if unknown else f"{lacks[0]!r} missing"
        raise InvalidArgument(f"{where}: {what}; it says nodes, {', '.join(fields)}")
    said = {}
    for name, least in fields.items():
        value = table[name]
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not (least <= value <= MOST) or (name == "every" and value == 0):
            above = "above 0" if name == "every" else f"at least {least:g}"
            raise InvalidArgument(f"{where}: {name} is {value!r}; it must be a number {above}")
        said[name] = float(value)
    return said


def _meant(nodes: Any, names: Sequence[str], random: np.random.Generator, where: str) -> list[str]:
    """The nodes that a table is about: named, or so many drawn by lot."""
    if isinstance(nodes, list) and nodes and all(isinstance(name, str) for name in nodes):
        strange = [name for name in nodes if name not in names]
        if strange:
            raise InvalidArgument(
                f"{where}: there is no node {shown(strange[0], 80)!r}; they are {names[0]} to {names[-1]}"
            )
        return nodes
    count = -1
    if isinstance(nodes, int) and not isinstance(nodes, bool):
        count = nodes
    elif isinstance(nodes, str) and nodes.endswith("%"):
        try:
            share = float(nodes[:-1])
        except ValueError:
            share = -1.0
        count = round(share / 100 * len(names)) if 0 <= share <= 100 else -1
    if not 0 <= count <= len(names):
        raise InvalidArgument(
            f"{where}: nodes is {shown(repr(nodes), 80)}; give a number up to {len(names)}, a share as "
            "'10%', or a list of names"
        )
    return [names[at] for at in sorted(random.choice(len(names), count, replace=False).tolist())]
