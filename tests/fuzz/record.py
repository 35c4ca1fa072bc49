"""Records the corpus: a fleet that attends, appends, trains both ways and enrols, heard through a tap.

    python -m tests.fuzz.record

To be run when messages change: the corpus is committed.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import labs
import numpy as np
import schools
from fleets import SPEC, Fleet, queries, tokens
from onnx import TensorProto, helper

from edge_attention import Client
from edge_attention.core.messages.training import EncodingSpec, PushSpec, SelectionSpec, StrategySpec
from edge_attention.core.messages.trust import EnrolRequest, RenewRequest
from edge_attention.trust.certificates import new_key, signing_request
from edge_attention.wire import trust
from edge_attention.wire.link import download_chunk
from tests.fuzz import corpus
from tests.fuzz.corpus import CONNECT, METHODS, RecordedCall
from tests.fuzz.tap import Tap

LARGEST = 48 * 1024
"""Bytes of a message, or a file, that is kept."""

ALIKE = 2
"""Messages of one form that are kept."""

CALLS = 6
"""Calls of one method that are kept, the node link apart."""


class Recorder:
    def __init__(self) -> None:
        self._calls: dict[int, RecordedCall] = {}
        self._forms: Counter[Any] = Counter()
        self._files: dict[str, bytearray] = defaultdict(bytearray)
        self._asked: dict[int, str] = {}

    def heard(self, number: int, path: str, request: bool, data: bytes) -> None:
        call = self._calls.setdefault(number, RecordedCall(path))
        if path.endswith("EdgeLinkService/Download"):
            if request:
                self._asked[number] = METHODS[path][0].FromString(data).digest  # type: ignore[attr-defined]
            else:
                self._files[self._asked[number]] += download_chunk.decode(data).data
        if len(data) > LARGEST or path not in METHODS:
            return
        if path == CONNECT or not request:
            key = (path, request, form(METHODS[path][0 if request else 1].FromString(data)))
            self._forms[key] += 1
            if self._forms[key] > ALIKE:
                return
        (call.requests if request else call.responses).append(data)

    def result(self) -> tuple[list[RecordedCall], dict[str, bytes]]:
        kept, counts = [], Counter[Any]()
        for call in self._calls.values():
            one = (
                call.path,
                tuple(form(METHODS[call.path][0].FromString(data)) for data in call.requests[:4]),
            )
            counts[call.path] += 1
            counts[one] += 1
            if call.path == CONNECT or (
                counts[one] <= ALIKE and counts[call.path] <= 4 * CALLS and call.requests
            ):
                kept.append(RecordedCall(call.path, call.requests[:200], call.responses[:200]))
        whole = {
            digest: bytes(data)
            for digest, data in self._files.items()
            if len(data) <= LARGEST and hashlib.sha256(data).hexdigest() == digest
        }
        return kept, whole


def form(message: Any, depth: int = 0) -> Any:
    """What fields a message has, and those in it: its instructions, but not its numbers."""
    from google.protobuf.descriptor import FieldDescriptor

    found = []
    for f, value in message.ListFields():
        inner: Any = None
        if f.type == FieldDescriptor.TYPE_MESSAGE and depth < 6 and not f.message_type.GetOptions().map_entry:
            parts = value if corpus.is_repeated(f) else [value]
            inner = tuple(sorted({repr(form(part, depth + 1)) for part in parts}))
        found.append((f.name, inner))
    return tuple(found)


def session(client: Client, files: Any) -> None:
    """Everything a client can ask for, once or twice."""
    keys, values = tokens(600)
    context = client.create_context("fuzz", **SPEC, replicas=2)
    for at in range(0, 600, 200):
        context.append(keys[at : at + 200], values[at : at + 200])
    context.append(keys[:20], values[:20], node="a")
    asked = queries(3)
    context.attend(asked)
    context.attend(asked, causal=True, window=5, scale=0.3, deadline=5.0)
    context.attend(asked, causal=True, positions=np.array([1, 5, 300]), encoding="float16", until=400)
    context.attend(asked, weights=True)
    context.describe()
    client.contexts()
    other = client.create_context("other", query_heads=1, key_heads=1, key_dim=4, value_dim=4)
    other.append_dataset("a", "x", rows_as_tokens(), {"x": "x"})
    other.drop()
    client.nodes()
    client.aggregator()
    client.probe("a", round_trips=2, size=1000)
    fusion = labs.job(3)
    client.plan(fusion)
    run = client.train(fusion)
    list(run)
    run.parameters(1)
    client.runs()
    for name, changed in JOBS.items():
        federated = schools.job(3, name=name, nodes=("a", "b", "c"), holdout=0.2, evaluate_every=1, **changed)
        run = client.train(federated)
        list(run)
        run.onnx()
    long = client.train(labs.job(100_000, name="long"))
    next(iter(long))
    long.stop()
    long.resume()
    long.stop()


def rows_as_tokens() -> bytes:
    """x float32 [rows, 4] -> keys and values [rows, 1, 4]."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], [name]) for name in ("keys", "values")],
        "rows",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", labs.FEATURES])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1, 4])
            for name in ("keys", "values")
        ],
        [helper.make_tensor("shape", TensorProto.INT64, [3], [-1, 1, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


JOBS: dict[str, dict[str, Any]] = {
    "plain": {},
    "int8": {"update": EncodingSpec("int8"), "push": PushSpec(difference=True)},
    "scaffold": {"strategy": StrategySpec("scaffold")},
    "part": {"selection": SelectionSpec(fraction=0.7)},
}


async def record(folder: Path) -> Recorder:
    recorder = Recorder()
    (folder / "fleet").mkdir()
    with Fleet(folder / "fleet", "--lease", "5", state=True) as fleet:
        tap = await Tap(fleet.address, recorder.heard).start()
        fleet._port = tap.port
        try:
            await asyncio.to_thread(talk, fleet, folder)
        finally:
            await tap.stop()
    return recorder


def talk(fleet: Fleet, folder: Path) -> None:
    files = labs.write(folder)
    shares, _ = schools.images()
    with fleet.client(timeout=60) as client:
        jobs = [
            labs.job(3),
            *(schools.job(3, nodes=("a", "b", "c"), holdout=0.2, **c) for c in JOBS.values()),
        ]
        allowed = sorted({graph.release for job in jobs for graph in client.plan(job) if graph.release})
        for name in "abc":
            digits = {schools.DATASET: shares[name].write(folder / f"digits-{name}.npz")}
            fleet.start_node(
                name, "--threads", "1", data={**files[name], **digits}, allow_release=allowed, wait=False
            )
        for name in "abc":
            fleet.wait_ready(name)
        session(client, files)


def enrolments() -> list[RecordedCall]:
    """What a box says to join. Its token and key are worth nothing anywhere."""
    calls = []
    for name, suggested in (("box", ""), ("", "host")):
        request = EnrolRequest("eaj_" + "A" * 60, signing_request(new_key(), name or "any"), name, suggested)
        calls.append(RecordedCall(trust.ENROL.path, [trust.ENROL.request.encode(request)]))
    again = RenewRequest(signing_request(new_key(), "box"))
    return [*calls, RecordedCall(trust.RENEW.path, [trust.RENEW.request.encode(again)])]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="record-") as folder:
        calls, files = asyncio.run(record(Path(folder))).result()
    size = corpus.save([*calls, *enrolments()], files)
    paths = Counter(call.path for call in calls)
    for path in METHODS:
        print(f"{paths[path]:4} calls of {path}")
    messages = sum(len(call.requests) + len(call.responses) for call in calls)
    print(f"{messages} messages, {len(files)} files, {size:,} bytes in {corpus.RECORDED}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
