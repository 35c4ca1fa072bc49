"""The client under test, a process of its own: does one operation over and over, and writes down how it went.

    python -m edge_attention.cli.child tests.faults.caller '{"operation": "attend", "address": ..., ...}'

It ends when its file `stop` appears, or with its training.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention import Client
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.training import TrainingRun
from tests.faults import truth
from tests.faults.journal import Journal

ATTEND_DEADLINE = 2.0
TIMEOUT = 5.0
ENROL_DEADLINE = 10.0 + 20.0  # fetching the authority, and enrolling: edge_attention/trust
PAUSE = 0.05


class Caller:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.folder = Path(config["folder"])
        self.journal = Journal(self.folder / "journal")

    @property
    def stopped(self) -> bool:
        return (self.folder / "stop").exists()

    def client(self, **options: Any) -> Client:
        return Client(self.config["address"], timeout=TIMEOUT, **options)

    def patiently(self, what: str, do: Any) -> Any:
        """What `do` returns, tried again while it fails."""
        while not self.stopped:
            if (made := self.journal.call(what, TIMEOUT, do)) is not None:
                return made
            time.sleep(PAUSE)
        sys.exit(0)

    def attend(self) -> None:
        """Attends over the two nodes' context; `truth.attend` says what is right."""
        keys, values, asked = truth.memory()
        with self.client() as client:
            context = self.patiently("open", lambda: client.context(truth.CONTEXT))
            while not self.stopped:
                self.journal.call(
                    "attend",
                    ATTEND_DEADLINE,
                    lambda: context.attend(asked, deadline=ATTEND_DEADLINE),
                    lambda answer: truth.judge(answer, asked, keys, values),
                )
                time.sleep(PAUSE)

    def append(self) -> None:
        """Appends chunks that say which they are; between them attends over what is known to be there."""
        asked = truth.memory()[2]
        known: dict[int, int] = {}  # first position -> the chunk that is there
        attempts: set[int] = set()  # neither acknowledged nor found, yet
        chunk = self.config["first_chunk"]
        with self.client() as client:
            context = self.patiently("open", lambda: client.context(truth.CONTEXT))
            end = begin = self.patiently("describe", lambda: context.describe().tokens)
            while not self.stopped:
                chunk += 1
                keys, values = truth.chunk(chunk)
                deadline = TIMEOUT + (keys.nbytes + values.nbytes) / 250_000
                attempts.add(chunk)
                self.journal.note("append", "tried", {"chunk": chunk})
                done = self.journal.call(
                    "append",
                    deadline,
                    lambda keys=keys, values=values: context.append(keys, values),
                    lambda appended, chunk=chunk: (
                        "ok",
                        "",
                        {"chunk": chunk, "start": appended.ranges[0].start},
                    ),
                )
                if done is not None:
                    known[done.ranges[0].start] = chunk
                    attempts.discard(chunk)
                    end = max(end, done.ranges[-1].stop)
                time.sleep(PAUSE)
                if done is None or begin or end > truth.CHUNK * 200:
                    continue  # what a client before this one did is compared at the end
                if len(known) * truth.CHUNK < end:
                    self._look(context, known, attempts, end)
                if len(known) * truth.CHUNK == end:
                    parts = [truth.chunk(known[at]) for at in sorted(known)]
                    all_keys, all_values = (np.concatenate(each) for each in zip(*parts, strict=True))
                    self.journal.call(
                        "attend",
                        ATTEND_DEADLINE,
                        lambda end=end: context.attend(asked, until=end, deadline=ATTEND_DEADLINE),
                        lambda answer, keys=all_keys, values=all_values: truth.judge(
                            answer, asked, keys, values
                        ),
                    )

    def _look(self, context: Any, known: dict[int, int], attempts: set[int], end: int) -> None:
        """What is stored where nothing was acknowledged: attempts whose outcome was not heard."""
        holes = [at for at in range(0, end, truth.CHUNK) if at not in known]
        try:
            found = truth.read(context, end, deadline=ATTEND_DEADLINE)
        except EdgeAttentionError:
            return
        for at in holes if found is not None else []:
            chunk = int(found[at, 0, 0])
            if chunk in attempts:
                known[at] = chunk
                attempts.discard(chunk)

    def train(self) -> None:
        """Follows a run to its end, from its start or, with `run`, from wherever it is."""
        with self.client(patience=90.0) as client:
            if self.config.get("resume"):
                run = self.patiently("open", lambda: client.run(truth.RUN))
            else:
                run = client.train(truth.job(self.config["operation"]))
                self.journal.note("started", detail=run.id)
            last = 0
            while not self.stopped:
                try:
                    for event in run.events(after=last):
                        if isinstance(event, TrainingRun):
                            continue
                        if event.number != last + 1:
                            raise AssertionError(f"round {event.number} came after round {last}")
                        last = event.number
                        self.journal.note("round", detail={"number": last, "loss": event.loss})
                        if self.stopped:
                            return
                    break
                except EdgeAttentionError as error:
                    self.journal.note("events", type(error).__name__, error.message)
                    self.journal.call("resume", TIMEOUT, run.resume)
                    time.sleep(1.0)
            parameters = self.patiently("parameters", run.parameters)
            truth.save(self.folder / "parameters.npz", parameters)
            self.journal.note("finished", detail={"version": parameters.version, "rounds": last})

    def enrolment(self) -> None:
        """Enrols boxes and renews them; beside that a client that renews its own certificate keeps asking."""
        from edge_attention.trust.enrol import enrol, renew
        from edge_attention.trust.identity import IdentityFolder
        from edge_attention.trust.tokens import parse_token

        boxes = Path(self.config["boxes"])
        token, number = parse_token(self.config["join"], "join"), self.config["first_chunk"]
        with self.client(identity=boxes / "eve") as lasting:
            while not self.stopped:
                self.journal.call("ask", TIMEOUT, lasting.nodes)
                number += 1
                folder = IdentityFolder(boxes / f"box-{number}")
                identity = self.journal.call(
                    "enrol",
                    ENROL_DEADLINE,
                    lambda: enrol(self.config["address"], token, folder, f"box-{number}"),  # noqa: B023
                    lambda made: ("ok", "", made.name),
                )
                if identity is not None:
                    self.journal.call(
                        "renew",
                        ENROL_DEADLINE,
                        lambda: renew(self.config["address"], identity, folder),  # noqa: B023
                        lambda made: ("ok", "", made.name),
                    )
                time.sleep(10 * PAUSE)


def main() -> None:
    caller = Caller(json.loads(sys.argv[1]))
    operation = caller.config["operation"]
    {"fusion": caller.train, "federated": caller.train}.get(operation, getattr(caller, operation, None))()
    print("done", flush=True)
