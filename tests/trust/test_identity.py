"""The folder of a peer, how it dials, and what keeps its certificate alive."""

from __future__ import annotations

import errno
import gc
import threading
import time
from datetime import timedelta

import pytest

from aggregator.trust.authority import Authority
from edge_attention import AsyncClient
from edge_attention.client.dial import client_dial
from edge_attention.core.errors import (
    DiskFull,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Revoked,
    Unavailable,
)
from edge_attention.core.messages.trust import Issued
from edge_attention.trust import keeper as keepers
from edge_attention.trust.authorities import read_authorities
from edge_attention.trust.certificates import der, ends, key_pem, new_key, pem, pin
from edge_attention.trust.dial import Dial
from edge_attention.trust.identity import IdentityFolder
from edge_attention.trust.keeper import Keeper
from edge_attention.trust.tokens import make_token
from edge_node.identity import node_dial
from edge_node.options import JoinOptions

AUTHORITY = Authority.make()


def make(folder, name="a", role="node", life=timedelta(days=1), key=None):
    key = key or new_key()
    certificate = AUTHORITY.issue_peer(key.public_key(), role, name, life)
    issued = Issued(der(certificate), der(AUTHORITY.certificate), name, role)
    return IdentityFolder(folder).save(key, issued, (AUTHORITY.certificate,))


def test_a_client_that_nobody_closes_takes_its_keeper_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(keepers, "LOOK_SECONDS", 0.05)
    make(tmp_path, "ops", "user")
    client = AsyncClient("127.0.0.1:1", identity=tmp_path)
    kept = client.connection._keeper
    assert kept is not None
    del client
    gc.collect()
    kept._thread.join(180)
    assert not kept._thread.is_alive()


def test_what_is_saved_is_loaded_and_the_key_is_ours_alone(tmp_path):
    folder = tmp_path / "deep" / "identity"
    with pytest.raises(NotFound, match="make one with a join token"):
        IdentityFolder(folder).load()
    made = make(folder)
    loaded = IdentityFolder(folder).load()
    assert (loaded.name, loaded.role, loaded.certificate) == ("a", "node", made.certificate)
    assert loaded.authorities == (loaded.issuer,) == (AUTHORITY.certificate,)
    assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_whichever_byte_of_a_certificate_changes_it_is_named_or_the_same(tmp_path):
    made = make(tmp_path)
    path = tmp_path / "certificate.pem"
    whole, refused = path.read_bytes(), 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = IdentityFolder(tmp_path).load()
        except InvalidArgument as error:
            said = error.message
        else:
            assert found.certificate == made.certificate
            continue
        refused += 1
        assert str(path) in said
    assert refused > len(whole) // 7 // 2


def test_a_folder_that_is_damaged_is_one_sentence(tmp_path):
    make(tmp_path)
    (tmp_path / "key.pem").write_bytes(b"x")
    with pytest.raises(InvalidArgument, match="no private key"):
        IdentityFolder(tmp_path).load()
    make(tmp_path)
    other = make(tmp_path / "other")
    (tmp_path / "certificate.pem").write_bytes(pem(other.certificate, other.issuer))
    with pytest.raises(InvalidArgument, match="does not fit"):
        IdentityFolder(tmp_path).load()
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="cannot be used"):
        IdentityFolder(tmp_path / "file" / "folder").pending_key(False)


def test_a_key_that_was_asked_a_certificate_for_is_kept_for_another_try(tmp_path):
    folder = IdentityFolder(tmp_path)
    key = folder.pending_key(fresh=False)
    assert folder.pending_key(fresh=False).public_key() == key.public_key()
    made = make(tmp_path, key=key)
    assert not (tmp_path / "new-key.pem").exists()
    assert folder.pending_key(fresh=False).public_key() == made.key.public_key()
    new = folder.pending_key(fresh=True)
    assert new.public_key() != key.public_key()
    assert folder.load().key.public_key() == key.public_key(), "until the new one is signed"


def test_an_enrolment_that_was_cut_short_is_done_again(tmp_path):
    make(tmp_path)
    folder = IdentityFolder(tmp_path)
    key = folder.pending_key(fresh=True)
    (tmp_path / "key.pem").write_bytes(key_pem(key))  # and the power went
    with pytest.raises(NotFound, match="cut short"):
        folder.load()
    assert folder.pending_key(fresh=True).public_key() == key.public_key()
    assert folder.authorities() == (AUTHORITY.certificate,)
    assert IdentityFolder(tmp_path / "none").authorities() is None
    assert make(tmp_path, key=key).name == "a"
    assert folder.load().key.public_key() == key.public_key()


