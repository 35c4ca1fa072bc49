"""Flow control by credits: what a receiver grants, a sender may have under way. Pure, for both sides.

window = Window()                   # sender: nothing granted yet
window.grant(Credit(1 << 20, 8))
window.take(4096)                   # True: send it

debt = Debt(Credit(1 << 20, 8))     # receiver: what it granted at first
debt.consumed(4096)                 # None, or a Credit to grant back now
"""

from __future__ import annotations

from edge_attention.core.session import Credit

__all__ = ["Debt", "Window"]


class Window:
    """The sender's side: bytes and messages it may still send."""

    def __init__(self, credit: Credit = Credit(0, 0)) -> None:  # noqa: B008  (frozen)
        self.bytes = credit.bytes
        self.messages = credit.messages

    def grant(self, credit: Credit) -> None:
        """The receiver allows so much more."""
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
        self._bytes = self._messages = 0

    def consumed(self, size: int) -> Credit | None:
        """One message of `size` bytes takes no more memory here. Returns what to grant, if it is time."""
        self._bytes += size
        self._messages += 1
        if 4 * self._bytes < self._window.bytes and 4 * self._messages < self._window.messages:
            return None
        credit = Credit(self._bytes, self._messages)
        self._bytes = self._messages = 0
        return credit
