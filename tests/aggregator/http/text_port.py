"""OpenAI's calls before a small decoder whose tokens are bytes."""

from __future__ import annotations

import json
from types import SimpleNamespace

from ports import run

from aggregator.bounds.budget import Budgets
from aggregator.inference.generation.generator import Generator
from aggregator.inference.generation.metrics import GenerationMetrics
from aggregator.inference.generation.request import GenerationRequest
from aggregator.inference.generation.texts import DeploymentTexts
from aggregator.inference.traffic import ModelTraffic
from aggregator.observe.metrics import Metrics
from tests.aggregator.inference.generation.local_sessions import LocalSessions

PROMPT = "to be, or not to be: to be, or"


def text_port(folder, decoder):
    """Runs scenarios; `config` writes its tokenizer_config.json."""
    (folder / "tokenizer.json").write_text(json.dumps({"edge_attention": "bytes"}))
    budgets = Budgets()
    sessions = LocalSessions({"small": decoder})
    texts = DeploymentTexts(lambda name: (made.deployment, folder))
    traffic = ModelTraffic(lambda: made.now)
    generator = Generator(sessions, texts, budgets, GenerationMetrics(Metrics()), traffic)
    made = SimpleNamespace(
        deployment="small-0",
        now=100.0,
        traffic=traffic,
        run=lambda scenario, **more: run(scenario, offers=(generator,), budgets=budgets, **more),
        budgets=budgets,
        sessions=sessions,
        generator=generator,
        config=lambda **said: (folder / "tokenizer_config.json").write_text(json.dumps(said)),
    )
    return made


async def text_of(generator, **asked):
    events = [one async for one in generator.generate(GenerationRequest(**asked), "", 60.0)]
    return "".join(one.text for one in events)


def streamed(body):
    """The events of a stream, its end left out."""
    *events, done, empty = body.decode().split("\n\n")
    assert (done, empty) == ("data: [DONE]", "")
    return [json.loads(one.removeprefix("data: ")) for one in events if one.startswith("data:")]
