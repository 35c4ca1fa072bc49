"""Boxes and links by a word, for who has not measured any: rough figures.

Speeds and links are those that the design of cut models was counted with: estimates, which nobody has
measured on such boxes. `--measure`, or a deployment, measures yours.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_attention.core.placement.cuts.boxes import BoxLink, ComputeBox

__all__ = ["BOX_KINDS", "LINK_KINDS", "THREAD_FLOPS", "box_of_threads"]

BOX_KINDS: Mapping[str, float] = {"pi4": 18e9, "pi5": 55e9, "n100": 110e9, "nuc": 300e9}
"""Name -> flops a second."""

LINK_KINDS: Mapping[str, BoxLink] = {
    "local": BoxLink(),
    "1gbe": BoxLink(0.1e-3, 115e6, 115e6),
    "2.5gbe": BoxLink(0.1e-3, 285e6, 285e6),
    "wifi5": BoxLink(2.0e-3, 25e6, 25e6, 25e6, "wifi5"),
    "wifi6": BoxLink(1.5e-3, 60e6, 60e6, 60e6, "wifi6"),
}
"""Name -> its link. What is on a Wi-Fi shares its air, each byte once for each way."""

THREAD_FLOPS = 30e9
"""Of a node that is known by its threads alone, before it was measured."""


def box_of_threads(name: str, threads: int, memory: float) -> ComputeBox:
    """A node as it registers; what was measured of it corrects its speed (`FleetMeasures.box`)."""
    return ComputeBox(name, THREAD_FLOPS * max(threads, 1), memory=memory)
