"""Flower's FedAvg as it comes, with a line in a file at the start and the end of every round."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    """FedAvg over all nodes. `events`: a JSON line is appended to it, seconds on the monotonic clock."""

    def __init__(self, events: str, nodes: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
        self._events = events

    def _line(self, event: str, number: int) -> None:
        with open(self._events, "a") as file:
            file.write(json.dumps({"event": event, "round": number, "at": time.monotonic()}) + "\n")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = super().configure_train(server_round, arrays, config, grid)
        self._line("start", server_round)
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]):
        answers = list(replies)
        found = super().aggregate_train(server_round, answers)
        self._line("end", server_round)
        failed = [reply.error.reason for reply in answers if reply.has_error()]
        if failed:
            raise RuntimeError(f"round {server_round}: {failed[0]}")
        return found


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train from the arrays of `initial` (.npz) and write the last ones to `final`."""
    config = context.run_config
    with np.load(str(config["initial"])) as file:
        names = list(file)
        arrays = ArrayRecord([file[name] for name in names])
    result = Timed(str(config["events"]), int(config["nodes"])).start(
        grid=grid,
        initial_arrays=arrays,
        num_rounds=int(config["rounds"]),
        train_config=ConfigRecord({"lr": float(config["lr"]), "batch": int(config["batch"])}),
    )
    if config["final"]:
        final = result.arrays.to_numpy_ndarrays()
        np.savez(str(config["final"]), **dict(zip(names, final, strict=True)))
