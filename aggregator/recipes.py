"""The recipes of an aggregator: what it can do, each brought by a folder of its own."""

from __future__ import annotations

from collections.abc import Callable

from aggregator.attention.recipe import attention
from aggregator.checkup.recipe import checkup
from aggregator.engine.recipe import Engine, Recipe
from aggregator.inference.recipe import inference
from aggregator.training.recipe import training

__all__ = ["RECIPES"]

RECIPES: tuple[Callable[[Engine], Recipe], ...] = (
    attention,
    inference,
    training,
    checkup,
)
"""In the order of their sections on the page."""
