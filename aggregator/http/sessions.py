"""Sessions of signed-in browsers, and the limit on bad sign-ins. Pure; seconds of any steady clock."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SESSIONS, OF_ONE = 256, 32
"""Sessions at a time, of all and of one who signs in; the oldest ends when another begins."""
SECONDS = 12 * 3600.0
"""A session's longest life. It ends before when its token does."""
TRIES = 8
"""Bad sign-ins of one address within WINDOW, after which it has to wait."""
WINDOW = 60.0
ADDRESSES = 4096
"""Addresses whose bad sign-ins are remembered."""


@dataclass
class PageSession:
    """The authorization a browser's requests stand for, and whose it was when it was last checked.

    `who` began it, by name.
    """

    authorization: str = field(repr=False)
    peer: Any
    began: float
    checked: float
    who: str = ""


class Sessions:
    """Sessions by the digest of their cookie: a memory dump or a log gives no cookie away."""

    def __init__(self, new_cookie: Callable[[], str]) -> None:
        self._new_cookie = new_cookie
        self._sessions: OrderedDict[str, PageSession] = OrderedDict()

    def begin(self, authorization: str, peer: Any, now: float, who: str = "") -> str:
        """The cookie of a new session of `who`; "": nobody in particular."""
        cookie = self._new_cookie()
        own = [key for key, session in self._sessions.items() if who and session.who == who]
        for key in own[: max(len(own) - OF_ONE + 1, 0)]:
            del self._sessions[key]
        self._sessions[_key(cookie)] = PageSession(authorization, peer, now, now, who)
        while len(self._sessions) > SESSIONS:
            self._sessions.popitem(last=False)
        return cookie

    def find(self, cookie: str, now: float) -> PageSession | None:
        session = self._sessions.get(_key(cookie))
        if session is not None and now - session.began > SECONDS:
            self.end(cookie)
            return None
        return session

    def end(self, cookie: str) -> None:
        self._sessions.pop(_key(cookie), None)


def _key(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()


class Attempts:
    """Counts bad sign-ins by address."""

    def __init__(self) -> None:
        self._bad: OrderedDict[str, list[float]] = OrderedDict()

    def wait(self, address: str, now: float) -> float:
        """Seconds until `address` may try again; 0: now."""
        times = [t for t in self._bad.get(address, ()) if now - t < WINDOW]
        return times[-TRIES] + WINDOW - now if len(times) >= TRIES else 0.0

    def bad(self, address: str, now: float) -> None:
        times = self._bad.pop(address, [])
        self._bad[address] = [*times, now][-TRIES:]
        while len(self._bad) > ADDRESSES:
            self._bad.popitem(last=False)

    def good(self, address: str) -> None:
        self._bad.pop(address, None)
