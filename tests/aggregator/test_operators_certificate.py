"""The operator's own certificate: what is shown, refused and said at the start, and as it is renewed."""

from __future__ import annotations

import logging
import random
import time

import pki
import pytest
from operators_house import (
    EARLY,
    ED25519,
    EXPIRED,
    FOR_CLIENTS,
    LEAF,
    MIDDLE,
    MIDDLE_2,
    OLD,
    OTHER,
    ROOT,
    Files,
    common_names,
    connects,
    served,
)

from aggregator.trust import operators_certificate
from aggregator.trust.operators_certificate import CHAIN, TLS_AUTHORITY, OperatorsCertificate
from edge_attention.core.errors import InvalidArgument
from edge_attention.trust.authorities import pin_of, shown_with_pin
from edge_attention.trust.bootstrap import fetch_authorities, shown_chain
from edge_attention.trust.certificates import load_certificates, pin


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


# What is shown


@pytest.mark.parametrize(
    ("chain", "authority"),
    [
        ([LEAF, MIDDLE], [ROOT]),
        ([LEAF, MIDDLE, ROOT], None),
        ([ROOT, MIDDLE, LEAF], None),
        ([LEAF], [MIDDLE, ROOT]),
        ([LEAF], [ROOT, MIDDLE]),
        ([LEAF, MIDDLE, MIDDLE], [ROOT]),
        ([pki.issue("another"), LEAF, MIDDLE], [ROOT]),
        ([LEAF, pki.authority("Middle", ROOT, key=MIDDLE.key, days=OLD), MIDDLE], [ROOT]),
    ],
)
def test_the_chain_is_shown_in_order_whatever_the_files_order(files, chain, authority):
    own = files.open(chain, LEAF.key_pem(), authority)
    assert own.authorities == (ROOT.certificate,)

    def inside(address):
        assert common_names(shown_chain(address)) == ["aggregator", "Middle", "Root"]
        assert connects(address, fetch_authorities(address, pin_of(own.authorities))) is None

    served(own, inside)
    assert common_names(load_certificates((files.trust / CHAIN).read_bytes(), "")) == [
        "aggregator",
        "Middle",
        "Root",
    ]


def test_any_order_of_a_long_chain_gives_the_same(files):
    chain = [pki.authority("0", ROOT)]
    for number in range(1, 5):
        chain.append(pki.authority(str(number), chain[-1]))
    chain.append(pki.issue("aggregator", chain[-1]))
    key = chain[-1].key_pem()
    for seed in range(20):
        random.Random(seed).shuffle(chain)
        own = files.open(chain, key, [ROOT])
        assert common_names(own._chain) == ["aggregator", "4", "3", "2", "1", "0", "Root"]


@pytest.mark.parametrize("authority", [[ROOT], None], ids=["authority", "root in the chain"])
def test_a_chain_is_found_among_however_many_others(files, authority):
    """As in a file to which somebody has added all that a system trusts, each good for longer."""
    others = [pki.authority(f"Other {number}", days=(-1, 4000)) for number in range(60)]
    own = files.open([*others, LEAF, MIDDLE, ROOT], LEAF.key_pem(), authority)
    assert common_names(own._chain) == ["aggregator", "Middle", "Root"]


def test_a_bundle_of_roots_counts_whole(files):
    own = files.open([LEAF, MIDDLE], authority=[ROOT, OTHER])
    bundle = {ROOT.certificate, OTHER.certificate}
    assert set(own.authorities) == bundle
    pin = pin_of(own.authorities)
    assert pin == pin_of(own.authorities[::-1]) != pin_of(own.authorities[:1])

    def inside(address):
        assert set(fetch_authorities(address, pin)) == bundle
        # A token of one of them, made before the other was there, is good as long as that one signs.
        for one in own.authorities:
            assert fetch_authorities(address, pin_of([one])) == (one,)
        assert connects(address, fetch_authorities(address, pin)) is None
        assert connects(address, (ROOT.certificate,)) is None
        by_other = pki.issue("aggregator", OTHER)
        files.write([by_other], authority=[ROOT, OTHER])
        assert own.keep()
        assert pin_of(own.authorities) == pin
        assert connects(address, fetch_authorities(address, pin)) is None
        assert "wrong authority" in connects(address, (ROOT.certificate,))

    served(own, inside)


