"""A machine as it is described to others: what explains a slow or a missing node, and decides nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

_LETTERS, _ITEMS = 64, 16


@dataclass(frozen=True)
class Box:
    """A machine, and what of it one process may use. Bytes, seconds; 0 and empty: not known, or no limit.

    Attributes:
        id: the same for every process on one machine until that starts again, containers included.
        time_seconds: its clock when this was made, since 1970.
        processors: of the machine; `usable_processors` those the process may run on; `processor_limit` so
            many of them its control group has time for.
        memory: RAM in all; `memory_available` of it; `memory_limit` what the control group allows.
        provider_asked: what the process was told to use, as `auto` or `cuda`; `providers` what its ONNX
            Runtime was built with.
        versions: of `python` and the packages that both ends of a connection should know of each other.
    """

    id: str = ""
    time_seconds: float = 0.0
    processors: int = 0
    usable_processors: int = 0
    processor_limit: float = 0.0
    memory: int = 0
    memory_available: int = 0
    memory_limit: int = 0
    provider_asked: str = ""
    providers: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    keepalive_seconds: float = 0.0

    @property
    def cores(self) -> float:
        """Processors the process has time on; 0: not known."""
        known = [x for x in (self.usable_processors or self.processors, self.processor_limit) if x > 0]
        return float(min(known, default=0))

    @property
    def room(self) -> int:
        """Bytes of RAM the process can have at most; 0: not known."""
        return min((x for x in (self.memory, self.memory_limit) if x > 0), default=0)

    def bounded(self) -> Box:
        """This, bounded: a peer may have made it long, unprintable or no number; it is kept and shown."""

        def text(value: str) -> str:
            return "".join(c if c.isprintable() else "?" for c in value[:_LETTERS])

        def number(value: float) -> float:
            return value if math.isfinite(value) and value >= 0 else 0.0

        return replace(
            self,
            id=text(self.id),
            time_seconds=number(self.time_seconds),
            processor_limit=number(self.processor_limit),
            keepalive_seconds=number(self.keepalive_seconds),
            provider_asked=text(self.provider_asked),
            providers=tuple(text(name) for name in self.providers[:_ITEMS]),
            versions={text(k): text(v) for k, v in list(self.versions.items())[:_ITEMS]},
        )
