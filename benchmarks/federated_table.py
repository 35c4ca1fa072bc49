"""A report with two columns: what was measured of ours, and of Flower at the same work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report import Figure, Report

__all__ = ["Pair", "SideBySide", "side_by_side"]


@dataclass(frozen=True)
class Pair:
    """One measure of both; None: not measured. `bound`: ours must not exceed that."""

    name: str
    unit: str
    ours: float | None
    flower: float | None = None
    bound: float | None = None

    def figures(self) -> tuple[Figure, ...]:
        """As many figures as there are numbers: `NAME: ours`, with the bound, and `NAME: Flower`."""
        sides = (("ours", self.ours, self.bound), ("Flower", self.flower, None))
        return tuple(
            Figure(f"{self.name}: {side}", value, self.unit, bound)
            for side, value, bound in sides
            if value is not None
        )


@dataclass(frozen=True)
class SideBySide(Report):
    """A report whose figures come in `pairs`."""

    pairs: tuple[Pair, ...] = ()

    def table(self) -> str:
        """For a terminal: ours, Flower, the bound of ours."""
        width = max((len(pair.name) for pair in self.pairs), default=0)
        lines = [f"\n{self.title}", f"  {'':{width}}  {'ours':>10}  {'Flower':>10}  {'bound':>8}"]
        for pair in self.pairs:
            ours, flower = _number(pair.ours), _number(pair.flower)
            bound = "" if pair.bound is None else f"{pair.bound:.2f}"
            verdict = "" if all(figure.met for figure in pair.figures()) else "  MISSED"
            row = f"{ours:>10}  {flower:>10}  {bound:>8}  {pair.unit}{verdict}"
            lines.append(f"  {pair.name:{width}}  {row}")
        return "\n".join([*lines, *(f"  not measured: {reason}" for reason in self.skipped)])

    def json(self) -> dict[str, Any]:
        found = super().json()
        del found["pairs"]  # figures say the same
        return found


def side_by_side(
    title: str, pairs: Sequence[Pair], skipped: Sequence[str] = (), details: dict[str, Any] | None = None
) -> SideBySide:
    """The report of these pairs."""
    figures = tuple(figure for pair in pairs for figure in pair.figures())
    return SideBySide(title, figures, tuple(skipped), details or {}, tuple(pairs))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 1 else f"{value:.2f}"
