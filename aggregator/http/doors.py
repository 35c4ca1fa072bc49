"""What recipes offer, as HTTP: by what is offered, its endpoints and the form of its errors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aggregator.bounds.budget import Budgets
from aggregator.http import completion_answers, open_inference
from aggregator.http.completions import Completions
from aggregator.http.endpoints import HttpFamily
from aggregator.http.open_inference import OpenInference
from aggregator.inference.generation.generator import Generator
from aggregator.inference.protocol.data_plane import DataPlane

__all__ = ["families"]


def families(offers: Iterable[object], budgets: Budgets, state: Path) -> tuple[HttpFamily, ...]:
    """Those of what is offered. `state`: the state folder."""
    found = []
    for offered in offers:
        if isinstance(offered, DataPlane):
            made = OpenInference(offered, budgets, state)
            found.append(HttpFamily(made.endpoints(), open_inference.error_form))
        elif isinstance(offered, Generator):
            text = Completions(offered, budgets)
            found.append(HttpFamily(text.endpoints(), completion_answers.error_form, text.close))
    return tuple(found)
