"""The turns of each kind of call: attends short and long, appends, long lists, and encodings by node."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from aggregator.bounds.admission import Admission
from aggregator.bounds.bounds import ATTENDS_BYTES
from aggregator.bounds.gate import Gate

LONG_SECONDS = 0.25
"""An attend that keeps a node busy for longer is a long one: so few of them run that short ones find a node's
other workers free (there are four). Of one caller fewer still."""
MANY_SEGMENTS = 128
"""Segments from which an attend is a long one, whatever it reads: each is a task for a node."""
LONG, LONG_SHARE = 3, 2
APPENDS = 8
ENCODES = 2
"""Appends from datasets at one node: it has four workers, and encoding takes a while."""
PLANS = 1
"""Large attends that are planned: by threads, of which others' appends need some, too."""
LISTS = 1
"""Long lists that are written out: each takes a thread its time, which the event loop shares."""
NODES = 1024
MOST_ATTENDS = 1024
_SMOOTHING = 0.1
_SMALL = 0.005


class Turns:
    """Who may run when. `refused` is told the bound's name at each refusal."""

    def __init__(self, refused: Callable[[str], None] = lambda name: None) -> None:
        self._refused = refused
        self.attends = Gate(Admission("attend-turns", ATTENDS_BYTES, most=MOST_ATTENDS), refused)
        self.long_attends = Gate(
            Admission("long-attend-turns", ATTENDS_BYTES, LONG, LONG, LONG_SHARE, False), refused
        )
        self.appends = Gate(Admission("append-turns", 1, APPENDS, APPENDS, alike=False), refused)
        self.plans = Gate(Admission("plan-turns", 1, PLANS, PLANS, PLANS, False), refused)
        self.lists = Gate(Admission("list-turns", 1, LISTS, LISTS, LISTS, False), refused)
        self._encodes: OrderedDict[str, Gate] = OrderedDict()
        self._seconds_a_work = 0.0

    @property
    def kinds(self) -> dict[str, Gate]:
        """The gates of calls that all nodes share, by name; those by node are left out."""
        return {
            "attend": self.attends,
            "long_attend": self.long_attends,
            "plan": self.plans,
            "append": self.appends,
            "list": self.lists,
        }

    def encodes(self, node: str) -> Gate:
        """The gate of appends that `node` computes from its datasets."""
        gate = self._encodes.pop(node, None) or Gate(
            Admission("encode-turns", 1, ENCODES, ENCODES, ENCODES, False), self._refused
        )
        self._encodes[node] = gate
        while len(self._encodes) > NODES:
            self._encodes.popitem(last=False)
        return gate

    def attend(self, work: float, segments: int = 1) -> Gate:
        """The gate of an attend of so much work: queries times heads times dimensions times tokens seen."""
        long = work * self._seconds_a_work > LONG_SECONDS or segments >= MANY_SEGMENTS
        return self.long_attends if long else self.attends

    def learn(self, work: float, seconds: float) -> None:
        """An attend of `work` kept the busiest node's graphs busy for `seconds`."""
        if seconds > _SMALL and work > 0:
            rate = seconds / work
            self._seconds_a_work += (rate - self._seconds_a_work) * (
                _SMOOTHING if self._seconds_a_work else 1
            )
