"""A model that is not cut, as it is kept: its graph, and which constants nodes are given apart from it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from edge_attention.core.errors import DataLoss

__all__ = ["WHOLE_FILE", "WholeModel"]

WHOLE_FILE = "whole.json"
"""In the folder of a model that is not cut, where that of a cut one has `schedule.json`."""


@dataclass(frozen=True)
class WholeModel:
    """Attributes:
    graph: SHA-256 of the graph's file: the model's own nodes, its dimensions as open as they were.
    weights: its inputs that are initializers of the model's file, by the same names; nodes freeze them.
    """

    graph: str
    weights: tuple[str, ...]

    def dumps(self) -> str:
        return json.dumps({"graph": self.graph, "weights": list(self.weights)})

    @classmethod
    def loads(cls, text: str) -> WholeModel:
        """Raises DataLoss where it is none."""
        try:
            data = json.loads(text)
            return cls(str(data["graph"]), tuple(map(str, data["weights"])))
        except (ValueError, KeyError, TypeError) as error:
            raise DataLoss(f"{WHOLE_FILE} cannot be read ({error}): deploy the model again") from None
