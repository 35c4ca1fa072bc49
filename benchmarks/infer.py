"""Cut models: computing alone, over real processes, and what the planner predicts and picks.

Computing alone is the slowest part of each step, added up, by the whole model's time on the same thread. Over
real processes a request's time by the clock counts. The settings of the planner are models, lengths, nodes
slowed by control groups and links slowed by `tc`, for which one must be root; see `infer_fleet.py`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.infer_compute import by_heads, by_tokens, computed
from benchmarks.infer_fleet import FleetRan, FleetSetting, run_fleet
from benchmarks.infer_models import BASE, MINILM, EncoderSizes, model_file
from benchmarks.report import Figure, Report
from benchmarks.turns import median_ratio

WHOLE_BOUND = 1.05
TOKENS_BOUNDS = {512: 0.30, 128: 0.40}
"""On four nodes."""
NETWORK_BOUND = 0.65
"""Two nodes by tokens, by one node, at 512 tokens."""
PICK_BOUND, PREDICTION_BOUND = 1.10, 0.20
KINDS = 5
"""Plans that run in each setting, the best of each kind."""

Setting = tuple[EncoderSizes, int, dict[str, float], float]
"""Model, tokens, each node's share of a core, Mbit/s of the network (0: loopback as it is)."""

EVEN, UNEVEN = {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.5}
SETTINGS: Sequence[Setting] = (
    (MINILM, 512, EVEN, 0),
    (MINILM, 128, EVEN, 0),
    (MINILM, 32, EVEN, 0),
    (MINILM, 512, UNEVEN, 0),
    (MINILM, 128, UNEVEN, 0),
    (MINILM, 512, EVEN, 1000),
    (MINILM, 512, EVEN, 200),
    (MINILM, 128, EVEN, 50),
    (MINILM, 512, UNEVEN, 200),
    (BASE, 128, EVEN, 0),
    (BASE, 384, EVEN, 0),
    (BASE, 128, UNEVEN, 1000),
    (BASE, 384, EVEN, 200),
    (BASE, 384, {"a": 0.5, "b": 0.5}, 1000),
)


def report(quick: bool) -> Report:
    """Everything; with `quick` few turns, and the first settings."""
    turns = 5 if quick else 15
    figures: list[Figure] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        files = {sizes.name: model_file(sizes, Path(folder)) for sizes in (MINILM, BASE)}
        for length, bound in TOKENS_BOUNDS.items():
            one = computed(files[MINILM.name], by_tokens(1), 1, length, turns)
            four = computed(files[MINILM.name], by_tokens(4), 1, length, turns)
            heads = computed(files[MINILM.name], by_heads(4), 1, length, turns)
            figures += [
                Figure(f"cut for one node, {length} tokens, by the whole", one.ratio, "times", WHOLE_BOUND),
                Figure(f"slowest of 4 by tokens, {length}, by the whole", four.ratio, "times", bound),
                Figure(f"slowest of 4 by heads, {length}, by the whole", heads.ratio, "times"),
                Figure(f"the whole, {length} tokens", one.whole, "ms"),
                Figure(f"largest error, {length} tokens", max(four.error, heads.error), "", 1e-5),
            ]
        ran: list[tuple[Setting, FleetRan]] = []
        for setting in SETTINGS[:2] if quick else SETTINGS:
            sizes, length, nodes, mbit = setting
            if why := _lacking(nodes, mbit):
                skipped.append(f"{describe(setting)}: {why}")
                continue
            asked = FleetSetting(str(files[sizes.name]), 1, length, nodes, mbit, KINDS, 7 if quick else 15)
            found = run_fleet(asked)
            ran.append((setting, found))
            print(_line(setting, found), flush=True)
    figures += [_network(found) for setting, found in ran if setting == SETTINGS[0]]
    figures += _planner(ran)
    details = {"settings": [{"setting": describe(setting), **asdict(found)} for setting, found in ran]}
    return Report(
        "Cut models, by the whole and by what was predicted", tuple(figures), tuple(skipped), details
    )


def describe(setting: Setting) -> str:
    sizes, length, nodes, mbit = setting
    cores = ", ".join(f"{share:.0%}" for share in nodes.values())
    return f"{sizes.name}, {length} tokens, cores {cores}, {f'{mbit:g} Mbit/s' if mbit else 'loopback'}"


def _lacking(nodes: dict[str, float], mbit: float) -> str:
    """What of the system this setting needs and is not there."""
    if (mbit or min(nodes.values()) < 1) and os.geteuid():
        return "slower nodes and links need root"
    if mbit and not all(map(shutil.which, ("tc", "ip", "unshare"))):
        return "slower links need tc, ip and unshare"
    return ""


def usual(seconds: Sequence[float]) -> float:
    """The lower quartile: what else the machine does makes requests longer, never shorter."""
    return sorted(seconds)[len(seconds) // 4]


def _network(found: FleetRan) -> Figure:
    one = next(seconds for name, seconds in found.seconds.items() if name.startswith("on "))
    tokens = [seconds for name, seconds in found.seconds.items() if name.startswith("tokens")]
    ratio = min(median_ratio(seconds, one) for seconds in tokens)
    return Figure("2 nodes by tokens, 512, by one node, real processes", ratio, "times", NETWORK_BOUND)


def _planner(ran: Sequence[tuple[Setting, FleetRan]]) -> list[Figure]:
    if not ran:
        return []
    picks, misses = [], []
    for _, found in ran:
        took = {name: usual(seconds) for name, seconds in found.seconds.items()}
        picks.append(took[found.chosen] / min(took.values()))
        misses += [abs(found.predicted[name] / took[name] - 1) for name in took]
    return [
        Figure("settings that the planner was tried in", len(ran), ""),
        Figure("its pick by the best plan tried, the worst setting", max(picks), "times", PICK_BOUND),
        Figure("the same, the median", statistics.median(picks), "times"),
        Figure("predictions off by, all plans, the worst", max(misses), "", PREDICTION_BOUND),
        Figure("the same, the median", statistics.median(misses), ""),
    ]


def _line(setting: Setting, found: FleetRan) -> str:
    """A setting for a terminal."""
    plans = "; ".join(
        f"{name} {1e3 * usual(seconds):.1f} ({1e3 * found.predicted[name]:.1f})"
        for name, seconds in found.seconds.items()
    )
    return f"  {describe(setting)}: ms measured (predicted): {plans}"
