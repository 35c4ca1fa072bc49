"""kill -9 of nodes and the aggregator in the middle of deployments and of their ends: nothing stays by half.

    python -m tests.faults.deploying                   # 6 moments, some two minutes
    python -m tests.faults.deploying --moments 24

A model is deployed, deployed again, and taken back. At a random moment of each, planning, delivery, going
live and going included, a node or the aggregator is killed, and started again as systemd would. Then, by
itself: what serves answers exactly, nothing is planned or delivered or leaving any more, and the state folder
has no other deployment. At the end all is taken back, and no node has a weight left. It ends with a line of
JSON, and 1 if not so.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "e2e"))

import numpy as np
from fleets import Fleet, until

from edge_attention import Client
from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.errors import EdgeAttentionError, NotFound
from edge_attention.core.messages.inference import DeploymentState
from tests.faults.models import AGAIN, LEASE, MODEL, NODES, PAUSE, TOKENS, Asking, serves, start

VICTIMS = (AGGREGATOR, "a", AGGREGATOR, "b")
LONGEST = 5.0
"""Seconds of a deployment in which something is killed."""
SETTLED = 90.0
"""Seconds after which all is as it should be."""


@dataclass
class Course:
    """What was done, and what came of it."""

    ends: Counter[str] = field(default_factory=Counter)
    """`deploy AGGREGATOR: done`, or the error's name."""
    slowest: float = 0.0
    """Seconds until all was well again."""


def deploy(address: str) -> None:
    with Client(address) as client:
        client.deploy(MODEL, "bert", plan="tokens", nodes=NODES[:2], dimensions={"sequence": TOKENS})


def undeploy(address: str) -> None:
    with Client(address) as client:
        client.model("bert").undeploy()


def run(moments: int, seed: int, folder: Path) -> Course:
    """Kill `moments` times. Raises AssertionError: what is not as it should be."""
    rng, course = np.random.default_rng(seed), Course()
    with Fleet(folder, *LEASE, state=True) as fleet, ThreadPoolExecutor(1) as pool:
        for name in NODES[:2]:
            start(fleet, name)
        for name in NODES[:2]:
            fleet.wait_ready(name)
        asking = Asking(fleet.address, 1)
        for moment in range(moments):
            until(lambda: _here(fleet), "nodes are back", SETTLED)
            victim = VICTIMS[moment % len(VICTIMS)]
            act = undeploy if moment % 3 == 2 and _serving(fleet) else deploy
            done = pool.submit(act, fleet.address)
            time.sleep(float(rng.uniform(0, LONGEST if act is deploy else 0.2)))
            fleet.kill(victim)
            time.sleep(PAUSE)
            if victim == AGGREGATOR:
                fleet.start_aggregator(*LEASE)
            else:
                start(fleet, victim)
            began, error = time.monotonic(), done.exception(SETTLED)
            assert error is None or isinstance(error, EdgeAttentionError), repr(error)
            said = "done" if error is None else type(error).__name__
            course.ends[f"{act.__name__}, {victim} killed: {said}"] += 1
            until(lambda: _settled(fleet), "all is whole", SETTLED)
            with Client(fleet.address) as client:
                if _serving(fleet):
                    until(lambda: serves(client, asking), "what is deployed serves", AGAIN)
            course.slowest = max(course.slowest, time.monotonic() - began)
        if _serving(fleet):
            undeploy(fleet.address)
        until(lambda: _settled(fleet) and not _serving(fleet), "it is gone", SETTLED)
        until(lambda: not _weights(fleet), "no node has a weight left", SETTLED)
    return course


def _states(fleet: Fleet) -> list[DeploymentState]:
    with Client(fleet.address) as client:
        return [one.state for one in client.models()]


def _here(fleet: Fleet) -> bool:
    with Client(fleet.address) as client:
        return {one.name for one in client.nodes() if one.state.value == "ready"} >= set(NODES[:2])


def _serving(fleet: Fleet) -> bool:
    return DeploymentState.SERVING in _states(fleet)


def _settled(fleet: Fleet) -> bool:
    """Whether each deployment serves, there is one at most, and the disk has no other."""
    try:
        states = _states(fleet)
    except (EdgeAttentionError, NotFound):
        return False
    folder = fleet.folder / "state" / "deployments"
    folders = [one for one in folder.iterdir() if one.is_dir()] if folder.exists() else []
    return len(states) <= 1 and set(states) <= {DeploymentState.SERVING} and len(folders) == len(states)


def _weights(fleet: Fleet) -> list[Path]:
    return [path for name in NODES for path in (fleet.folder / "stores" / name).glob("**/kept/*.tensor")]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.deploying")
    parser.add_argument("--moments", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            course = run(options.moments, options.seed, Path(folder))
        except AssertionError as error:
            print(json.dumps({"wrong": str(error)}))
            return 1
    print(json.dumps({"ends": dict(course.ends), "well again after": course.slowest}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
