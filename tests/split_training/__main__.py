"""Models trained through the split over three real nodes, against one machine: `make test-split`.

    python -m tests.split_training [--steps 100] [--kinds bert,llama] [--splits layers,heads,tokens]

For each: the largest difference of any parameter and of any step's loss from the same run on one machine, and
what a step takes by the seconds that nodes were in its graphs, all together. Exits with 1 if parameters are
further than 1e-4 off.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "e2e")]

import one_machine  # noqa: E402
from fleets import Fleet  # noqa: E402

from edge_attention import FederatedModel, OptimizerSpec, ScheduleSpec, SplitJob  # noqa: E402

NODES = ("a", "b", "c")
OPTIMIZER = ("adamw", {"lr": 1e-3})
SCHEDULE = ("cosine", {"warmup": 10})
CLOSE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--kinds", default="bert,llama")
    parser.add_argument("--splits", default="layers,heads,tokens")
    said = parser.parse_args()
    wrong = 0
    print("model  split   parameters  losses   last loss  step / graphs  ms a step", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), state=True)
        try:
            fleet.nodes(*NODES)
            with fleet.client() as client:
                for kind in said.kinds.split(","):
                    samples = one_machine.samples(kind)
                    losses, wanted = one_machine.trained(kind, samples, OPTIMIZER, SCHEDULE, said.steps, 16)
                    for split in said.splits.split(","):
                        wrong += not _tried(client, kind, split, said.steps, losses, wanted)
        finally:
            fleet.stop()
    return 1 if wrong else 0


def _tried(client, kind, split, steps, losses, wanted):  # type: ignore[no-untyped-def]
    """One line; whether it is close enough."""
    data, loss, parameters, head = one_machine.model_of(kind)
    job = SplitJob(
        name=f"{kind}-{split.replace(':', '-')}",
        model=FederatedModel(data, loss, parameters=parameters or None, head=head),
        split=split,
        data=one_machine.samples(kind),
        optimizer=OptimizerSpec(*OPTIMIZER),
        schedule=ScheduleSpec(*SCHEDULE),
        rounds=steps,
        batch=16,
        micro_batches=4,
        nodes=NODES,
    )
    run = client.train(job)
    began = time.perf_counter()
    rounds = list(run)
    took = (time.perf_counter() - began) / steps
    found = run.parameters()
    apart = max(float(np.abs(found[name] - array).max()) for name, array in wanted.items())
    course = float(np.abs(np.array([one.loss for one in rounds]) - losses).max())
    later = rounds[len(rounds) // 4 :]
    ratio = np.median([one.seconds["all"] / max(one.seconds["graphs"], 1e-9) for one in later])
    figures = f"{apart:10.1e} {course:8.1e} {rounds[-1].loss:10.4f} {ratio:14.2f} {1e3 * took:10.0f}"
    print(f"{kind:6} {split:7} {figures}", flush=True)
    return apart <= CLOSE


if __name__ == "__main__":
    sys.exit(main())
