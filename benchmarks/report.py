"""What a benchmark found: figures with their bounds, as a table and as JSON, and the machine they are of."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Figure", "Report", "machine"]

PACKAGES = ("numpy", "onnxruntime", "grpcio", "protobuf", "torch", "ray")


@dataclass(frozen=True)
class Figure:
    """One number. `bound`: it must not exceed that; None: it is there to know."""

    name: str
    value: float
    unit: str
    bound: float | None = None

    @property
    def met(self) -> bool:
        return self.bound is None or self.value <= self.bound


@dataclass(frozen=True)
class Report:
    """One benchmark's figures. `skipped`: what could not be measured, and why."""

    title: str
    figures: tuple[Figure, ...]
    skipped: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return all(figure.met for figure in self.figures)

    def table(self) -> str:
        """The figures as a table for a terminal."""
        width = max((len(figure.name) for figure in self.figures), default=0)
        lines = [f"\n{self.title}", f"  {'':{width}}  {'measured':>10}  {'bound':>8}"]
        for figure in self.figures:
            bound = "" if figure.bound is None else f"{figure.bound:.2f}"
            verdict = "" if figure.met else "  MISSED"
            value = f"{figure.value:10.2f}  {bound:>8}  {figure.unit}{verdict}"
            lines.append(f"  {figure.name:{width}}  {value}")
        return "\n".join([*lines, *(f"  not measured: {reason}" for reason in self.skipped)])

    def json(self) -> dict[str, Any]:
        figures = [asdict(figure) | {"met": figure.met} for figure in self.figures]
        return asdict(self) | {"figures": figures, "met": self.met}


def machine() -> dict[str, Any]:
    """The CPU, its cores, what else keeps them busy, and the versions of what was measured."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags")).split()
    except (OSError, StopIteration):
        cpu, flags = platform.processor(), []
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "avx512": "avx512f" in flags,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "versions": versions,
    }
