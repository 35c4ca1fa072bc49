"""Federated rounds beside Flower's: the same work, real processes on loopback, turn by turn.

Three and five nodes, a model of 10 KB and one of 50 MB, nodes that compute next to nothing: seconds and
bytes a round, peak memory, seconds from submit to the end of the first round. Then the demo's digits on both,
what an installed node takes, and the aggregator's memory with 50 nodes. Arrays differ by node and round, as
Flower sends equal ones once. With --quick: three nodes, few rounds, no 50 nodes, nothing of ours installed.
"""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks import federated_flower, federated_ours
from benchmarks.federated_table import Pair, SideBySide, side_by_side
from benchmarks.federated_work import DIGITS, SIZES
from benchmarks.idle import installed as node_installed
from benchmarks.report import Report
from benchmarks.turns import Worker

MODULES = {"ours": federated_ours.MODULE, "flower": federated_flower.MODULE}
MB = 1e6
MODEL_MB = {size: count * k * m * 4 / MB for size, (count, k, m) in SIZES.items()}
MANY = 50


@dataclass(frozen=True)
class Bounds:
    """What a round of ours and its processes may take at most."""

    seconds: float
    megabytes: float
    node: float
    server: float = 350.0


BOUNDS = {"10 KB": Bounds(0.06, 0.1, 110.0), "50 MB": Bounds(1.0, 330.0, 300.0)}
"""Seconds and megabytes of a round are bound for three nodes; memory is, for any number."""

Turns = Mapping[str, list[dict[str, Any]]]
"""Side -> what each of its turns found."""


def report(quick: bool) -> Report:
    """Both sides' figures; ours alone where Flower cannot be installed."""
    sides, skipped = ["ours", "flower"], []
    try:
        version = federated_flower.installed()["version"]
    except (OSError, subprocess.CalledProcessError) as error:
        sides, version = ["ours"], ""
        skipped.append(f"Flower: pip could not install {federated_flower.WANTED}: {error}")
    pairs: list[Pair] = []
    details: dict[str, Any] = {"flower": version}
    for size in SIZES:
        for nodes in (3,) if quick else (3, 5):
            rounds = {"ours": 10 if size == "10 KB" else 5, "flower": 3 if quick else 4}
            found = _alternate(sides, size, nodes, rounds, 1 if quick else 3)
            counted = _alternate(sides, size, nodes, dict.fromkeys(sides, 3), 1, "relay")
            pairs += rows(size, nodes, found, counted)
            details[f"{size}, {nodes} nodes"] = {"turns": found, "relayed": counted}
    found = _alternate(sides, DIGITS, 5, dict.fromkeys(sides, 5 if quick else 30), 1)
    pairs += digits_rows(found)
    details[DIGITS] = found
    if quick:
        skipped += [f"{MANY} nodes: --quick", "what a node of ours takes installed: --quick"]
    else:
        found = _alternate(["ours"], "50 MB", MANY, {"ours": 4}, 1)
        pairs += many_rows(found)
        details[f"50 MB, {MANY} nodes"] = found
    pairs += _installed(quick, "flower" in sides)
    title = f"Federated rounds, beside Flower {version or '(not installed)'}"
    return side_by_side(title, pairs, skipped, details)


def _alternate(
    sides: Iterable[str], work: str, nodes: int, rounds: Mapping[str, int], turns: int, *flags: str
) -> dict[str, list[dict[str, Any]]]:
    """What each side's turns found; they take turns, and both are there all the time."""
    with ExitStack() as stack:
        workers = {}
        for side in sides:
            workers[side] = Worker(MODULES[side], work, str(nodes), *flags)
            stack.callback(workers[side].close)
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in workers}
        for _ in range(turns):
            for side, worker in workers.items():
                found[side].append(worker.turn(rounds[side]))
    return found