@pytest.mark.parametrize(
    "authority", [[OTHER], [ROOT, OTHER], [OTHER, ROOT]], ids=["new", "both", "both turned"]
)
def test_a_new_root_that_the_old_one_has_signed_is_taken_by_who_trusts_the_old_one(files, authority):
    crossed = pki.authority("Other root", ROOT, key=OTHER.key)
    own = files.open([pki.issue("aggregator", OTHER), crossed], authority=authority)

    def inside(address):
        for trusted in ((ROOT,), (OTHER,), (OTHER, ROOT)):
            assert connects(address, tuple(one.certificate for one in trusted)) is None
        assert connects(address, fetch_authorities(address, pin_of(own.authorities))) is None

    served(own, inside)


def test_a_root_that_was_issued_again_for_its_key_counts_beside_the_one_that_has_ended(files):
    ended = pki.authority("Root", key=ROOT.key, days=OLD)
    for authority in ([ROOT, ended], [ended, ROOT]):
        own = files.open([LEAF, MIDDLE], authority=authority)

        def inside(address, own=own):
            assert connects(address, fetch_authorities(address, pin_of(own.authorities))) is None

        served(own, inside)


def test_a_server_cannot_add_its_own_root_to_a_bundle():
    shown = [LEAF.certificate, OTHER.certificate, ROOT.certificate]
    assert shown_with_pin(shown, pin_of([ROOT.certificate])) == (ROOT.certificate,)
    assert shown_with_pin(shown, pin_of([MIDDLE.certificate, ROOT.certificate])) == ()
    assert set(shown_with_pin(shown, pin_of(shown[1:]))) == set(shown[1:])


def test_more_roots_than_a_handshake_should_carry(files):
    roots = [pki.authority(f"Root {number}") for number in range(9)]
    leaf = pki.issue("aggregator", roots[0])
    assert "holds 9 authorities" in files.refused([leaf], authority=roots)


# Refused at the start, with the cure

P521 = pki.issue("aggregator", MIDDLE, kind="P-521")
RSA_1024 = pki.issue("aggregator", MIDDLE, kind="RSA 1024")
ENDED = pki.authority("Ended", ROOT, days=OLD)
BOUND = pki.authority("Bound", ROOT, permitted="corp.example")


@pytest.mark.parametrize(
    ("chain", "authority", "says", "cure"),
    [
        ([LEAF], None, "incomplete chain: 'aggregator' is signed by 'CN=Middle'", "add it after the first"),
        ([LEAF], [ROOT], "incomplete chain: the certificate of 'Middle' is missing", "put intermediates"),
        ([LEAF, MIDDLE], None, "ends in 'Middle', which is not a root", "Give the root, 'CN=Root', with"),
        ([LEAF, MIDDLE], [OTHER], "wrong authority: the chain of 'aggregator' ends in 'Middle'", "--tls"),
        ([LEAF, MIDDLE, ROOT], [OTHER], "wrong authority: the chain ends in 'Root'", "--tls-authority"),
        ([EXPIRED, MIDDLE], [ROOT], "expired: 'aggregator' was good until 20", "renew it"),
        ([EARLY, MIDDLE], [ROOT], "not yet valid: 'aggregator' is good from 20", "wait until then"),
        ([pki.issue("x", ENDED), ENDED], [ROOT], "expired: 'Ended' was good until", "renew it"),
        ([ED25519, MIDDLE], [ROOT], "unsupported key: the key of 'aggregator' is Ed25519", "openssl genpkey"),
        ([P521, MIDDLE], [ROOT], "unsupported key: the key of 'aggregator' is P-521", "openssl genpkey"),
        ([RSA_1024, MIDDLE], [ROOT], "unsupported key: the key of 'aggregator' is RSA of 1024", "genpkey"),
        ([FOR_CLIENTS, MIDDLE], [ROOT], "wrong use: 'aggregator' is not for servers", "issued anew"),
        ([pki.issue("x", BOUND), BOUND], [ROOT], "permitted subtree violation", "peers do not take"),
    ],
)  # fmt: skip
def test_what_no_peer_would_take_is_refused_at_the_start(files, chain, authority, says, cure):
    said = files.refused(chain, chain[0].key_pem(), authority)
    assert says in said
    assert cure in said


