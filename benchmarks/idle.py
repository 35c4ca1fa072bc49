"""An edge node with nothing to do: memory, processor, seconds to ready; and what installing one brings."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import psutil

from benchmarks.report import Figure, Report
from edge_attention.cli.local_fleet import LocalFleet

SECONDS = 10.0
ROOT = Path(__file__).parents[1]
UNWANTED = ("onnx", "scikit_learn", "torch", "fastapi", "flask", "aiohttp", "starlette", "django", "tornado")


def report(quick: bool) -> Report:
    """A node beside an aggregator on loopback; with `quick`, nothing is installed."""
    with LocalFleet() as fleet:
        fleet.start_aggregator()
        ready = []
        for number in range(3):
            started = time.perf_counter()
            fleet.start_node(f"node-{number}", "--threads", "1")
            ready.append(time.perf_counter() - started)
        process = psutil.Process(fleet.child("node-0").pid)
        before, began = process.cpu_times(), time.perf_counter()
        time.sleep(SECONDS)
        after, took = process.cpu_times(), time.perf_counter() - began
        busy = after.user + after.system - before.user - before.system
        memory = process.memory_info().rss / 1e6
    figures = [
        Figure("resident memory", memory, "MB", 80.0),
        Figure(f"processor over {SECONDS:.0f} s", 100 * busy / took, "% of a core", 1.0),
        Figure("start to registered", statistics.median(ready), "s", 2.0),
    ]
    if quick:
        return Report("An idle edge node", tuple(figures), ("the installation: --quick",))
    packages, size = installed()
    unwanted = [package for package in packages if package in UNWANTED]
    figures += [
        Figure("packages it must not bring", len(unwanted), ", ".join(unwanted) or "packages", 0.0),
        Figure("packages installed", len(packages), "packages"),
        Figure("installed size", size, "MB"),
    ]
    return Report("An idle edge node", tuple(figures), details={"packages": packages})


def installed() -> tuple[list[str], float]:
    """`pip install .` into a fresh environment: the packages it brings, and their megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [str(Path(folder) / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        site = Path(folder) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        brought = set(site.iterdir())
        subprocess.run([*pip, "install", "--quiet", str(ROOT)], check=True)
        new = [path for path in site.iterdir() if path not in brought]
        names = [path.name.partition("-")[0].lower() for path in new if path.suffix == ".dist-info"]
        files = (file for path in new for file in ([path] if path.is_file() else path.rglob("*")))
        return sorted(names), sum(file.stat().st_size for file in files if file.is_file()) / 1e6
