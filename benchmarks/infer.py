"""Cut models: computing alone, over real processes, and what the planner predicts and picks.

Computing alone is the slowest part of each step, added up, by the whole model's time on the same thread. Over
real processes a request's time by the clock counts. The settings of the planner are models, lengths, nodes
slowed by control groups and links slowed by `tc`, for which one must be root; see `infer_fleet.py`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.infer_compute import by_heads, by_tokens, computed
from benchmarks.infer_fleet import FleetFailed, FleetRan, FleetSetting, run_fleet
from benchmarks.infer_models import BASE, MINILM, EncoderSizes, model_file
from benchmarks.report import Figure, Report
from benchmarks.turns import median_ratio

WHOLE_BOUND = 1.05
TOKENS_BOUNDS = {512: 0.30, 128: 0.40}
"""On four nodes."""
NETWORK_BOUND = 0.65
"""Two nodes by tokens, by one node, at 512 tokens."""
PICK_BOUND, PREDICTION_BOUND = 1.10, 0.20
SETTINGS_BOUND = 12
"""Settings at least."""
SECONDS, MOST_SECONDS, LEAST_SECONDS = 840.0, 180.0, 30.0
"""Of all, at most; of a setting at most; and what one is begun with at least."""
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


def report(quick: bool, keep: Callable[[Report], None] = lambda report: None) -> Report:
    """Everything; with `quick` few turns, and the first settings. `keep`: gets what there is, by setting."""
    until = time.monotonic() + SECONDS
    turns = 5 if quick else 15
    compute: list[Figure] = []
    asked = SETTINGS[:2] if quick else SETTINGS
    skipped = dict.fromkeys(range(len(asked)), "not yet")
    ran: list[tuple[Setting, FleetRan]] = []

    def made() -> Report:
        network = [_network(found) for setting, found in ran if setting == SETTINGS[0]]
        lacking = [f"{describe(asked[number])}: {why}" for number, why in skipped.items()]
        details = {"settings": [{"setting": describe(setting), **asdict(found)} for setting, found in ran]}
        return Report(
            "Cut models, by the whole and by what was predicted",
            (*compute, *network, *_planner(ran), *_settings(len(asked), len(ran), quick)),
            tuple(lacking),
            details,
        )

    with tempfile.TemporaryDirectory() as folder:
        files = {sizes.name: model_file(sizes, Path(folder)) for sizes in (MINILM, BASE)}
        for length, bound in TOKENS_BOUNDS.items():
            _say(f"computing alone, {length} tokens")
            one = computed(files[MINILM.name], by_tokens(1), 1, length, turns)
            four = computed(files[MINILM.name], by_tokens(4), 1, length, turns)
            heads = computed(files[MINILM.name], by_heads(4), 1, length, turns)
            compute += [
                Figure(f"cut for one node, {length} tokens, by the whole", one.ratio, "times", WHOLE_BOUND),
                Figure(f"slowest of 4 by tokens, {length}, by the whole", four.ratio, "times", bound),
                Figure(f"slowest of 4 by heads, {length}, by the whole", heads.ratio, "times"),
                Figure(f"the whole, {length} tokens", one.whole, "ms"),
                Figure(f"largest error, {length} tokens", max(four.error, heads.error), "", 1e-5),
            ]
        keep(made())
        for number, setting in enumerate(asked):
            sizes, length, nodes, mbit = setting
            left = until - time.monotonic()
            if why := _lacking(nodes, mbit) or ("no time was left" if left < LEAST_SECONDS else ""):
                skipped[number] = why
                continue
            began = time.monotonic()
            _say(f"{number + 1} of {len(asked)}: {describe(setting)}")
            fleet = FleetSetting(str(files[sizes.name]), 1, length, nodes, mbit, KINDS, 7 if quick else 15)
            try:
                found = run_fleet(fleet, min(left, MOST_SECONDS))
            except FleetFailed as problem:
                skipped[number] = str(problem)
                _say(skipped[number])
                continue
            del skipped[number]
            ran.append((setting, found))
            print(_line(setting, found), flush=True)
            _say(f"  {time.monotonic() - began:.0f} s; {found.says}")
            keep(made())
    return made()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
        took = {name: statistics.median(seconds) for name, seconds in found.seconds.items()}
        best = min(took, key=lambda name: took[name])
        picks.append(median_ratio(found.seconds[found.chosen], found.seconds[best]))
        misses += [abs(found.predicted[name] / took[name] - 1) for name in took]
    return [
        Figure("settings that the planner was tried in", len(ran), ""),
        Figure("its pick by the best plan tried, the worst setting", max(picks), "times", PICK_BOUND),
        Figure("the same, the median", statistics.median(picks), "times"),
        Figure("predictions off by, all plans, the worst", max(misses), "", PREDICTION_BOUND),
        Figure("the same, the median", statistics.median(misses), ""),
        Figure("predictions off by more than the bound", sum(miss > PREDICTION_BOUND for miss in misses), ""),
        Figure("predictions", len(misses), ""),
    ]


def _settings(asked: int, ran: int, quick: bool) -> list[Figure]:
    return [] if quick else [Figure("settings not measured", asked - ran, "", asked - SETTINGS_BOUND)]


def _line(setting: Setting, found: FleetRan) -> str:
    """A setting for a terminal."""
    plans = "; ".join(
        f"{name} {1e3 * statistics.median(seconds):.1f} ({1e3 * found.predicted[name]:.1f})"
        for name, seconds in found.seconds.items()
    )
    return f"  {describe(setting)}: ms measured (predicted): {plans}"