def test_the_clock_is_blamed_only_where_it_is_wrong(files, monkeypatch):
    assert "clock is wrong" not in files.refused([EXPIRED, MIDDLE], authority=[ROOT])
    assert "clock is wrong" not in files.refused([EARLY, MIDDLE], authority=[ROOT])
    given = files.write([LEAF, MIDDLE], authority=[ROOT])
    with pytest.raises(InvalidArgument, match="machine's clock is wrong: set it"):
        OperatorsCertificate(files.trust, given, lambda: 1000.0)


def test_what_works_and_will_not_last_is_said(files, caplog):
    caplog.set_level(logging.WARNING)

    def said(*arguments, **more):
        caplog.clear()
        files.open(*arguments, **more)
        return caplog.text

    assert said([LEAF, MIDDLE], authority=[ROOT]) == ""
    assert "is an intermediate: a renewal by another one locks out" in said([LEAF], authority=[MIDDLE])
    assert "has signed itself" in said([pki.issue("self")])
    assert "shown in order" in said([MIDDLE, LEAF], LEAF.key_pem(), [ROOT])
    assert "does not need: 'Second middle'" in said([LEAF, MIDDLE, MIDDLE_2], authority=[ROOT])
    assert "no alternative name" in said([pki.issue("x", ROOT, names=())], authority=[ROOT])
    assert "ends at" in said([pki.issue("x", ROOT, days=(-100, 1))], authority=[ROOT])
    assert "not for 10.9.9.9, which is listened on" in said([LEAF, MIDDLE], authority=[ROOT], host="10.9.9.9")
    assert said([LEAF, MIDDLE], authority=[ROOT], host="127.0.0.1") == ""
    assert "the authority is another one" in said([pki.issue("x", OTHER)], authority=[OTHER])
    given = files.write([LEAF, MIDDLE], authority=[ROOT])
    given.key.chmod(0o644)
    caplog.clear()
    OperatorsCertificate(files.trust, given)
    assert "can be read by every user" in caplog.text


def test_a_root_that_this_machine_trusts_ends_the_chain(files, monkeypatch):
    """As certbot writes it: leaf and intermediate, signed by a public root."""
    store = files.folder / "system.pem"
    store.write_bytes(pki.pem(OTHER, ROOT))

    class Paths:
        cafile, openssl_cafile = str(store), str(store)

    monkeypatch.setattr("ssl.get_default_verify_paths", lambda: Paths)
    own = files.open([LEAF, MIDDLE])
    assert own.authorities == (ROOT.certificate,)
    renewed = pki.issue("aggregator", MIDDLE_2)
    files.write([renewed, MIDDLE_2])
    assert own.keep()
    assert own.authorities == (ROOT.certificate,)
    # Let's Encrypt's chains had the root once more, signed by an older one that nobody has any more.
    (files.trust / TLS_AUTHORITY).unlink()
    crossed = pki.authority("Root", pki.authority("Gone"), key=ROOT.key)
    own = files.open([LEAF, MIDDLE, crossed])
    assert own.authorities == (ROOT.certificate,)
    assert served(own, lambda address: connects(address, own.authorities)) is None
    # The same name, another key.
    store.write_bytes(pki.pem(pki.authority("Root")))
    (files.trust / TLS_AUTHORITY).unlink()
    assert "of this name that this machine trusts has not signed it" in files.refused([LEAF, MIDDLE])


