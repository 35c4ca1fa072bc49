"""Callers who cancel, are late, hang up, and ask again by all doors: each answer that comes is its own.

    python -m tests.faults.callers                            # 8 s, what CI runs
    python -m tests.faults.callers --seconds 600 --kills 40   # harm is done now and then (harming.py)

Models that are cut, that run several requests as one, and that are deployed anew under their name, decoders
with sessions that share trips, and contexts are asked by our client, the Open Inference Protocol's streams
and OpenAI's completions. No two requests are alike, so an answer that is another's is a wrong number; each is
looked at beside one ONNX Runtime here. In the end all doors answer, and nothing of what was given up is
counted any more.

It ends with a line of JSON, and 1 if an answer was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "e2e"))

import aiohttp
import grpc.aio
import numpy as np
import onnx
import onnxruntime
from fleets import SPEC, Fleet, truth
from onnx import numpy_helper

from edge_attention import AsyncClient
from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.generation.sampling import Sampling
from edge_attention.core.messages.open_inference import InferenceRequest, NamedTensor
from edge_attention.demo.local_decoder import LocalDecoder
from edge_attention.graphs.builders import attention_decoder, attention_sequences
from edge_attention.wire import open_inference
from protos.edge_attention.open_inference.v2 import open_inference_pb2 as pb
from tests.faults.harming import NODES, killing, start
from tests.faults.products import Products

BERT = Path(__file__).resolve().parent.parent / "graphs/axes/exports/bert.onnx"
FLAGS = ("--lease", "5", "--metrics-port", "0")
TOKENS = 16
DECODERS = {"by-heads": ("heads", ["a", "b"]), "by-layers": ("layers", ["b", "c"])}
MODELS = {"cut": "tokens", "rows": "replicate"}
CALLERS = 6
DEADLINE = 60.0
AGAIN = 90.0
"""Seconds in which all doors answer again, and nothing is counted any more."""
DEPLOYED_ANEW = 3.0
"""Seconds between two versions of one model."""
NUMPY = {"FP32": np.float32, "INT64": np.int64}
COUNTED = frozenset(
    {"calls", "request-bytes", "answer-bytes", "append-bytes", "appends", "inferences", "inference-streams",
     "inference-bytes", "generations", "body-bytes", "decoder-sessions", "encoder-bytes"}
)  # fmt: skip
"""Bounds of which nothing is used once nobody asks."""


class Wrong(Exception):
    """An answer that is not its request's."""


@dataclass
class Tally:
    """What came of the calls, by door; `ended`: how those ended that brought no answer."""

    exact: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    last: dict[str, str] = field(default_factory=dict)
    """By door and error, the last one's words."""
    wrong: list[str] = field(default_factory=list)
    left: dict[str, float] = field(default_factory=dict)
    """What is still counted in the end."""


class Truth:
    """What one machine makes of everything."""

    def __init__(self) -> None:
        file = attention_sequences(256, 8, 24, 2, 2, causal=True, rotary=True, hidden=32, seed=5)
        initializers = onnx.load_from_string(file).graph.initializer
        self.decoder = attention_decoder(
            {one.name: numpy_helper.to_array(one) for one in initializers}, 2, 256
        )
        self._local = LocalDecoder(self.decoder)
        self._bert = onnxruntime.InferenceSession(str(BERT))
        self.outputs = [one.name for one in self._bert.get_outputs()]

    def require_model(self, found: dict[str, Any], feeds: dict[str, Any]) -> None:
        for name, wanted in zip(self.outputs, self._bert.run(None, feeds), strict=True):
            error = float(np.abs(found[name] - wanted).max() / np.abs(wanted).max())
            if not error <= 1e-5:
                raise Wrong(f"{name} is {error:.3g} off")

    def text(self, prompt: str, count: int, settings: dict[str, Any]) -> tuple[int, ...]:
        return self._local.generate(prompt, count, Sampling(**settings))


