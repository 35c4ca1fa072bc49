"""What is fuzzed: a real process, how a message reaches it, and how it is seen to be well afterwards."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import grpc.aio
import psutil
from fleets import SPEC, Fleet, queries, tokens, truth

from edge_attention.cli.local_fleet import AGGREGATOR, Child
from edge_attention.wire.methods import CHANNEL_OPTIONS
from tests.fuzz import corpus
from tests.fuzz.corpus import CLIENT_PATHS, Corpus, RecordedCall
from tests.fuzz.mutate import Mutator

MEMORY = 400 * 1024 * 1024
DESCRIPTORS = 64
"""How much more of it a victim may have after a batch than before the first one."""

TRACE = "Traceback (most recent call last)"
DEFECT = "failed in the server"


@dataclass(frozen=True)
class Input:
    """One thing sent: `parts`, the messages of one call in order, or bytes for a socket."""

    target: str
    path: str
    parts: tuple[bytes, ...]

    def text(self) -> str:
        return json.dumps(asdict(self) | {"parts": [part.hex() for part in self.parts]})

    @staticmethod
    def of(text: str) -> Input:
        item = json.loads(text)
        return Input(item["target"], item["path"], tuple(bytes.fromhex(part) for part in item["parts"]))


class Target:
    """A victim. `start`, then any number of `send` and `check`, then `stop`."""

    name: ClassVar[str]
    share: ClassVar[float]
    """Of all messages."""

    together: ClassVar[int] = 8
    """Inputs that are sent at a time."""

    def __init__(self, folder: Path, known: Corpus) -> None:
        self.folder, self.corpus = folder, known
        self.children: list[Child] = []
        self._before: list[dict[str, int]] = []
        self.answers: Counter[str] = Counter()
        """How the victim answered: how far messages get."""

    async def start(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    def make(self, rng: random.Random) -> Input:
        """The next input: of the random numbers and the corpus alone, so that a seed says it all."""
        raise NotImplementedError

    async def send(self, sent: Input) -> None:
        """Whatever comes of it is right, as long as the victim is well."""
        raise NotImplementedError

    async def good(self) -> str:
        """What is wrong with the answer to a good call; empty if nothing."""
        raise NotImplementedError

    async def check(self) -> list[str]:
        """What is wrong with the victim."""
        wrong = [
            f"{child.name} ended with {child.process.poll()}:{child.last_lines(20)}"
            for child in self.children
            if not child.running
        ]
        if wrong:
            return wrong
        for attempt in range(4):
            try:
                said = await asyncio.wait_for(self.good(), 180)
            except Exception as error:
                said = f"a good call ended with {type(error).__name__}: {error}"
            if not said:
                break
            await asyncio.sleep(2.0 * (attempt + 1))
        else:
            wrong.append(said)
        for child in self.children:
            traced = [line for line in child.lines if TRACE in line or DEFECT in line]
            if traced:
                wrong.append(f"{child.name} logged a traceback:{child.last_lines(60)}")
                child.lines.clear()
        return wrong + self._usage()

    def _usage(self) -> list[str]:
        now = [usage(child) for child in self.children]
        self._before = self._before or now
        wrong = []
        for child, one, before in zip(self.children, now, self._before, strict=True):
            if one["memory"] > before["memory"] + MEMORY:
                wrong.append(
                    f"{child.name} holds {one['memory'] / 1e6:.0f} MB, was {before['memory'] / 1e6:.0f} MB"
                )
            if one["descriptors"] > before["descriptors"] + DESCRIPTORS:
                wrong.append(
                    f"{child.name} has {one['descriptors']} descriptors, had {before['descriptors']}"
                )
        return wrong

    def figures(self) -> str:
        return ", ".join(
            f"{child.name} {was['memory'] / 1e6:.0f} → {usage(child)['memory'] / 1e6:.0f} MB, "
            f"{was['descriptors']} → {usage(child)['descriptors']} descriptors"
            for child, was in zip(self.children, self._before, strict=False)
        )

    def heard(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.answers.most_common(12))


def usage(child: Child) -> dict[str, int]:
    process = psutil.Process(child.pid)
    return {"memory": process.memory_info().rss, "descriptors": process.num_fds()}


class Good:
    """A context that nobody else knows, over two real nodes, whose answer is exact."""

    NAME = "well-kept-3f9a"

    def __init__(self, fleet: Fleet) -> None:
        self._client = fleet.client(timeout=180)
        self._keys, self._values = tokens(800, seed=77)
        self._asked = queries(2, seed=78)
        self._context = self._client.create_context(self.NAME, **SPEC)
        for node, part in (("a", slice(0, 300)), ("b", slice(300, 800))):
            self._context.append(self._keys[part], self._values[part], node=node)

    def ask(self) -> str:
        answer = self._context.attend(self._asked, deadline=20.0)
        out, lse = truth(self._asked, self._keys, self._values)
        if not answer.exact:
            return f"a good attend is not exact: {[gap.reason for gap in answer.missing]}"
        error = max(abs(answer.out - out).max(), abs(answer.lse - lse).max())
        return f"a good attend says exact and is {error:.3g} off" if error > 1e-4 else ""

    def tidy(self) -> None:
        """Forget what hostile calls made: bounds are tried elsewhere."""
        for run in self._client.runs():
            if run.state.value == "running":
                self._client.run(run.id).stop()
        for context in self._client.contexts():
            if context.spec.name != self.NAME:
                self._client.context(context.spec.name).drop()

    def close(self) -> None:
        self._client.close()


class FleetTarget(Target):
    """A victim that is an aggregator with two good nodes."""

    flags: ClassVar[Sequence[str]] = ("--lease", "5")

    async def start(self) -> None:
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        import labs

        self.fleet = Fleet(self.folder, *self.flags, state=True)
        files = labs.write(self.folder)
        self.fleet.nodes("a", "b", data=files["a"], allow_release=["attention"])
        self.children = [self.fleet.child(name) for name in (AGGREGATOR, "a", "b")]
        self._good = Good(self.fleet)
        self.channel: Any = None

    async def good(self) -> str:
        said = await asyncio.to_thread(self._good.ask)
        await asyncio.to_thread(self._good.tidy)
        return said

    async def stop(self) -> None:
        if self.channel is not None:
            await self.channel.close()
        await asyncio.to_thread(self._good.close)
        await asyncio.to_thread(self.fleet.stop)

    async def call(self, path: str, parts: Sequence[bytes], timeout: float) -> None:
        if self.channel is None:
            self.channel = grpc.aio.insecure_channel(self.fleet.address, CHANNEL_OPTIONS)

        async def requests() -> Any:
            for part in parts:
                yield part

        call = self.channel.stream_stream(path)(requests(), timeout=timeout)
        try:
            count = 0
            async for _ in call:
                count += 1
                if count > 20:
                    break
            self.answers["ok"] += 1
        except grpc.aio.AioRpcError as error:
            self.answers[error.code().name.lower()] += 1
        finally:
            call.cancel()


class Services(FleetTarget):
    """What clients call."""

    name, share = "services", 0.35
    # Planning a run may take long, and is allowed to; so may a probe.
    RARE: ClassVar[dict[str, float]] = {"StartRun": 0.15, "PlanRun": 0.15, "ProbeNode": 0.3, "WatchRun": 0.5}

    def make(self, rng: random.Random) -> Input:
        paths = [path for path in CLIENT_PATHS if self.corpus.calls.get(path)]
        weights = [self.RARE.get(path.rpartition("/")[2], 1.0) for path in paths]
        path = rng.choices(paths, weights)[0]
        call = rng.choice(self.corpus.calls[path])
        return Input(self.name, path, tuple(changed(rng, self.corpus, call)))

    async def send(self, sent: Input) -> None:
        await self.call(sent.path, sent.parts, 2.0)


def changed(rng: random.Random, known: Corpus, call: RecordedCall) -> list[bytes]:
    """The call's requests with one or more of them changed, left out, repeated or in another order."""
    mutator = Mutator(rng, known)
    cls = corpus.METHODS[call.path][0]
    parts = list(call.requests[:6])
    if not parts:
        return [mutator.mutate(cls, b"")]
    at = rng.randrange(len(parts))
    parts[at] = mutator.mutate(cls, parts[at])
    what = rng.random()
    if what < 0.05:
        rng.shuffle(parts)
    elif what < 0.1:
        parts += parts[: rng.randrange(1, 4)]
    elif what < 0.15:
        parts = parts[:at]
    elif what < 0.2:
        # A message of another call.
        other = rng.choice(known.calls[rng.choice(sorted(known.calls))])
        parts.append(rng.choice(other.requests or other.responses or [b""]))
    return parts