def test_a_root_that_was_given_once_ends_a_renewed_chain_without_it(files):
    files.open([LEAF, MIDDLE], authority=[ROOT])
    own = files.open([renewed := pki.issue("aggregator", MIDDLE_2), MIDDLE_2])
    assert own.authorities == (ROOT.certificate,)
    assert own.certificate == renewed.certificate


# Renewed on the disk


def test_a_fleet_that_trusts_an_intermediate_by_an_earlier_release_goes_on(files, caplog):
    (files.trust / TLS_AUTHORITY).write_bytes(MIDDLE.pem())
    own = files.open([LEAF, MIDDLE])
    assert own.authorities == (MIDDLE.certificate,)
    assert "'Middle' that peers trust already is an intermediate" in caplog.text
    assert "give the root, 'CN=Root', with --tls-authority" in caplog.text
    old = (MIDDLE.certificate,)
    renewed = pki.issue("aggregator", MIDDLE_2)
    assert "which is not a root" in files.refused([renewed, MIDDLE_2])
    caplog.clear()
    own = files.open([LEAF, MIDDLE], None, [ROOT])
    assert own.authorities == (ROOT.certificate,)
    assert "trust 'Middle', an intermediate: they go on while that signs" in caplog.text
    assert "have to enrol anew" not in caplog.text
    assert served(own, lambda address: connects(address, old)) is None
    found = served(own, lambda address: fetch_authorities(address, pin(MIDDLE.certificate)))
    assert found == old, "a token made before finds it in the chain"


def test_a_renewal_is_taken_up_or_refused_once_while_the_old_one_goes_on(files, caplog, monkeypatch):
    monkeypatch.setattr(operators_certificate, "SETTLE_SECONDS", 1000.0)
    own = files.open([LEAF, MIDDLE], authority=[ROOT])
    pin = pin_of(own.authorities)

    def inside(address):
        trusted = fetch_authorities(address, pin)
        renewed = pki.issue("aggregator", MIDDLE_2)
        # As certbot writes: one file after the other.
        (files.folder / "chain.pem").write_bytes(pki.pem(renewed, MIDDLE_2))
        caplog.clear()
        assert not own.keep()
        assert caplog.text == "", "the key may be under way"
        assert connects(address, trusted) is None
        (files.folder / "key.pem").write_bytes(renewed.key_pem())
        assert own.keep()
        assert shown_chain(address)[0] == renewed.certificate
        assert connects(address, trusted) is None
        assert fetch_authorities(address, pin) == trusted, "tokens made before are good"
        monkeypatch.setattr(operators_certificate, "SETTLE_SECONDS", 0.2)
        files.write([EXPIRED, MIDDLE], authority=[ROOT])
        caplog.clear()
        for _ in range(3):
            assert not own.keep()
            time.sleep(0.25)
        assert caplog.text.count("the new certificate is refused, and the old one goes on") == 1
        assert "expired: 'aggregator' was good until" in caplog.text
        assert shown_chain(address)[0] == renewed.certificate
        (files.folder / "chain.pem").unlink()
        assert not own.keep()
        assert connects(address, trusted) is None
        files.write([LEAF, MIDDLE], authority=[ROOT])
        assert own.keep()
        assert shown_chain(address)[0] == LEAF.certificate

    served(own, inside)


def test_one_that_ends_while_it_is_in_use_is_said_on_both_sides(files, caplog):
    ends_soon = pki.issue("aggregator", MIDDLE, days=(-1, 8 / 86400))
    own = files.open([ends_soon, MIDDLE], authority=[ROOT])

    def inside(address):
        trusted = own.authorities
        until = time.monotonic() + 120
        while (told := connects(address, trusted)) is None and time.monotonic() < until:
            time.sleep(0.1)
        assert "expired: 'aggregator' was good until" in told
        assert "have its operator renew it" in told
        assert "clock (NTP)" not in told
        caplog.clear()
        own.keep()
        own.keep()
        assert caplog.text.count("expired: the server's certificate ended at") == 1
        assert "expired: it ended at" in own.shown(time.time())

    served(own, inside)
