"""What a recipe counts, as the rest of the service sees it."""

from __future__ import annotations

from collections.abc import Container

from edge_attention.wire.methods import AnyMethod


class RecipeCounts:
    """Base of a recipe's metrics: hears of what happens outside the recipe. As it is, it lets all pass.

    A recipe makes its metrics with `Metrics.make` and has itself told by `Metrics.add`.
    """

    def answered(self, method: AnyMethod, seconds: float) -> None:
        """A call without streams was answered; decoding, encoding and sending took so long."""

    def tick(self, nodes: Container[str], now: float) -> None:
        """Comes a few times a second. Forget what is of no node of `nodes`, and what is old.

        `now`: seconds of `time.monotonic`.
        """
