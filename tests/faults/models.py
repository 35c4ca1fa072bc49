"""kill -9 of nodes and the aggregator while a cut model is asked: each answer is exact, or refused in time.

    python -m tests.faults.models                      # 12 moments of 120 requests, what CI runs
    python -m tests.faults.models --moments 40 --requests 400

Three callers ask without a pause. At random moments one process after another is killed, nodes and the
aggregator in turn, and started again as systemd would. It ends with a line of JSON, and 1 if an answer was
wrong, a request came back after its deadline, or the deployment did not serve again by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "e2e"))

import numpy as np
import onnxruntime
from fleets import Fleet, until

from edge_attention import Client
from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.errors import EdgeAttentionError, Unreachable

MODEL = Path(__file__).resolve().parent.parent / "graphs/axes/exports/bert.onnx"
NODES = ("a", "b", "c", "d")
LEASE = ("--lease", "5")
DEADLINE = 20.0
LATE = 1.0
"""Seconds after its deadline by which a request must have been answered or refused."""
AGAIN = 60.0
"""Seconds after the last kill in which the model must serve."""
TOKENS = 24
ASKING = 3
PAUSE = 0.5
"""Seconds until what was killed is started again."""


@dataclass
class Tally:
    """What came of the requests."""

    exact: int = 0
    again: int = 0
    """Of these, those in which a part was done again elsewhere."""
    unreachable: int = 0
    """Tries while the aggregator was away."""
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    slowest: float = 0.0


class Asking:
    """Asks until so many requests have come to an end."""

    def __init__(self, address: str, requests: int) -> None:
        self.tally = Tally()
        self._address, self._left = address, requests
        self._lock = threading.Lock()
        self._session = onnxruntime.InferenceSession(str(MODEL))
        self._outputs = [one.name for one in self._session.get_outputs()]
        self.done = 0

    def run(self, number: int) -> None:
        """One caller."""
        rng = np.random.default_rng(number)
        with Client(self._address) as client:
            model = None
            while self._take():
                ids = rng.integers(1, 40, (1, TOKENS))
                mask = np.ones_like(ids)
                mask[:, TOKENS - int(rng.integers(0, 5)) :] = 0
                feeds = {"input_ids": ids, "attention_mask": mask}
                began = time.monotonic()
                try:
                    if model is None:
                        model = client.model("bert")
                    answer = model.infer(feeds, deadline=DEADLINE)
                except Unreachable:
                    self._again()
                    time.sleep(0.2)
                except EdgeAttentionError as error:
                    self._note(began, type(error).__name__, str(error))
                    time.sleep(0.1)  # as a caller does who is told to come again
                else:
                    self._note(began, "", self._judged(answer, feeds), answer.again)

    def _take(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def _again(self) -> None:
        """The aggregator was not there: the request is made again, as by any caller."""
        with self._lock:
            self._left += 1
            self.tally.unreachable += 1

    def _judged(self, answer: Any, feeds: dict[str, Any]) -> str:
        if not answer.exact or answer.coverage != 1.0:
            return f"not exact: {answer.lacking}"
        for name, wanted in zip(self._outputs, self._session.run(None, feeds), strict=True):
            error = float(np.abs(answer[name] - wanted).max()) / float(np.abs(wanted).max())
            if not error <= 1e-5:
                return f"says exact and is {error:.3g} off"
        return ""

    def _note(self, began: float, refused: str, what: str, again: int = 0) -> None:
        took = time.monotonic() - began
        with self._lock:
            self.done += 1
            self.tally.slowest = max(self.tally.slowest, took)
            if took > DEADLINE + LATE:
                self.tally.late.append(f"{took:.1f} s: {refused} {what}")
            if refused:
                self.tally.refused[refused] += 1
            elif what:
                self.tally.wrong.append(what)
            else:
                self.tally.exact += 1
                self.tally.again += bool(again)


def killing(fleet: Fleet, asking: Asking, order: Sequence[str], requests: int, seed: int) -> None:
    """Kill these in turn, at random moments of the requests, and start each again."""
    rng = np.random.default_rng(seed)
    at = sorted(rng.choice(np.arange(2, requests - 1), len(order), replace=False).tolist())
    for moment, name in zip(at, order, strict=True):
        while asking.done < moment:
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0, 0.05)))
        fleet.kill(name)
        time.sleep(PAUSE)
        if name == AGGREGATOR:
            fleet.start_aggregator(*LEASE)
        else:
            start(fleet, name)


def start(fleet: Fleet, name: str) -> None:
    store = str(fleet.folder / "stores" / name)
    fleet.start_node(name, "--threads", "1", "--store", store, wait=False)


def run(order: Sequence[str], requests: int, plan: str, seed: int, folder: Path) -> tuple[Tally, float]:
    """The tally, and the seconds after which the model served again."""
    with Fleet(folder, *LEASE, state=True) as fleet:
        for name in NODES:
            start(fleet, name)
        for name in NODES:
            fleet.wait_ready(name)
        with Client(fleet.address) as client:
            client.deploy(MODEL, "bert", plan=plan, nodes=NODES[:3], dimensions={"sequence": TOKENS})
        asking = Asking(fleet.address, requests)
        with ThreadPoolExecutor(ASKING) as pool:
            callers = [pool.submit(asking.run, number) for number in range(ASKING)]
            killing(fleet, asking, order, requests, seed)
            for caller in callers:
                caller.result()
        began = time.monotonic()
        served = Asking(fleet.address, 1)
        with Client(fleet.address) as client:
            until(lambda: serves(client, served), "the model serves", AGAIN)
        return asking.tally, time.monotonic() - began


def serves(client: Client, asking: Asking) -> bool:
    feeds = {"input_ids": np.full((1, TOKENS), 7), "attention_mask": np.ones((1, TOKENS), np.int64)}
    try:
        answer = client.model("bert").infer(feeds, deadline=10)
    except EdgeAttentionError:
        return False
    return asking._judged(answer, feeds) == ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.models")
    parser.add_argument("--moments", type=int, default=12)
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--plan", default="tokens")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    every = (*NODES, AGGREGATOR)
    order = [every[n % len(every)] for n in range(options.moments)]
    with tempfile.TemporaryDirectory() as folder:
        tally, again = run(order, options.requests, options.plan, options.seed, Path(folder))
    said = vars(tally) | {
        "refused": dict(tally.refused),
        "killed": dict(Counter(order)),
        "serves after": again,
    }
    print(json.dumps(said))
    return 1 if tally.wrong or tally.late else 0


if __name__ == "__main__":
    sys.exit(main())
