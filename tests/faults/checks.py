"""What must hold of any cell: pure functions from what was seen to sentences of what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from tests.faults.journal import Call
from tests.faults.promises import RECOVERY, Level

GRACE = 1.0
"""Seconds a call may end after its deadline."""

MEMORY = 96 * 1024 * 1024
DESCRIPTORS = 12
"""How much more of it a process may have than before: buffers and pools of connections, not a leak."""

HONEST = {
    "Unavailable",
    "Unreachable",
    "DeadlineExceeded",
    "ResourceExhausted",
    "OutOfMemory",
    "Cancelled",
    "DataLoss",
    "Damaged",
    "DiskFull",
    "Unauthenticated",
}
"""Errors that say what a fault does. Any other blames the caller, or is a defect of ours."""


def deadlines(calls: Iterable[Call]) -> list[str]:
    """Every call ends within its deadline and a second; time in which the client did not run apart."""
    return [
        f"{call.what} ended {call.late:.1f} s after its deadline of {call.deadline:g} s with {call.outcome}"
        for call in calls
        if call.late > GRACE
    ]


def numbers(calls: Iterable[Call]) -> list[str]:
    """No answer is wrong."""
    return [f"a wrong number: {call.what} {call.wrong}" for call in calls if call.wrong]


def promised(
    calls: Iterable[Call], level: Level, window: tuple[float, float], allowed: Iterable[str] = ()
) -> list[str]:
    """Calls do what the level says within the window, and nothing is noticed outside it."""
    good = {"ok", "tried"}
    inside = {
        Level.UNHARMED: good,
        Level.LABELLED: good | {"partial"},
        Level.FAILS: good | {"partial"} | HONEST | set(allowed),
    }[level]
    found: Counter[str] = Counter()
    example: dict[str, str] = {}
    for call in calls:
        touched = call.ended >= window[0] and call.began <= window[1]
        if call.outcome not in (inside if touched else good):
            when = "during the fault" if touched else "without a fault"
            key = f"{call.what} was {call.outcome} {when}"
            found[key] += 1
            example.setdefault(key, str(call.detail)[:300])
    return [f"{count} times {key}, as: {example[key]}" for key, count in found.items()]


def recovered(calls: Iterable[Call], wanted: Iterable[str], since: float) -> dict[str, float]:
    """For each kind of call in `wanted`: seconds from `since` to the end of the first good one after it."""
    found: dict[str, float] = {}
    for call in calls:
        if call.what in wanted and call.outcome == "ok" and call.began >= since:
            found.setdefault(call.what, call.ended - since)
    return found


def recovery(found: Mapping[str, float], wanted: Iterable[str], lag: float) -> list[str]:
    """Each was good within RECOVERY seconds; `lag`: seconds the machine stole from the client meanwhile."""
    return [
        f"no good {what} within {RECOVERY:g} s of the end of the fault"
        for what in wanted
        if found.get(what, float("inf")) > RECOVERY + lag
    ]


def usage(before: Mapping[str, Mapping[str, int]], after: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Memory and descriptors of every process are back to before."""
    wrong = []
    for name, was in before.items():
        now = after.get(name)
        if now is None:
            continue
        if now["memory"] > was["memory"] + MEMORY:
            wrong.append(
                f"{name} holds {now['memory'] / 1e6:.0f} MB; before it was {was['memory'] / 1e6:.0f} MB"
            )
        if now["descriptors"] > was["descriptors"] + DESCRIPTORS:
            wrong.append(f"{name} has {now['descriptors']} descriptors; before it had {was['descriptors']}")
    return wrong


def stored(values: Iterable[tuple[int, int]], calls: Iterable[Call], size: int) -> list[str]:
    """What was appended is there: `values` says of each position (chunk, place in the chunk).

    Every acknowledged chunk is whole at the positions its acknowledgement named, and everything else is whole
    chunks that were tried and whose outcome nobody heard, each at most once.
    """
    there = list(values)
    tried = {call.detail["chunk"] for call in calls if call.what == "append" and call.outcome == "tried"}
    wrong, taken = [], Counter[int]()
    if len(there) % size:
        wrong.append(f"{len(there)} tokens are there, which is no number of whole appends of {size}")
    for at in range(0, len(there) - size + 1, size):
        chunk = there[at][0]
        taken[chunk] += 1
        if there[at : at + size] != [(chunk, place) for place in range(size)]:
            wrong.append(f"positions {at} to {at + size} hold no whole append")
        elif chunk not in tried:
            wrong.append(f"positions {at} to {at + size} hold append {chunk}, which nobody made")
    wrong += [f"append {chunk} is there {count} times" for chunk, count in taken.items() if count > 1]
    for call in calls:
        if call.what == "append" and call.outcome == "ok":
            start = call.detail["start"]
            if there[start : start + 1] != [(call.detail["chunk"], 0)]:
                wrong.append(f"append {call.detail['chunk']} was acknowledged at {start} and is not there")
    return wrong


def rounds(calls: Iterable[Call], last: int) -> list[str]:
    """Every round was told."""
    told = {call.detail["number"] for call in calls if call.what == "round"}
    lacking = set(range(1, last + 1)) - told
    return [f"rounds {sorted(lacking)[:5]} were never told"] if lacking else []
