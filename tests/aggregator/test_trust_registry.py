"""Tokens and certificates as they are kept, and who gets a name."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.trust.enrolment import AGAIN_SECONDS, Holder, admit, require_redeemable
from aggregator.trust.proof import Peer
from aggregator.trust.registry import CertificateRow, Registry, TokenRow
from edge_attention.core.errors import (
    AlreadyExists,
    DataLoss,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Revoked,
    Unauthenticated,
    Unavailable,
)
from edge_attention.trust.tokens import Token, make_token

PIN = "ab" * 16


def token(**changes):
    values = {
        "id": "t1", "kind": "join", "role": "node", "name": "", "created": 100.0, "expires": 1000.0,
        "uses": 1, "used": 0, "revoked": None, "label": "",
    }  # fmt: skip
    return TokenRow(**(values | changes))


def holder(key="k1", token="t0", issued=50.0, ends=500.0, revoked=None):
    return Holder(key, token, issued, ends, revoked)


# Decisions


@pytest.mark.parametrize(
    ("row", "error", "says"),
    [
        (token(kind="access"), InvalidArgument, "gives access"),
        (token(revoked=150.0), Revoked, "was revoked"),
        (token(used=1), Revoked, "has been used once, which was all"),
        (token(uses=3, used=3), Revoked, "has been used 3 times"),
        (token(expires=200.0), Unauthenticated, "expired at"),
    ],
)
def test_a_token_that_is_no_longer_good(row, error, says):
    with pytest.raises(error, match=says):
        require_redeemable(row, [], "k1", 200.0)


def test_a_key_whose_answer_was_lost_asks_again_for_a_while():
    used = token(used=1)
    held = [holder(token="t1", issued=150.0)]
    assert require_redeemable(used, held, "k1", 200.0)
    for key, now in (("k2", 200.0), ("k1", 150.0 + AGAIN_SECONDS)):
        with pytest.raises((Revoked, Unauthenticated)):
            require_redeemable(used, held, key, now)
    with pytest.raises(Revoked):
        require_redeemable(used, [holder(token="t1", issued=150.0, revoked=160.0)], "k1", 200.0)


def test_a_name_belongs_to_its_key_until_its_certificate_ends():
    held = [holder(ends=500.0)]
    admit(token(), "a", "k1", held, 200.0)
    with pytest.raises(AlreadyExists, match="'a' belongs to another node"):
        admit(token(), "a", "k2", held, 200.0)
    admit(token(), "a", "k2", held, 500.0)


def test_a_revoked_name_belongs_to_nobody_until_a_token_is_made_for_it():
    held = [holder(revoked=300.0, ends=500.0)]
    for now in (400.0, 600.0):
        for key in ("k1", "k2"):
            with pytest.raises(Revoked, match="token create --role node --name a"):
                admit(token(created=350.0), "a", key, held, now)
    admit(token(name="a", created=350.0), "a", "k2", held, 400.0)
    with pytest.raises(Revoked):  # made before: whoever revoked it did not mean that one to let it in
        admit(token(name="a", created=299.0), "a", "k2", held, 400.0)
    # Once it is back it renews and enrols as any other.
    back = [*held, holder("k2", "t2", issued=400.0, ends=900.0)]
    admit(token(), "a", "k2", back, 450.0)


def test_a_token_for_one_name_is_for_no_other():
    admit(token(name="a"), "a", "k1", [], 200.0)
    with pytest.raises(PermissionDenied, match="is for 'a', not for 'b'"):
        admit(token(name="a"), "b", "k1", [], 200.0)
    with pytest.raises(InvalidArgument, match="say one with --name"):
        admit(token(), "", "k1", [], 200.0)
    with pytest.raises(InvalidArgument, match="is not a name"):
        admit(token(), "a/b", "k1", [], 200.0)


@given(
    st.lists(
        st.tuples(st.sampled_from("xyz"), st.floats(0, 100), st.floats(100, 200), st.booleans()), max_size=5
    ),
    st.sampled_from("xyz"),
    st.floats(100, 300),
)
def test_two_keys_never_hold_a_name_at_a_time(past, key, now):
    held = [Holder(k, "t", i, e, e if r else None) for k, i, e, r in sorted(past, key=lambda p: p[1])]
    alive = {h.key for h in held if h.revoked is None and now < h.ends}
    try:
        admit(token(), "a", key, held, now)
    except (AlreadyExists, Revoked):
        return
    assert alive <= {key}


# Kept


@pytest.fixture
def registry(tmp_path):
    made = Registry(tmp_path)
    yield made
    made.close()


def issue(key, at=200.0, life=300.0, serial=None):
    return lambda role, name: CertificateRow(
        serial or f"{key}-{at}", role, name, key, "t", at, at + life, None
    )


def enrol(registry, made, key="k1", name="a", suggested="", now=200.0, life=300.0):
    return registry.enrol(made, name, suggested, key, now, issue(key, now, life))


def test_uses_are_counted_and_secrets_are_not_kept(registry, tmp_path):
    made = registry.create_token("join", "node", PIN, 100.0, uses=2)
    enrol(registry, made, "k1", "a")
    enrol(registry, made, "k2", "", "b")
    with pytest.raises(Revoked, match="used 2 times"):
        enrol(registry, made, "k3", "c")
    assert registry.token(made.id).used == 2
    assert [c.subject for c in registry.certificates()] == ["node/a", "node/b"]
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert made.id.encode() in stored
    assert made.secret.encode() not in stored


def test_a_refusal_takes_no_use(registry):
    made = registry.create_token("join", "node", PIN, 100.0, uses=1)
    with pytest.raises(InvalidArgument):
        enrol(registry, made, name="", suggested="no name!")

    def fails(role, name):
        raise OSError

    with pytest.raises(FailedPrecondition):
        registry.enrol(made, "a", "", "k1", 200.0, fails)
    assert registry.token(made.id).used == 0
    enrol(registry, made)


def test_a_wrong_secret_is_an_unknown_token(registry):
    made = registry.create_token("access", "viewer", PIN, 100.0)
    assert registry.access(made, 200.0).role == "viewer"
    for wrong in (Token("access", made.id, "0" * 48, PIN), make_token("access", PIN)):
        with pytest.raises(Revoked, match="not known here"):
            registry.access(wrong, 200.0)
        assert not registry.knows(wrong)


def test_many_at_once_share_one_use(registry):
    made = registry.create_token("join", "node", PIN, 100.0, uses=1)
    results = []

    def join(number):
        try:
            results.append(enrol(registry, made, f"k{number}", f"n{number}").name)
        except EdgeAttentionError as error:
            results.append(type(error))

    threads = [threading.Thread(target=join, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results))[:7] == [str(Revoked)] * 7
    assert len(registry.certificates()) == 1


def test_a_token_for_a_name_takes_it_from_who_had_it(registry):
    any_name = registry.create_token("join", "node", PIN, 100.0)
    enrol(registry, any_name, "k1")
    before = registry.revocations()
    named = registry.create_token("join", "node", PIN, 250.0, name="a", uses=1)
    enrol(registry, named, "k2", name="", now=260.0)
    newest = registry.certificates()[0]
    assert newest.key == "k2"
    assert registry.revocations() == before + 1, "its open calls are to be ended"
    assert registry.latest_end("node", "a", "k1") == 0.0
    assert registry.latest_end("node", "a", "k2") == newest.ends
    old = registry.certificate("k1-200.0")
    assert old.revoked == 260.0
    with pytest.raises(Revoked):
        registry.renew(issue("k1", 270.0)("node", "a"), "k1-200.0", 270.0)
    registry.require_not_revoked(Peer("a", "node", certificate=newest.serial))


def test_a_certificate_nobody_knows_of_is_no_longer_good(registry):
    """As after the loss of trust.db: it may be one that was revoked."""
    with pytest.raises(Unauthenticated, match=r"certificate of node 'a' is not known here.* enrol again"):
        registry.require_not_revoked(Peer("a", "node", certificate="beef"))
    with pytest.raises(Unauthenticated):
        registry.renew(issue("k1")("node", "a"), "beef", 200.0)


def test_reading_does_not_wait_for_who_writes(registry, tmp_path):
    made = registry.create_token("access", "viewer", PIN, 100.0)
    joins = registry.create_token("join", "node", PIN, 100.0)
    registry._database.execute("PRAGMA busy_timeout=50")
    other = sqlite3.connect(tmp_path / "trust.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = threading.Event()

    def write():
        with registry._mutex:  # as long as it waits for the lock, and longer
            waiting.set()
            done.wait(180)

    done = threading.Event()
    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert waiting.wait(180)
        assert registry.access(made, 200.0).role == "viewer"
        assert registry.revocations() == 0
        with pytest.raises(Revoked, match="not known here"):  # a stranger waits for nothing
            enrol(registry, make_token("join", PIN))
    finally:
        done.set()
        thread.join()
    with pytest.raises(Unavailable, match=r"trust.db is in use: .* try again"):
        enrol(registry, joins)
    other.execute("ROLLBACK")
    other.close()
    enrol(registry, joins)


def test_roles_are_names_of_their_own(registry):
    for role in ("node", "user"):
        made = registry.create_token("join", role, PIN, 100.0)
        enrol(registry, made, f"key of {role}")
    registry.revoke_certificates("a", "user", 210.0)
    assert [(c.role, c.state(220.0)) for c in registry.certificates()] == [
        ("node", "valid"),
        ("user", "revoked"),
    ]
    with pytest.raises(NotFound, match="no certificate was issued for 'b'"):
        registry.revoke_certificates("b", None, 210.0)


def test_another_process_sees_and_is_seen(registry, tmp_path):
    made = registry.create_token("access", "viewer", PIN, 100.0)
    before = registry.revocations()
    other = Registry(tmp_path)
    other.create_token("access", "viewer", PIN, 120.0)
    assert registry.revocations() == before
    other.revoke_token(made.id, 150.0)
    other.close()
    assert registry.revocations() == before + 1
    with pytest.raises(Revoked, match="was revoked"):
        registry.access(made, 200.0)


def test_states(registry):
    now = time.time()
    made = registry.create_token("join", "node", PIN, now, uses=1, expires=now + 10)
    assert [registry.token(made.id).state(t) for t in (now, now + 10)] == ["valid", "expired"]
    assert registry.revoke_token(made.id, now).id == made.id
    assert registry.tokens()[0].state(now) == "revoked"
    with pytest.raises(NotFound, match="token list"):
        registry.token("nope")


def test_a_newer_or_damaged_database_is_one_sentence(tmp_path):
    Registry(tmp_path).close()
    with sqlite3.connect(tmp_path / "trust.db") as database:
        database.execute("PRAGMA user_version=9")
    with pytest.raises(FailedPrecondition, match="newer release"):
        Registry(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "trust.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(DataLoss, match="restore it"):
        Registry(tmp_path)


def test_a_database_of_the_release_before_is_read(tmp_path):
    with sqlite3.connect(tmp_path / "trust.db") as database:
        database.execute(
            "CREATE TABLE tokens (id TEXT PRIMARY KEY, kind TEXT NOT NULL, role TEXT NOT NULL, name TEXT NOT "
            "NULL, secret TEXT NOT NULL, created REAL NOT NULL, expires REAL, uses INTEGER, used INTEGER NOT "
            "NULL, revoked REAL, label TEXT NOT NULL)"
        )
        database.execute(
            "CREATE TABLE certificates (serial TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL, "
            "key TEXT NOT NULL, token TEXT NOT NULL, issued REAL NOT NULL, ends REAL NOT NULL, revoked REAL)"
        )
        database.execute("INSERT INTO certificates VALUES ('1', 'node', 'a', 'k1', 't', 100, 400, 150)")
        database.execute("PRAGMA user_version=1")
    for _ in range(2):
        registry = Registry(tmp_path)
        assert [(c.serial, c.state(200.0), c.der) for c in registry.certificates()] == [("1", "revoked", b"")]
        registry.close()


def test_only_the_aggregators_user_reads_it(registry, tmp_path):
    assert (tmp_path / "trust.db").stat().st_mode & 0o777 == 0o600


def filled(folder, count=30):
    """A database as the daemon leaves it, and its tokens."""
    registry = Registry(folder, daemon=True)
    for number in range(count):
        registry.create_token("join", "node", PIN, float(number), name=f"n{number}")
    tokens = registry.tokens()
    registry.close()
    return tokens


def test_a_bit_that_changed_on_the_disk_is_found_before_anybody_is_let_in_by_it(tmp_path):
    filled(tmp_path)
    file = tmp_path / "trust.db"
    whole = file.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(DataLoss, match=r"trust.db is damaged: 1 of its .* restore"):
            Registry(tmp_path)
    file.write_bytes(whole)
    Registry(tmp_path).close()


DAEMON = """
import pathlib, sys
from aggregator.trust.registry import Registry
registry = Registry(pathlib.Path(sys.argv[1]), daemon=True)
for line in sys.stdin:
    print(registry.create_token("join", "node", "ab" * 16, 1.0, name=line.strip()).id, flush=True)