class Caller:
    """One who asks by a door of its choice, and may lose patience."""

    def __init__(
        self,
        number: int,
        fleet: Fleet,
        truth: Truth,
        tally: Tally,
        seed: int,
        decoders: Sequence[str],
        products: Products,
    ) -> None:
        self._name = f"memory{number}"
        self._address = fleet.address
        self._web = web_of(fleet)
        self._truth = truth
        self._tally = tally
        self._decoders = decoders
        self._products = products
        self._random = random.Random(f"{seed}.{number}")
        self._numbers = np.random.default_rng([seed, number])
        self._keys, self._values = (np.zeros((0, 2, dim), np.float32) for dim in (16, 8))
        self._appends, self._unknown = 0, False
        self.doors: dict[str, Callable[[AsyncClient, float], Awaitable[None]]] = {
            "infer": self.infer,
            "generate": self.generate,
            "stream": self.stream,
            "completions": self.completions,
            "memory": self.memory,
            "product": self.product,
        }

    async def ask(self, until: float) -> None:
        """Ask, one call after the other, until it is late."""
        client = AsyncClient(self._address, timeout=DEADLINE)
        try:
            while time.monotonic() < until:
                door = self._random.choice(list(self.doors))
                fate = self._random.choice(("stays", "stays", "stays", "cancels", "is late", "hangs up"))
                within = self._random.choice((0.003, 0.03, 0.3)) * self._random.random()
                await self._called(client, door, fate, within)
                if fate == "hangs up":
                    await client.close()
                    client = AsyncClient(self._address, timeout=DEADLINE)
        finally:
            await client.close()

    async def _called(self, client: AsyncClient, door: str, fate: str, within: float) -> None:
        deadline = max(within, 1e-3) if fate == "is late" else DEADLINE
        call = asyncio.ensure_future(self.doors[door](client, deadline))
        if fate in ("cancels", "hangs up"):
            await asyncio.wait([call], timeout=within)
            if fate == "hangs up" and not call.done():
                await client.close()
            call.cancel()
        await asyncio.wait([call])
        if call.cancelled():
            self._tally.ended[fate] += 1
            return
        error = call.exception()
        if error is None:
            self._tally.exact[door] += 1
        elif isinstance(error, Wrong):
            self._tally.wrong.append(f"{door}, who {fate}: {error}")
        elif isinstance(error, EdgeAttentionError | aiohttp.ClientError | grpc.aio.BaseError | TimeoutError):
            self._tally.ended[type(error).__name__] += 1
            self._tally.last[f"{door}: {type(error).__name__}"] = str(error)[:300]
        else:
            raise error

    # The doors

    def _feeds(self, rows: int) -> dict[str, Any]:
        ids = self._numbers.integers(1, 40, (rows, TOKENS))
        mask = np.ones_like(ids)
        mask[:, TOKENS - int(self._numbers.integers(0, 5)) :] = 0
        return {"input_ids": ids, "attention_mask": mask}

    def _text(self) -> tuple[str, int, dict[str, Any]]:
        """A prompt, how many tokens are to come, and how they are drawn."""
        length = self._random.choice((3, 10, 40))
        prompt = "".join(self._random.choice("abcdefghijklmnop ") for _ in range(length)) + "."
        settings: dict[str, Any] = {}
        if self._random.random() < 0.5:
            settings = {"temperature": 1.1, "top_k": 40, "seed": self._random.randrange(1 << 30)}
        return prompt, self._random.choice((4, 12, 30)), settings

    async def infer(self, client: AsyncClient, deadline: float) -> None:
        name = self._random.choice(list(MODELS))
        model = await client.model(name)
        feeds = self._feeds(1 if name == "cut" else self._random.choice((1, 1, 2, 3)))
        answer = await model.infer(feeds, deadline=deadline)
        if not answer.exact:
            raise Wrong(f"{name} answers in part: {answer.lacking}")
        self._truth.require_model({output: answer[output] for output in self._truth.outputs}, feeds)

    async def product(self, client: AsyncClient, deadline: float) -> None:
        if wrong := await self._products.ask(client, self._numbers, deadline):
            raise Wrong(wrong)

    async def generate(self, client: AsyncClient, deadline: float) -> None:
        model = await client.model(self._random.choice(self._decoders))
        prompt, count, settings = self._text()
        wanted = self._truth.text(prompt, count, settings)
        going_on = model.generate(prompt, max_tokens=count, deadline=deadline, **settings)
        async for _ in going_on:
            self._require_text(wanted, tuple(going_on.tokens), False)
        self._require_text(wanted, tuple(going_on.tokens), True)

    def _require_text(self, wanted: Any, found: Any, whole: bool) -> None:
        if found != (wanted if whole else wanted[: len(found)]):
            raise Wrong(f"{found} of {wanted}")

    async def stream(self, client: AsyncClient, deadline: float) -> None:
        """Several requests on one stream, which end in any order."""
        asked: dict[str, Callable[[dict[str, Any], bool], bool]] = {}
        async with asyncio.timeout(deadline), grpc.aio.insecure_channel(self._address) as channel:
            path = open_inference.MODEL_STREAM_INFER.path
            stream: Any = channel.stream_stream(
                path, open_inference.REQUEST.encode, pb.ModelStreamInferResponse.FromString
            )()
            for number in range(self._random.choice((1, 3, 6))):
                request, take = self._streamed(f"{number}")
                asked[request.id] = take
                await stream.write(request)
            await stream.done_writing()
            async for came in stream:
                response = came.infer_response
                if came.error_message:
                    self._tally.ended["on a stream"] += 1
                    del asked[response.id]
                    continue
                found = {
                    one.name: np.frombuffer(raw, NUMPY[one.datatype]).reshape(one.shape)
                    for one, raw in zip(response.outputs, response.raw_output_contents, strict=True)
                    if one.datatype in NUMPY
                }
                last = response.parameters["triton_final_response"].bool_param
                if asked[response.id](found, last):
                    del asked[response.id]
        if asked:
            raise Wrong(f"requests {', '.join(asked)} of a stream were not answered")

    def _streamed(self, id: str) -> tuple[InferenceRequest, Callable[[dict[str, Any], bool], bool]]:
        """A request of a stream; and what takes each of its answers, and says whether it was the last."""
        if self._random.random() < 0.5:
            feeds = self._feeds(1)
            inputs = tuple(NamedTensor(name, "INT64", array.shape, array) for name, array in feeds.items())

            def whole(found: dict[str, Any], last: bool) -> bool:
                self._truth.require_model(found, feeds)
                return True

            return InferenceRequest(self._random.choice(list(MODELS)), id=id, inputs=inputs), whole
        prompt, count, settings = self._text()
        wanted, tokens = self._truth.text(prompt, count, settings), list[int]()
        text = np.array([prompt.encode()], object)

        def some(found: dict[str, Any], last: bool) -> bool:
            tokens.extend(found["output_ids"].tolist())
            self._require_text(wanted, tuple(tokens), last)
            return last

        name = f"{self._random.choice(self._decoders)}.generate"
        parameters = {"max_tokens": count, **settings}
        tensor = NamedTensor("text_input", "BYTES", (1,), text)
        return InferenceRequest(name, id=id, inputs=(tensor,), parameters=parameters), some

    async def completions(self, client: AsyncClient, deadline: float) -> None:
        prompt, count, settings = self._text()
        text = bytes(self._truth.text(prompt, count, settings)).decode("utf-8", "replace")
        streams = self._random.random() < 0.5
        asked = {
            "model": self._random.choice(self._decoders),
            "prompt": prompt,
            "max_tokens": count,
            "stream": streams,
            **({"temperature": 0.0} | settings),
        }
        url = f"http://{self._web}/v1/completions"
        async with asyncio.timeout(deadline), aiohttp.ClientSession() as web:  # noqa: SIM117
            async with web.post(url, json=asked) as answer:
                answer.raise_for_status()
                if not streams:
                    found = (await answer.json())["choices"][0]["text"]
                    return self._require_text(text, found, True)
                found, ended = "", False
                async for line in answer.content:
                    said = line.decode().removeprefix("data: ").strip()
                    if said == "[DONE]":
                        ended = True
                    elif said.startswith("{"):
                        event = json.loads(said)
                        if "error" in event:
                            raise aiohttp.ClientError(event["error"])
                        found += event["choices"][0]["text"]
                        self._require_text(text, found, False)
                if ended:
                    self._require_text(text, found, True)

    async def memory(self, client: AsyncClient, deadline: float) -> None:
        """An append that is made once, however often it is asked for; and what is there is attended."""
        if self._unknown:  # who asked was cancelled, and nobody knows what is in that context
            first, self._appends, self._unknown = self._name.partition("-")[0], 0, False
            self._name = f"{first}-{self._random.randrange(1 << 30)}"
            self._keys, self._values = self._keys[:0], self._values[:0]
        if not self._appends:
            context = await client.create_context(self._name, replicas=2, exist_ok=True, **SPEC)
        else:
            context = await client.context(self._name)
        count = self._random.choice((1, 5, 70))
        keys, values = (self._numbers.standard_normal((count, 2, dim)).astype(np.float32) for dim in (16, 8))
        self._appends += 1
        self._unknown = True
        asking, id = 0, f"append{self._appends}"
        while True:
            asking += 1
            call = asyncio.ensure_future(context.append(keys, values, request_id=id))
            try:
                if asking == 1:  # then again, until it is known
                    async with asyncio.timeout(min(deadline, self._random.random() * 0.05)):
                        await asyncio.shield(call)
                else:
                    await call
                break
            except (EdgeAttentionError, TimeoutError) as error:
                call.cancel()
                await asyncio.wait([call])
                if asking == 200:
                    raise Wrong(f"an append could not be made: {error}") from None
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                call.cancel()
                raise
        self._unknown = False
        self._keys, self._values = np.concatenate([self._keys, keys]), np.concatenate([self._values, values])
        queries = self._numbers.standard_normal((2, 4, 16)).astype(np.float32)
        answer = await context.attend(queries, deadline=DEADLINE)
        if answer.exact:
            out, _ = truth(queries, self._keys, self._values)
            if not (error := float(np.abs(answer.out - out).max())) <= 1e-5:
                raise Wrong(f"an attend over {len(self._keys)} tokens is {error:.3g} off")


