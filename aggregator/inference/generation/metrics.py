"""What is counted of generations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from aggregator.inference.generation.request import GenerationEvent
from aggregator.observe.metrics import Metrics

__all__ = ["GenerationMetrics"]

OUTCOMES = ("stop", "length", "failed", "left")


class GenerationMetrics:
    """Generations by outcome, tokens, what guesses did, seconds."""

    def __init__(self, metrics: Metrics) -> None:
        make = metrics.make
        self.generations = make.counter(
            "generations_total",
            "Generations by outcome: stop (a token or word that ends the text), length, failed, left (by who "
            "asked).",
            "outcome",
        )
        self.tokens = make.counter(
            "generation_tokens_total", "Tokens of generations: prompt (read), completion (came).", "kind"
        )
        self.guesses = make.counter(
            "generation_guesses_total",
            "Tokens that were verified as guesses, by result: right, wrong.",
            "result",
        )
        self.seconds = make.histogram(
            "generation_seconds",
            "Seconds of a generation by stage. first: to its first token. token: a further one, a mean. all.",
            "stage",
        )
        self.under_way = make.gauge("generations_under_way", "Generations under way.")
        for outcome in OUTCOMES:
            self.generations.labels(outcome)
        for kind in ("prompt", "completion"):
            self.tokens.labels(kind)
        for result in ("right", "wrong"):
            self.guesses.labels(result)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Around a generation. What ended well `came` has counted."""
        self.under_way.inc()
        try:
            yield
        except Exception:
            self.generations.labels("failed").inc()
            raise
        except BaseException:  # cancelled, or its iterator closed
            self.generations.labels("left").inc()
            raise
        finally:
            self.under_way.dec()

    def came(self, event: GenerationEvent) -> None:
        """An event of a generation."""
        usage = event.usage
        if usage is None:
            return
        self.generations.labels(event.finish).inc()
        self.tokens.labels("prompt").inc(usage.prompt_tokens)
        self.tokens.labels("completion").inc(usage.completion_tokens)
        self.guesses.labels("right").inc(usage.accepted)
        self.guesses.labels("wrong").inc(usage.guessed - usage.accepted)
        self.seconds.labels("first").observe(usage.seconds["prompt"])
        self.seconds.labels("all").observe(usage.seconds["all"])
        if usage.completion_tokens > 1:
            self.seconds.labels("token").observe(usage.seconds["tokens"] / (usage.completion_tokens - 1))