"""


def test_a_daemon_that_is_killed_and_a_command_that_is_the_last_to_close_lose_nothing(tmp_path):
    made = {token.id for token in filled(tmp_path)}
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with daemon:
        for number in range(3):
            daemon.stdin.write(f"more{number}\n")
            daemon.stdin.flush()
            made.add(daemon.stdout.readline().strip())
            command = Registry(tmp_path)
            made.add(command.create_token("access", "user", PIN, 2.0).id)
            command.close()
        command = Registry(tmp_path)
        daemon.kill()
        daemon.wait()
        log = (tmp_path / "trust.db-wal").read_bytes()
        assert log
        command.close()  # SQLite has the log in the database now
    again = Registry(tmp_path, daemon=True)
    assert {token.id for token in again.tokens()} == made
    again.close()


def test_a_damaged_log_of_a_killed_daemon_is_found(tmp_path):
    filled(tmp_path)
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with daemon:
        for number in range(4):
            daemon.stdin.write(f"more{number}\n")
            daemon.stdin.flush()
            daemon.stdout.readline()
        daemon.kill()
    log = tmp_path / "trust.db-wal"
    data = bytearray(log.read_bytes())
    data[100] ^= 1
    log.write_bytes(data)
    with pytest.raises(DataLoss, match=r"trust.db-wal is damaged at byte"):
        Registry(tmp_path, daemon=True)
