"""What is right: the data of the operations, the float64 reference, the jobs and their ends undisturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fleets
import labs
import numpy as np
import schools

from edge_attention.core.messages.training import LocalSpec, OptimizerSpec

CONTEXT = "memory"
TOKENS = 3_000
CHUNK = 40
"""Tokens of one append."""

READ = 256
"""Tokens read at once: what reads must not be what takes memory."""

RUN = "table"
NODES = ("a", "b", "c")
ROUNDS = {"fusion": 300, "federated": 120}
"""Some ten seconds each on a quiet machine: a fault finds the run in its middle."""


def memory() -> tuple[Any, Any, Any]:
    """keys, values and queries of the context that is attended to."""
    keys, values = fleets.tokens(TOKENS)
    return keys, values, fleets.queries(3)


def chunk(number: int) -> tuple[Any, Any]:
    """keys and values of an append. Each value says its chunk and its place in it, exactly."""
    keys, values = fleets.tokens(CHUNK, seed=number)
    values[:, :, 0] = number
    values[:, :, 1] = np.arange(CHUNK)[:, None]
    return keys, values


def judge(answer: Any, asked: Any, keys: Any, values: Any) -> tuple[str, str, Any]:
    """(outcome, what is wrong with it, its largest error) of an answer over exactly these tokens."""
    out, lse = fleets.truth(asked, keys, values)
    scale = max(1.0, float(np.abs(values).max()))
    error = np.abs(answer.out - out)
    worst = float(error.max())
    if answer.exact:
        if worst > 1e-5 * scale or np.abs(answer.lse - lse).max() > 1e-5:
            return "ok", f"says exact and is {worst:.3g} off", worst
        if answer.missing or answer.bound is not None:
            return "ok", "says exact and what is missing, too", worst
        return "ok", "", worst
    if not answer.missing:
        return "partial", "is not exact and names nothing missing", worst
    if answer.bound is None:
        return "partial", "is not exact and has no bound", worst
    if (past := (error - answer.bound.error).max()) > 1e-5 * scale:
        return "partial", f"is {past:.3g} past its certified bound", worst
    return "partial", "", worst


def read(context: Any, end: int, deadline: float) -> Any:
    """The values stored at positions 0 to `end`, [tokens, key_heads, value_dim]; None if not all can be read.

    A query that sees one token is answered with that token's value, whatever its key.
    """
    group = fleets.SPEC["query_heads"] // fleets.SPEC["key_heads"]
    parts = [np.zeros((0, fleets.SPEC["key_heads"], 2), np.float32)]
    for at in range(0, end, READ):
        positions = np.arange(at, min(at + READ, end))
        asked = np.zeros((len(positions), fleets.SPEC["query_heads"], fleets.SPEC["key_dim"]), np.float32)
        answer = context.attend(
            asked, causal=True, window=1, positions=positions, until=end, deadline=deadline
        )
        if not answer.exact:
            return None
        parts.append(np.rint(answer.out[:, ::group, :2]))
    return np.concatenate(parts)


def job(operation: str) -> Any:
    if operation == "fusion":
        return labs.job(ROUNDS["fusion"], name=RUN)
    local = LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=8, steps=60)
    return schools.job(ROUNDS["federated"], name=RUN, nodes=NODES, local=local)


def data(operation: str, folder: Path) -> dict[str, dict[str, Path]]:
    """The datasets of a training's nodes: node -> name -> file."""
    if operation == "fusion":
        return labs.write(folder)
    shares, _ = schools.images()
    return {name: {schools.DATASET: shares[name].write(folder / f"{name}.npz")} for name in NODES}


def save(file: Path, parameters: Any) -> None:
    temporary = file.with_suffix(".part.npz")
    np.savez(temporary, **{name.replace("/", "|"): array for name, array in parameters.items()})
    temporary.replace(file)


def apart(one: Path, other: Path) -> float:
    """The largest difference of two runs' parameters; 0.0 only if all bits are the same."""
    with np.load(one) as a, np.load(other) as b:
        assert sorted(a.files) == sorted(b.files)
        if all(np.array_equal(a[name].view(np.uint8), b[name].view(np.uint8)) for name in a.files):
            return 0.0
        worst = max(float(np.abs(a[name] - b[name]).max(initial=0)) for name in a.files)
        return max(worst, 1e-30)
