"""Runs one cell of the table in this process, and prints what came of it as one line of JSON.

    python -m tests.faults.cell FAULT/OPERATION/VICTIM FOLDER [undisturbed.npz]
    python -m tests.faults.cell undisturbed OPERATION FOLDER

The driver (`python -m tests.faults`) runs each in a process, and a mount namespace, of its own.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.core.errors import EdgeAttentionError
from tests.faults import checks, truth
from tests.faults.injectors import FAULTS
from tests.faults.promises import RECOVERY, TOLERANCE, Cell
from tests.faults.world import CALLER, LIFE, World, wait

WANTED = {
    "attend": ("attend",),
    "append": ("append",),
    "fusion": ("round",),
    "federated": ("round",),
    "enrolment": ("ask", "enrol", "renew"),
}
"""The calls that must be good before a fault, and again soon after it."""

WARM = {"attend": 10, "append": 10, "fusion": 20, "federated": 10, "enrolment": 2}
"""So many of each before the fault begins."""

TRAINING = 240.0
"""Seconds after a fault in which a training has come to its end, on a busy machine."""

RESTARTED = "ended by itself"


def run(cell: Cell, folder: Path, undisturbed: Path | None) -> dict[str, Any]:
    fault_class = FAULTS[cell.fault]
    world = World(
        folder,
        cell.operation,
        cell.victim,
        disk=fault_class.disk,
        clock=fault_class.clock,
        away=fault_class.seconds,
    )
    result: dict[str, Any] = {"cell": str(cell)}
    try:
        world.start()
        if not wait(lambda: _warm(world), 90):
            raise AssertionError(f"the operation did not begin; {world.journal()[-3:]}")
        before = world.usage()
        fault = fault_class(world)
        began = time.monotonic()
        fault.start()
        time.sleep(fault.seconds)
        fault.stop()
        over = time.monotonic()
        wrong = list(_ended(world, before, cell))
        found = wait(lambda: _well(world, over), RECOVERY + 15) or checks.recovered(
            world.journal(), WANTED[cell.operation], over
        )
        finished = _finish(world, found)
        calls = world.journal()
        lag = sum(call.lag for call in calls if call.began >= over)
        wanted = () if world.training and finished else WANTED[cell.operation]
        wrong += checks.recovery(found, wanted, lag)
        wrong += checks.deadlines(calls) + checks.numbers(calls)
        wrong += checks.promised(
            [c for c in calls if c.what != "resume"],
            cell.promise.level,
            (began - 1.0, over + RECOVERY),
            allowed=("FailedPrecondition",) if cell.promise.reasons else (),
        )
        wrong += _particular(world, cell, calls, finished, undisturbed, over)
        after = wait(lambda: None if checks.usage(before, u := world.usage()) else u, 30, every=1.0)
        wrong += checks.usage(before, after or world.usage())
        wrong += _tracebacks(world, cell)
        result |= {
            "wrong": wrong,
            "recovered": round(max(found.values(), default=0.0), 1),
            "outcomes": _outcomes(calls, began, over),
            "apart": _apart(folder, undisturbed),
        }
        if wrong:
            result["said"] = world.said()
    except Exception as error:
        result |= {
            "wrong": [f"{type(error).__name__}: {error}"],
            "trace": traceback.format_exc(),
            "said": world.said(),
        }
    finally:
        world.stop()
    return result


def _warm(world: World) -> bool:
    good = [call.what for call in world.journal() if call.outcome == "ok"]
    return all(good.count(what) >= WARM[world.operation] for what in WANTED[world.operation])


def _well(world: World, over: float) -> dict[str, float] | None:
    """The seconds each kind of call took to be good again, once all are; and the victim is."""
    calls = world.journal()
    wanted = WANTED[world.operation]
    found = checks.recovered(calls, wanted, over)
    if world.training and any(call.what == "finished" for call in calls):
        return found
    return found if set(found) == set(wanted) else None


def _ended(world: World, before: dict[str, dict[str, int]], cell: Cell) -> list[str]:
    """Processes that ended and should not have."""
    wrong = []
    for name, child in world.fleet.children.items():
        if name == CALLER and (world.training or not child.running):
            if child.running or (cell.promise.ends and name == world.child):
                continue
            if child.process.poll() == 0:
                continue
        other = child.pid != before.get(name, {}).get("pid")
        if not child.running:
            wrong.append(f"{name} {RESTARTED}, with {child.process.poll()}:{child.last_lines(8)}")
        elif other and not (name == world.child and cell.promise.ends):
            wrong.append(f"{name} {RESTARTED} and had to be started again")
    return wrong


def _finish(world: World, found: dict[str, float]) -> bool:
    """Let the operation come to its end; whether a training did."""
    child = world.fleet.child(CALLER)
    if world.training:
        # A run that does not go on is not waited for.
        seconds = TRAINING if found else 1.0
        wait(
            lambda: not child.running or any(c.what == "finished" for c in world.journal()),
            seconds,
            every=0.5,
        )
        finished = any(call.what == "finished" for call in world.journal())
    else:
        time.sleep(2.0)
        finished = False
    world.stop_caller()
    if world.training and not finished:
        child.kill()  # it follows a run that does not go on, and may do so for as long as it likes
    if not wait(lambda: not child.running, 45):
        raise AssertionError("the client hangs: its last call has no end")
    return finished


def _particular(
    world: World, cell: Cell, calls: list[Any], finished: bool, undisturbed: Path | None, over: float
) -> list[str]:
    """What is to be checked of one operation."""
    if world.training:
        if not finished:
            info = next(iter(world.direct().runs()), None)
            return [
                f"the run did not end: {info and (info.state.value, info.round, info.waiting, info.detail)}"
            ]
        wrong = checks.rounds(calls, truth.ROUNDS[cell.operation])
        apart = _apart(world.folder, undisturbed)
        if apart is not None and apart > TOLERANCE[cell.operation]:
            wrong.append(f"the run ended {apart:.3g} from the undisturbed one")
        return wrong
    if cell.operation == "append":
        return _stored(world, calls)
    if cell.operation == "enrolment":
        return _enrolled(world, calls, over)
    return []


def _apart(folder: Path, undisturbed: Path | None) -> float | None:
    mine = folder / "parameters.npz"
    return truth.apart(mine, undisturbed) if undisturbed and mine.exists() else None


def _stored(world: World, calls: list[Any]) -> list[str]:
    """What is stored, read by somebody whom no fault befell, and an answer over all of it."""
    client = world.direct()
    context = client.context(truth.CONTEXT)
    found: Any = None

    def readable() -> bool:
        nonlocal found
        try:
            tokens = context.describe().tokens
            found = truth.read(context, tokens, deadline=20.0)
        except EdgeAttentionError:
            return False
        return found is not None

    if not wait(readable, RECOVERY, every=0.5):
        return [f"what was appended cannot be read: {context.attend(truth.memory()[2]).missing}"]
    wrong = checks.stored(((int(token[0, 0]), int(token[0, 1])) for token in found), calls, truth.CHUNK)
    if wrong:
        return wrong
    parts = [truth.chunk(int(chunk)) for chunk in found[:: truth.CHUNK, 0, 0]]
    keys, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    asked = truth.memory()[2]
    outcome, said, _ = truth.judge(context.attend(asked, until=len(keys), deadline=20.0), asked, keys, values)
    return [f"all that is stored: the answer is {outcome} {said}"] if said or outcome != "ok" else []


def _enrolled(world: World, calls: list[Any], over: float) -> list[str]:
    """Whoever was enrolled is known, and the nodes are there with certificates that are good."""
    fleet: Any = world.fleet
    client = world.direct()

    def back() -> bool:
        try:
            return {n.name for n in client.nodes() if n.state.value == "ready"} >= set(world.nodes)
        except EdgeAttentionError:
            return False

    wrong = (
        []
        if wait(back, RECOVERY)
        else [f"not all nodes are back: {[(n.name, n.state) for n in client.nodes()]}"]
    )
    issued = {line["subject"] for line in fleet.audit() if line["event"] == "enrolled"}
    wrong += [
        f"{call.detail} was enrolled and is not in the audit log"
        for call in calls
        if call.what == "enrol" and call.outcome == "ok" and f"node/{call.detail}" not in issued
    ]

    def renewed() -> bool:
        since = time.time() - (time.monotonic() - over)
        names = {
            line["subject"]
            for line in fleet.audit()
            if line["event"] in ("enrolled", "renewed") and _moment(line["time"]) >= since - 1
        }
        return names >= {f"node/{name}" for name in world.nodes}

    if world.life > 2 * LIFE:
        return wrong  # not due yet; the client's own calls renew
    return wrong if wait(renewed, RECOVERY, every=0.5) else [*wrong, "a node's certificate was not renewed"]


def _moment(text: str) -> float:
    import datetime

    return datetime.datetime.fromisoformat(text).timestamp()


def _tracebacks(world: World, cell: Cell) -> list[str]:
    """No log has a traceback: whatever happens was thought of. Who is out of memory may have one."""
    return [
        f"{name} logged a traceback"
        for name, lines in world.said().items()
        if any("Traceback (most recent call last)" in line for line in lines)
        and not (cell.fault == "memory" and name == world.child)
    ]


def _outcomes(calls: list[Any], began: float, over: float) -> dict[str, int]:
    """How calls that the fault touched ended."""
    found: dict[str, int] = {}
    for call in calls:
        if began <= call.ended <= over + RECOVERY and call.outcome != "tried":
            key = call.outcome if call.what in WANTED else f"{call.what} {call.outcome}"
            found[key] = found.get(key, 0) + 1
    return found


def undisturbed(operation: str, folder: Path) -> None:
    """Train without a fault; leaves `parameters.npz` in the folder."""
    world = World(folder, operation, "client")
    try:
        world.start()
        if not wait(lambda: (folder / "parameters.npz").exists(), TRAINING):
            raise AssertionError(f"the undisturbed run did not end: {world.journal()[-3:]} {world.said()}")
    finally:
        world.stop()


def main() -> None:
    if sys.argv[1] == "undisturbed":
        undisturbed(sys.argv[2], Path(sys.argv[3]))
        return
    cell = Cell(*sys.argv[1].split("/"))
    result = run(cell, Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