@contextlib.asynccontextmanager
async def deployed(folder: Path, truth: Truth, decoders: Sequence[str]) -> AsyncIterator[Fleet]:
    """A fleet with all that is asked."""
    decoder = folder / "decoder.onnx"
    decoder.write_bytes(truth.decoder)
    fleet = await asyncio.to_thread(Fleet, folder, *FLAGS)
    with fleet:
        for name in NODES:
            await asyncio.to_thread(start, fleet, name)
        for name in NODES:
            await asyncio.to_thread(fleet.wait_ready, name)
        async with AsyncClient(fleet.address, timeout=DEADLINE) as client:
            for name, plan in MODELS.items():
                options = {"max_batch": 4, "max_queue_delay": 0.005} if name == "rows" else {}
                sizes = {"sequence": TOKENS}
                await client.deploy(BERT, name, plan=plan, nodes=NODES, dimensions=sizes, **options)
            for name in decoders:
                plan, nodes = DECODERS[name]
                await client.deploy(decoder, name, plan=plan, nodes=nodes, tokenizer="bytes")
        yield fleet


def web_of(fleet: Fleet) -> str:
    """Where the aggregator serves HTTP. Of the lines that say so only the last ones are kept: ask early."""
    return fleet.child(AGGREGATOR).wait_for(r"metrics on (\S+:\d+)")[1]