def test_an_identity_needs_its_token_no_longer(tmp_path):
    make(tmp_path)
    address, file = "127.0.0.1:1", tmp_path / "token"
    dial, name = node_dial(JoinOptions(join_token_file=file, identity=tmp_path), address, None, None)
    assert name == "a"
    assert dial.ends() > time.time() + 3600
    with pytest.raises(FailedPrecondition, match="token file"):
        node_dial(JoinOptions(join_token_file=file, identity=tmp_path / "none"), address, None, None)
    token = make_token("join", pin(AUTHORITY.certificate)).text
    with pytest.raises(InvalidArgument, match="give --identity DIR"):
        node_dial(JoinOptions(token), address, None, None)
    with pytest.raises(InvalidArgument, match="not both"):
        node_dial(JoinOptions(token, file), address, None, None)
    assert node_dial(JoinOptions(), address, "n", None)[0].metadata() == ()


def test_a_certificate_for_another_key_is_not_kept(tmp_path):
    made = make(tmp_path)
    issued = Issued(der(made.certificate), der(AUTHORITY.certificate), "a", "node")
    with pytest.raises(InvalidArgument, match="for another key"):
        IdentityFolder(tmp_path).save(new_key(), issued, (AUTHORITY.certificate,))


def test_what_does_not_fit_together_is_refused_before_anything_is_sent(tmp_path):
    token = make_token("access", pin(AUTHORITY.certificate))
    other = Authority.make().certificate
    with pytest.raises(InvalidArgument, match="is of the authority"):
        Dial("127.0.0.1:1", authorities=(other,), token=token)
    with pytest.raises(InvalidArgument, match="a token or an identity, not both"):
        client_dial("127.0.0.1:1", "", token.text, None, make(tmp_path) and tmp_path)
    with pytest.raises(InvalidArgument, match="for joining"):
        client_dial("127.0.0.1:1", "", make_token("join", token.pin).text)
    with pytest.raises(NotFound):
        client_dial("127.0.0.1:1", "", identity=tmp_path / "none")
    (tmp_path / "other.pem").write_bytes(pem(other))
    with pytest.raises(InvalidArgument, match="another authority than the one given"):
        client_dial("127.0.0.1:1", "", authority=tmp_path / "other.pem", identity=tmp_path)
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        read_authorities(tmp_path / "none.pem")


def test_nothing_secret_goes_over_plaintext():
    assert Dial("127.0.0.1:1").metadata() == ()
    token = make_token("access", pin(AUTHORITY.certificate))
    dial = Dial("127.0.0.1:1", token=token)
    assert dial.metadata() == (("authorization", f"Bearer {token.text}"),)
    with pytest.raises(Unavailable, match="cannot be reached"):
        dial.channel()  # it does not fall back


def test_a_new_certificate_is_shown_from_the_next_call_on(tmp_path):
    dial = Dial("127.0.0.1:1", identity=make(tmp_path))
    before = dial.metadata()
    assert dial.metadata() == before
    dial.become(make(tmp_path))
    assert dial.metadata() != before


class Ends:
    """Waits for what a keeper's thread does."""

    def __init__(self):
        self.events, self.changed = [], threading.Condition()

    def add(self, event):
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def until(self, event):
        with self.changed:
            assert self.changed.wait_for(lambda: event in self.events, 180), self.events


@pytest.fixture
def short(monkeypatch):
    """A certificate that ends within the hour is due at once; tries follow each other at once."""
    monkeypatch.setattr(keepers, "issued", lambda certificate: ends(certificate) - 3600)
    monkeypatch.setattr("edge_attention.trust.renewal.BACKOFF", (0.01, 0.02))


def test_a_keeper_renews_tries_again_and_enrols_when_all_is_late(tmp_path, short):
    seen = Ends()
    old = make(tmp_path, life=timedelta(seconds=3))
    new = make(tmp_path, life=timedelta(days=1))

    def renew(identity):
        seen.add("renew")
        raise Unavailable("away")

    def again():
        seen.add("enrol")
        return new

    keeper = Keeper(old, renew, again, lambda identity: seen.add(identity))
    try:
        seen.until(new)
        assert seen.events.count("renew") > 1
        assert seen.events[-2:] == ["enrol", new]
        assert keeper.identity is new
    finally:
        keeper.close()


def test_a_keeper_gives_up_when_it_is_revoked_and_asks_nobody_once_it_has_ended(tmp_path, short, caplog):
    asked = []

    def renew(identity):
        asked.append(identity)
        raise Revoked("out")

    old = make(tmp_path, life=timedelta(seconds=-1))
    keeper = Keeper(old, renew, None, asked.append)
    time.sleep(0.3)
    assert asked == []
    keeper.close()
    life = make(tmp_path, life=timedelta(minutes=10))
    keeper = Keeper(life, renew, None, asked.append)
    keeper._thread.join(180)
    assert asked == [life]
    assert "was not renewed: out" in caplog.text


def test_a_full_disk_is_said_to_be_full(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edge_attention.trust.identity.write_whole", full)
    with pytest.raises(DiskFull, match="the disk is full; free space there"):
        IdentityFolder(tmp_path / "new").pending_key(fresh=False)
