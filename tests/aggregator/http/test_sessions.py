"""Sessions end, and bad sign-ins have to wait."""

from __future__ import annotations

import itertools

from aggregator.http.sessions import (
    ADDRESSES,
    OF_ONE,
    SECONDS,
    SESSIONS,
    TRIES,
    WINDOW,
    Attempts,
    PageSession,
    Sessions,
)


def sessions():
    numbers = itertools.count()
    return Sessions(lambda: f"cookie-{next(numbers)}")


def test_a_session_is_found_by_its_cookie_until_it_ends():
    made = sessions()
    cookie = made.begin("Bearer x", "peer", 0.0)
    assert made.find(cookie, SECONDS).authorization == "Bearer x"
    assert made.find("", 0.0) is None
    assert made.find("cookie-1", 0.0) is None
    made.end(cookie)
    assert made.find(cookie, 0.0) is None


def test_a_session_lasts_no_longer_than_its_hours():
    made = sessions()
    cookie = made.begin("Bearer x", "peer", 0.0)
    assert made.find(cookie, SECONDS + 1) is None
    assert made.find(cookie, 0.0) is None


def test_the_oldest_of_too_many_ends():
    made = sessions()
    cookies = [made.begin("Bearer x", "peer", 0.0) for _ in range(SESSIONS + 1)]
    assert made.find(cookies[0], 0.0) is None
    assert made.find(cookies[1], 0.0) is not None
    assert made.find(cookies[-1], 0.0) is not None


def test_who_signs_in_again_and_again_ends_only_its_own_sessions():
    made = sessions()
    other = made.begin("Bearer y", "peer", 0.0, "viewer/ben")
    cookies = [made.begin("Bearer x", "peer", 1.0, "viewer/ana") for _ in range(SESSIONS + 1)]
    assert made.find(other, 1.0) is not None
    assert [made.find(cookie, 1.0) is not None for cookie in cookies[-OF_ONE - 1 :]] == [False] + [
        True
    ] * OF_ONE


def test_after_some_bad_tries_an_address_waits_and_others_do_not():
    attempts = Attempts()
    for i in range(TRIES):
        assert attempts.wait("a", float(i)) == 0
        attempts.bad("a", float(i))
    assert attempts.wait("a", float(TRIES)) == WINDOW - TRIES
    assert attempts.wait("b", float(TRIES)) == 0
    assert attempts.wait("a", WINDOW) == 0


def test_a_good_one_forgives():
    attempts = Attempts()
    for _ in range(TRIES):
        attempts.bad("a", 0.0)
    attempts.good("a")
    assert attempts.wait("a", 0.0) == 0


def test_addresses_remembered_are_bounded():
    attempts = Attempts()
    for _ in range(TRIES):
        attempts.bad("first", 0.0)
    for i in range(ADDRESSES):
        attempts.bad(str(i), 0.0)
    assert attempts.wait("first", 0.0) == 0
    assert len(attempts._bad) == ADDRESSES


def test_a_session_does_not_tell_its_token():
    assert "secret" not in repr(PageSession("Bearer secret", None, 0.0, 0.0))
