"""Limits of a program: instructions, nesting, steps and graphs, checked before any of it is carried out."""

from __future__ import annotations

from edge_attention.core.errors import InvalidProgram
from edge_attention.core.messages.program import Instruction, Program, Repeat, Run

__all__ = [
    "MAX_CALLER",
    "MAX_DEPTH",
    "MAX_GRAPHS",
    "MAX_INSTRUCTIONS",
    "MAX_RELEASES",
    "MAX_STEPS",
    "graphs_of",
    "require_caller",
]

MAX_INSTRUCTIONS = 10_000
MAX_DEPTH = 4
MAX_STEPS = 10_000_000
"""Instructions carried out in one task, each turn of a Repeat counted."""
MAX_GRAPHS = 64
MAX_RELEASES = 16
"""Texts of releases that a program brings."""
MAX_CALLER = 256
"""Characters of the name of who a program is for."""


def graphs_of(program: Program) -> set[str]:
    """The digests of the graphs `program` runs.

    Raises:
        InvalidProgram: it has too many instructions, turns or graphs, or is nested too deeply; or who it is
            for has no name that can be.
    """
    require_caller(program.caller)
    if len(program.releases) > MAX_RELEASES:
        raise InvalidProgram(f"a program brings {MAX_RELEASES} releases at most, not {len(program.releases)}")
    digests: set[str] = set()
    count = 0

    def steps(block: tuple[Instruction, ...], depth: int) -> int:
        nonlocal count
        count += len(block)
        if depth > MAX_DEPTH or count > MAX_INSTRUCTIONS:
            limits = f"{MAX_INSTRUCTIONS} instructions, Repeats nested {MAX_DEPTH} deep"
            raise InvalidProgram(f"a program has at most {limits}")
        total = len(block)
        for instruction in block:
            if isinstance(instruction, Run):
                digests.add(instruction.graph)
            elif isinstance(instruction, Repeat):
                total += instruction.times * (1 + steps(instruction.body, depth + 1))
        return total

    if (total := steps(program.instructions, 0)) > MAX_STEPS:
        raise InvalidProgram(f"this program carries out {total:,} instructions; the limit is {MAX_STEPS:,}")
    for digest in digests:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise InvalidProgram(f"{digest[:80]!r} is not the digest of a graph: 64 lower-case hex digits")
    if len(digests) > MAX_GRAPHS:
        raise InvalidProgram(f"this program runs {len(digests)} graphs; the limit is {MAX_GRAPHS}")
    return digests


def require_caller(caller: str) -> None:
    """Raises InvalidProgram if who a program is for has no name that can be."""
    if len(caller) > MAX_CALLER or not caller.isprintable():
        raise InvalidProgram(f"the caller of a program is at most {MAX_CALLER} printable characters")