async def counted(web: str) -> dict[str, float]:
    """What is still counted of what was asked."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{web}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    found: dict[str, float] = {}
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name.startswith("edge_attention_aggregator_bound_used_ratio"):
            bound = name.split('"')[1]
            if bound in COUNTED and float(value):
                found[bound] = float(value)
    return found


async def run(
    seconds: float, kills: int, seed: int, folder: Path, decoders: Sequence[str] = tuple(DECODERS)
) -> Tally:
    truth, tally, products = Truth(), Tally(), Products()
    async with (
        deployed(folder, truth, decoders) as fleet,
        AsyncClient(fleet.address, timeout=DEADLINE) as deploying,
    ):
        await products.deploy(deploying)
        web, until = web_of(fleet), time.monotonic() + seconds
        callers = [Caller(number, fleet, truth, tally, seed, decoders, products) for number in range(CALLERS)]
        async with asyncio.TaskGroup() as group:
            for caller in callers:
                group.create_task(caller.ask(until))
            group.create_task(killing(fleet, kills, seconds, seed))
            group.create_task(products.deploy_anew(deploying, DEPLOYED_ANEW, until))
        end = time.monotonic() + AGAIN
        for door in callers[0].doors:  # each by itself, once
            before = tally.exact[door]
            while tally.exact[door] == before and time.monotonic() < end:
                async with AsyncClient(fleet.address, timeout=DEADLINE) as client:
                    await callers[0]._called(client, door, "stays", 0.0)
                await asyncio.sleep(0.05)
            assert tally.exact[door] > before, f"{door} does not answer any more: {tally}"
        while (left := await counted(web)) and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        tally.left = left
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.callers")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = asyncio.run(run(options.seconds, options.kills, options.seed, Path(folder)))
    print(json.dumps(vars(tally)))
    return 1 if tally.wrong or tally.left else 0


if __name__ == "__main__":
    sys.exit(main())
