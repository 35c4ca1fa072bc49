"""Generations that come, end, are left and meet nodes that go and come back, at once over real kernels:
each gives the tokens of a plain loop over the file by ONNX Runtime, by every plan, drawn or the likeliest."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from decoder_runs import WholeDecoder
from house import House, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_decoder_serving import EXPORTS, PLANS, Serving

from aggregator.bounds.budget import Budgets
from aggregator.inference.decoding import scheduling, session_bytes, session_places
from aggregator.inference.generation.generator import Generator
from aggregator.inference.generation.metrics import GenerationMetrics
from aggregator.inference.generation.request import GenerationRequest
from aggregator.inference.generation.texts import DeploymentTexts
from aggregator.observe.metrics import Metrics
from edge_attention.core.errors import NotFound
from edge_attention.core.generation.sampling import Sampling, choose

MODEL = EXPORTS / "gpt2_cached.onnx"
ENDS = (3, 11)
SECONDS = 60.0
CACHED = re.compile(r"/p\d+/a\d+/[kv]$")
"""What a node calls keys and values of a session."""


@dataclass(frozen=True)
class Asked:
    """One generation: begun `after` turns of the loop, and left after so many events (None: it is not)."""

    prompt: tuple[int, ...]
    sampling: Sampling
    most: int
    speculate: bool
    after: int
    leaves: int | None


@dataclass(frozen=True)
class Trouble:
    """What becomes of a node once nodes have run so many programs; back after `turns` of the loop."""

    programs: int
    node: str
    how: str
    turns: int


class SessionsOf:
    """The sessions of one DecoderServing, as the generator has them."""

    def __init__(self, serving):
        self.serving = serving

    def form(self, model):
        length = self.serving.serving.machine.form.length
        return SimpleNamespace(vocabulary=self.serving.vocabulary, length=length, states="")

    def models(self):
        return ["m"]

    def version(self, model):
        return "m-1"

    async def open(self, model, owner, seconds, inputs=None, ids=(), priority=0, greedy=False):
        return self.serving.serving.open(owner, None, priority, greedy)

    def lacking(self, session):
        return ""

    async def extend(self, session, ids, seconds):
        return await self.serving.extend(session, [int(one) for one in ids], seconds)

    async def truncate(self, session, length):
        self.serving.serving.truncate(session.number, length)

    async def close(self, session):
        self.serving.serving.close_session(session.number)


def plainly(asked, length):
    """The tokens that a loop over the file gives, one at a time, and why it ended."""
    whole, tokens = WholeDecoder(MODEL), list(asked.prompt)
    for token in tokens:
        logits = whole.step(token)
    came = []
    while len(came) < min(asked.most, length - len(asked.prompt) + 1):
        token = choose(logits, asked.sampling, len(tokens), tokens)
        if token in ENDS:
            return came, "stop"
        tokens.append(token)
        came.append(token)
        if len(tokens) <= length:
            logits = whole.step(token)
    return came, "length"


async def meets(fleet, trouble):
    """The node goes, and comes back."""
    box = fleet.boxes[trouble.node]
    if trouble.how == "forgets":
        for name in fleet.stored(trouble.node):
            box.node.store.drop(name)
        return
    getattr(box, "lose" if trouble.how == "lost" else "disconnect")()
    for _ in range(trouble.turns):
        await asyncio.sleep(0)
    box.connect(fresh=trouble.how != "away")


async def answered(generator, asked):
    """The tokens that came, and why it ended; "" where it was left."""
    for _ in range(asked.after):
        await asyncio.sleep(0)
    s = asked.sampling
    request = GenerationRequest(
        "m", asked.prompt, asked.most, s.temperature, s.top_p, s.top_k, s.seed, (), s.min_p,
        s.repetition_penalty, asked.speculate,
    )  # fmt: skip
    came, finish, events = [], "", 0
    async with aclosing(generator.generate(request, "me", SECONDS)) as coming:
        async for event in coming:
            came += event.tokens
            finish = event.finish
            events += 1
            if events == asked.leaves:
                break
    return came, finish


async def at_once(fleet, folder, all_asked, troubles):
    (folder / "tokenizer.json").write_text(json.dumps({"edge_attention": "bytes"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(ENDS)}))
    texts = DeploymentTexts(lambda name: ("m-1", folder))
    generator = Generator(SessionsOf(fleet), texts, Budgets(), GenerationMetrics(Metrics()))
    ran, due, tasks = Counter(), sorted(troubles, key=lambda one: one.programs), []

    def watched(box, run):
        def one(program):
            ran["programs"] += 1
            run(program)
            # One node at a time: with all of them away nothing could go on.
            if due and ran["programs"] >= due[0].programs and all(task.done() for task in tasks):
                tasks.append(asyncio.create_task(meets(fleet, due.pop(0))))

        box.run = one

    for box in fleet.boxes.values():
        watched(box, box.run)
    length = fleet.serving.machine.form.length
    found = await asyncio.gather(*(answered(generator, asked) for asked in all_asked))
    for asked, (came, finish) in zip(all_asked, found, strict=True):
        expected = plainly(asked, length)
        if finish:
            assert (came, finish) == expected
        else:
            assert came == expected[0][: len(came)]
    await asyncio.gather(*tasks)
    fleet.serving.machine.check()
    assert not fleet.serving.machine.sessions or all(
        s.closing for s in fleet.serving.machine.sessions.values()
    )
    await until(lambda: not any(CACHED.search(name) for node in "abc" for name in fleet.stored(node)))
    await texts.close()


SAMPLINGS = st.builds(
    Sampling,
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.01, 100.0]),
    temperature=st.sampled_from([0.0, 0.0, 1e-9, 0.7, 1.0, 100.0]),
    top_k=st.sampled_from([0, 1, 7, 10**6]),
    top_p=st.sampled_from([1.0, 0.9, 1e-9]),
    min_p=st.sampled_from([0.0, 0.0, 0.1]),
    seed=st.sampled_from([0, -(2**63), 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1),
)
PROMPTS = st.one_of(
    st.lists(st.integers(0, 39), min_size=1, max_size=20),
    # What repeats itself is guessed to go on so.
    st.builds(
        lambda part, times: part * times,
        st.lists(st.integers(0, 39), min_size=1, max_size=4),
        st.integers(2, 6),
    ),
).map(tuple)
ASKED = st.builds(
    Asked,
    prompt=PROMPTS,
    sampling=SAMPLINGS,
    most=st.sampled_from([1, 2, 9, 200]),
    speculate=st.booleans(),
    after=st.integers(0, 300),
    leaves=st.none() | st.none() | st.integers(1, 6),
)
TROUBLES = st.builds(
    Trouble,
    programs=st.integers(1, 120),
    node=st.sampled_from("abc"),
    how=st.sampled_from(["lost", "away", "restarts", "forgets"]),
    turns=st.integers(0, 60),
)


@pytest.mark.parametrize("word", PLANS)
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(all_asked=st.lists(ASKED, min_size=1, max_size=4), troubles=st.lists(TROUBLES, max_size=3))
def test_each_gives_what_a_plain_loop_gives(word, tmp_path_factory, all_asked, troubles):
    folder = tmp_path_factory.mktemp("interleaved")

    async def run():
        with House() as house:
            fleet = Serving(house, folder / "cut", MODEL, PLANS[word])
            await fleet.serving.ready(60)
            await at_once(fleet, folder, all_asked, troubles)
            await fleet.serving.close(NotFound("it ends"))

    with pytest.MonkeyPatch.context() as changed:
        # Long prompts are cut, and parts take turns in storing, within the few positions of the model.
        changed.setattr(scheduling, "CHUNK_ROWS", 8)
        for module in (session_places, session_bytes):
            changed.setattr(module, "BLOCK", 4)
        asyncio.run(run())
