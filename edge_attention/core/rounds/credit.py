"""Flow control by credits: what a receiver grants, a sender may have under way. Pure, for both sides.

window = Window()                   # sender: nothing granted yet
window.grant(Credit(1 << 20, 8))
window.take(4096)                   # True: send it

debt = Debt(Credit(1 << 20, 8))     # receiver: what it granted at first
debt.consumed(4096)                 # None, or a Credit to grant back now
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from edge_attention.core.messages.link import Credit

__all__ = ["CreditWindow", "Debt", "Outbox"]


class CreditWindow:
    """The sender's side: bytes and messages it may still send."""

    def __init__(self, credit: Credit = Credit(0, 0)) -> None:  # noqa: B008  (frozen)
        self.bytes = credit.bytes
        self.messages = credit.messages

    def grant(self, credit: Credit) -> None:
        """The receiver allows `credit` more than before."""
        self.bytes += credit.bytes
        self.messages += credit.messages

    def take(self, size: int) -> bool:
        """Whether a message of `size` bytes may go now; if so it counts as sent.

        The last message may overdraw the bytes: one larger than the whole window would wait forever.
        """
        if self.bytes <= 0 or self.messages <= 0:
            return False
        self.bytes -= size
        self.messages -= 1
        return True


class Debt:
    """The receiver's side: what it has consumed and not granted again.

    It is granted in lumps of a quarter of the window: a message for each message would double the traffic.
    """

    def __init__(self, window: Credit) -> None:
        self._window = window
        self._bytes = 0
        self._messages = 0

    def consumed(self, size: int) -> Credit | None:
        """A message of `size` bytes has been dealt with and takes no more memory here.

        Returns the credit to send to the other side, or None while it is too little for a message.
        """
        self._bytes += size
        self._messages += 1
        if 4 * self._bytes < self._window.bytes and 4 * self._messages < self._window.messages:
            return None
        credit = Credit(self._bytes, self._messages)
        self._bytes = 0
        self._messages = 0
        return credit


class Outbox:
    """Encoded messages on their way: in order, within the credit, and again if the connection breaks.

    The receiver takes messages in order, and grants credit back in lumps as it does; in between, the answer
    to a heartbeat says that it has taken all that went before that. What was sent and is known in neither
    way to be taken may be lost. `backlog` is the bytes that wait for credit, `flying` those that may be lost.
    """

    def __init__(self) -> None:
        self.backlog = 0
        self.flying = 0
        self.taken = 0
        """How many messages the receiver has taken, of all there ever were."""
        self._again = 0  # of those that wait, so many may have come
        self._window = CreditWindow()
        self._waiting: deque[bytes] = deque()
        self._flight: deque[bytes] = deque()
        # messages, on this connection
        self._sent = 0
        self._granted = 0
        self._mark = (-1, 0)  # a heartbeat, and the messages sent before it

    def __bool__(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._waiting)

    def __len__(self) -> int:
        """How many messages wait to be sent, or may be lost."""
        return len(self._waiting) + len(self._flight)

    def add(self, messages: Collection[bytes]) -> None:
        """Have `messages` sent after the others; one that waits already is not added again."""
        new = [data for data in messages if data not in self._waiting]
        self._waiting.extend(new)
        self.backlog += sum(map(len, new))

    def send(self, message: bytes) -> Sequence[bytes]:
        """`add` of one message, and `take`: what may be sent now."""
        if self._waiting or not self._window.take(len(message)):
            self.add([message])
            return self.take()
        self._flight.append(message)
        self.flying += len(message)
        self._sent += 1
        return (message,)

    @property
    def in_flight(self) -> int:
        """How many messages were sent and are not known to be taken."""
        return len(self._flight)

    def holds(self, message: bytes) -> bool:
        """Whether this very message waits, or may be lost."""
        return any(data is message for queue in (self._waiting, self._flight) for data in queue)

    def open(self, credit: Credit, taken: int = 0) -> None:
        """A connection is there, with this credit. `taken`: how many messages the receiver has, of all."""
        self._window = CreditWindow(credit)
        while self._again and self.taken < taken:
            self.backlog -= len(self._waiting.popleft())
            self.taken, self._again = self.taken + 1, self._again - 1
        self._again = 0

    def granted(self, credit: Credit) -> None:
        """The receiver took messages and allows as many more."""
        self._granted += credit.messages
        self._taken(self._granted)
        self._window.grant(credit)

    def beat(self, number: int) -> None:
        """Heartbeat `number` is sent now, behind all that was taken to be sent."""
        self._mark = number, self._sent

    def answered(self, number: int) -> None:
        """The receiver answered heartbeat `number`."""
        if number == self._mark[0]:
            self._taken(self._mark[1])

    def _taken(self, count: int) -> None:
        """The receiver has the first `count` messages of this connection."""
        while self._flight and self._sent - len(self._flight) < count:
            self.flying -= len(self._flight.popleft())
            self.taken += 1

    def broke(self) -> None:
        """The connection ended: what may be lost goes again, before the rest, on the next one."""
        self.backlog, self.flying = self.backlog + self.flying, 0
        self._waiting.extendleft(reversed(self._flight))
        self._again += len(self._flight)
        self._flight.clear()
        self._sent = 0
        self._granted = 0
        self._mark = (-1, 0)
        self._window = CreditWindow()

    def take(self) -> list[bytes]:
        """The messages that may be sent now, in order; they count as sent."""
        sent: list[bytes] = []
        while self._waiting and self._window.take(len(self._waiting[0])):
            sent.append(self._waiting.popleft())
        size = sum(map(len, sent))
        self.backlog, self.flying = self.backlog - size, self.flying + size
        self._flight.extend(sent)
        self._sent += len(sent)
        return sent

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        assert self.backlog == sum(map(len, self._waiting)), "the backlog is not what waits"
        assert self.flying == sum(map(len, self._flight)), "what may be lost is not what is on its way"
        assert 0 <= self._again <= len(self._waiting), "more go again than wait"
        assert len(self._flight) <= self._sent, "more are on their way than were sent"
        assert self._mark[1] <= self._sent, "a heartbeat after what is still to be sent"