def rows(size: str, nodes: int, found: Turns, counted: Turns) -> list[Pair]:
    """The pairs of one size and number of nodes. `counted`: turns with a relay before the server."""
    bounds, what = BOUNDS[size], f"{size}, {nodes} nodes"
    bound_round = nodes == 3
    private = all(turn["private_network"] for turns in found.values() for turn in turns)

    def pair(name: str, unit: str, of: Mapping[str, float], bound: float | None = None) -> Pair:
        return Pair(f"{what}: {name}", unit, of.get("ours"), of.get("flower"), bound)

    def peak(key: str) -> dict[str, float]:
        return {side: max(turn[key] for turn in turns) / MB for side, turns in found.items()}

    def mean(turns: Turns, key: str) -> dict[str, float]:
        """Megabytes a round: what the rounds after the first sent, by their number."""
        return {
            side: statistics.fmean(value for turn in its for value in turn[key]) / MB
            for side, its in turns.items()
        }

    wall = {
        side: statistics.median(value for turn in turns for value in turn["seconds"])
        for side, turns in found.items()
    }
    megabytes = bounds.megabytes if bound_round else None
    pairs = [
        pair("wall time a round", "s", wall, bounds.seconds if bound_round else None),
        pair("sent between boxes a round", "MB", mean(counted, "relayed"), megabytes),
    ]
    if private:
        pairs.append(pair("sent by all processes a round", "MB", mean(found, "loopback"), megabytes))
    pairs.append(pair("server, peak memory", "MB", peak("server"), bounds.server))
    for program in ("aggregator.main", "flower-superlink", "flwr-serverapp"):
        apart = {
            side: max(turn["server_apart"].get(program, 0) for turn in turns) / MB
            for side, turns in found.items()
        }
        pairs.append(pair(f"  of it {program}", "MB", {s: v for s, v in apart.items() if v}))
    first = {side: statistics.median(turn["first"] for turn in turns) for side, turns in found.items()}
    return [
        *(row for row in pairs if (row.ours, row.flower) != (None, None)),
        pair("one node, peak memory", "MB", peak("node"), bounds.node),
        pair("submit to the first round's end", "s", first),
    ]


def digits_rows(found: Turns) -> list[Pair]:
    """Accuracy on images that nobody trained on, and seconds of the job."""

    def pair(name: str, unit: str, key: str, scale: float = 1.0) -> Pair:
        of = {side: scale * turns[0][key] for side, turns in found.items()}
        return Pair(f"digits, 5 nodes: {name}", unit, of.get("ours"), of.get("flower"))

    rounds = len(found["ours"][0]["seconds"]) + 1
    return [
        pair(f"accuracy after {rounds} rounds", "% right", "accuracy", 100),
        pair("the whole job", "s", "job"),
    ]


def many_rows(found: Turns) -> list[Pair]:
    """The aggregator with many nodes: four models at most."""
    (turn,) = found["ours"]
    alone = turn["server_apart"]["aggregator.main"]
    what, bound = f"50 MB, {MANY} nodes", 4 * MODEL_MB["50 MB"]
    return [
        Pair(f"{what}: aggregator, peak memory", "MB", alone / MB, None, bound),
        Pair(f"{what}: with its planning process", "MB", turn["server"] / MB, None, BOUNDS["50 MB"].server),
        Pair(f"{what}: wall time a round", "s", statistics.median(turn["seconds"])),
        Pair(f"{what}: one node, peak memory", "MB", turn["node"] / MB, None, BOUNDS["50 MB"].node),
    ]


def _installed(quick: bool, flower: bool) -> list[Pair]:
    ours = None if quick else node_installed()
    theirs = federated_flower.installed() if flower else None
    if ours is None and theirs is None:
        return []
    packages, size = (len(ours[0]), ours[1]) if ours else (None, None)
    their_packages, their_size = (theirs["packages"], theirs["bytes"] / MB) if theirs else (None, None)
    return [
        Pair("a node installed", "MB", size, their_size),
        Pair("packages it brings", "packages", packages, their_packages),
    ]


__all__ = ["SideBySide", "digits_rows", "many_rows", "report", "rows"]
