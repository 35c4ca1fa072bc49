"""Assertions, and every way in which one proves nothing."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from aggregator.trust.authority import Authority
from aggregator.trust.proof import CertificateProof, bearer
from edge_attention.core.errors import InvalidArgument, Unauthenticated
from edge_attention.core.messages.trust import EnrolRequest
from edge_attention.trust.assertion import FRESH, SECONDS, SKEW, Assertion, make_assertion
from edge_attention.trust.certificates import (
    check_request,
    der,
    ends,
    fingerprint,
    is_ours,
    issued,
    key_fingerprint,
    key_pem,
    load_der,
    load_key,
    new_key,
    peer_name,
    serial,
    signing_request,
    uris,
)
from edge_attention.trust.names import CLIENT_ROLES, uri

AUTHORITY = Authority.make()
PROOF = CertificateProof(AUTHORITY.certificate)
KEY = new_key()
DAY = timedelta(days=1)
CERTIFICATE = AUTHORITY.issue_peer(KEY.public_key(), "node", "a", DAY)
# Made here, as NOW is: by the time a test runs, a certificate made then may not be valid yet at NOW.
CLIENTS = {role: AUTHORITY.issue_peer(KEY.public_key(), role, "alice", DAY) for role in CLIENT_ROLES}
SERVING = AUTHORITY._issue(
    KEY.public_key(),
    "a",
    [x509.UniformResourceIdentifier(uri("node", "a"))],
    ExtendedKeyUsageOID.SERVER_AUTH,
    DAY,
)
LONG = AUTHORITY.issue_peer(KEY.public_key(), "node", "a", timedelta(days=100_000))
NOW = issued(CERTIFICATE) + 1
AUDIENCE = AUTHORITY.fingerprint


def shown(certificate=CERTIFICATE, key=KEY, audience=AUDIENCE, now=NOW):
    return make_assertion(key, certificate, audience, now)


def forged(header=None, key=KEY, algorithm="ES256", **claims):
    """An assertion of CERTIFICATE with other claims."""
    base = {"sub": uri("node", "a"), "aud": AUDIENCE, "iat": int(NOW), "exp": int(NOW) + 60}
    chain = [base64.b64encode(der(CERTIFICATE)).decode()]
    return jwt.encode(
        {k: v for k, v in (base | claims).items() if v is not None},
        key,
        algorithm=algorithm,
        headers={"x5c": chain} if header is None else header,
    )


def refused(assertion, match, now=NOW):
    with pytest.raises(Unauthenticated, match=match):
        PROOF.check(assertion, now)


def test_a_good_one_says_who_it_is():
    peer = PROOF.check(shown(), NOW)
    assert (peer.name, peer.role, peer.subject) == ("a", "node", "node/a")
    assert peer.certificate == serial(CERTIFICATE)
    assert peer.ends == ends(CERTIFICATE)
    assert peer.key == key_fingerprint(KEY.public_key())
    assert peer.until == int(NOW) + SECONDS + SKEW


@pytest.mark.parametrize("role", ["viewer", "user", "operator"])
def test_clients_have_certificates_too(role):
    assert PROOF.check(shown(CLIENTS[role]), NOW).subject == f"{role}/alice"


def test_another_authority():
    other = Authority.make()
    certificate = other.issue_peer(KEY.public_key(), "node", "a", DAY)
    refused(shown(certificate, audience=other.fingerprint), "issued by another authority")
    refused(shown(certificate), "issued by another authority")


def test_an_authority_of_the_same_name():
    """What counts is the signature, not the issuer's name."""
    twin = Authority.make()
    key = new_key()
    name = AUTHORITY.certificate.subject
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime.now(UTC) - DAY)
    builder = builder.not_valid_after(datetime.now(UTC) + DAY)
    twin = Authority(builder.sign(key, hashes.SHA256()), key)
    refused(shown(twin.issue_peer(KEY.public_key(), "node", "a", DAY)), "issued by another authority")


def test_expired_and_not_yet_begun():
    refused(shown(now=ends(CERTIFICATE) + 1), "ended at", ends(CERTIFICATE) + 1)
    assert PROOF.check(shown(now=ends(CERTIFICATE) - 1), ends(CERTIFICATE) - 1)
    before = issued(CERTIFICATE) - 301
    refused(shown(now=before), "set this aggregator's clock", before)


def test_a_key_that_is_not_the_certificates():
    refused(shown(key=new_key()), "not signed with the certificate's key")


def test_another_aggregators_assertion():
    refused(shown(audience=Authority.make().fingerprint), "for another aggregator")


@pytest.mark.parametrize("off", [-SECONDS - SKEW - 1, SKEW + 2])
def test_clocks_apart(off):
    refused(shown(now=NOW + off), r"set the clocks of both machines")


def test_clocks_a_little_apart_do_not_matter():
    for off in (-SECONDS, 1 - SKEW, SKEW - 1):
        assert PROOF.check(shown(now=NOW + off), NOW)


@pytest.mark.parametrize(
    ("claims", "match"),
    [
        ({"sub": uri("node", "b")}, "another name"),
        ({"sub": uri("operator", "a")}, "another name"),
        ({"sub": None}, "not signed|missing"),
        ({"aud": None}, "missing"),
        ({"exp": None}, "missing"),
        ({"iat": None}, "missing"),
        ({"exp": int(NOW) + 3600}, "300 seconds at most"),
        ({"exp": 2**60}, "300 seconds at most"),
        ({"exp": 1e300}, "300 seconds at most"),
        ({"aud": [AUDIENCE]}, "another aggregator"),
    ],
)
def test_claims_that_do_not_hold(claims, match):
    refused(forged(**claims), match)


def test_only_one_algorithm_and_only_certificates_of_the_authority():
    refused(forged(key="x" * 64, algorithm="HS256"), "not signed")
    none = jwt.encode({"sub": uri("node", "a")}, None, algorithm="none", headers=forged_header())
    refused(none, "not signed")
    # The authority's own certificate names nobody, and a server's neither.
    refused(shown_with(AUTHORITY.certificate), "names no node")
    server = AUTHORITY.issue_server(KEY.public_key(), ["localhost"], DAY)
    refused(shown_with(server), "names no node")


def forged_header(certificate=CERTIFICATE):
    return {"x5c": [base64.b64encode(der(certificate)).decode()]}


def shown_with(certificate):
    return forged(header=forged_header(certificate))


def test_a_certificate_for_serving_is_none_for_calling():
    refused(shown_with(SERVING), "does not hold")


@pytest.mark.parametrize(
    "header",
    [{}, {"x5c": []}, {"x5c": "AAAA"}, {"x5c": [1]}, {"x5c": ["!!"]}, {"x5c": ["AAAA"]}, {"x5c": {"a": 1}}],
)
def test_headers_without_a_certificate(header):
    refused(forged(header=header), "neither an access token")


def odd(extensions=(), version=b"\x02", swap=None):
    """The DER of a certificate as no tool makes it: what a stranger may send."""
    builder = x509.CertificateBuilder().subject_name(CERTIFICATE.subject).issuer_name(CERTIFICATE.issuer)
    builder = builder.public_key(KEY.public_key()).serial_number(5)
    builder = builder.not_valid_before(datetime.now(UTC) - DAY).not_valid_after(datetime.now(UTC) + DAY)
    for oid, data in extensions:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), data)
        builder = builder.add_extension(extension, critical=False)
    data = der_of(builder.sign(KEY, hashes.SHA256()))
    data = data.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01" + version, 1)
    return data if swap is None else data.replace(*swap)


der_of, SAN = der, "2.5.29.17"
ODD = {
    "version 2": odd(version=b"\x01"),
    "version 8": odd(version=b"\x07"),
    "x400 name": odd([(SAN, bytes([0x30, 4, 0xA3, 2, 0x30, 0]))]),
    "edi name": odd([(SAN, bytes([0x30, 4, 0xA5, 2, 0x30, 0]))]),
    "junk": odd([(SAN, b"\x01\x02\x03")]),
    "no text": odd([(SAN, bytes([0x30, 4, 0x86, 2, 0xFF, 0xFE]))]),
    "bad address": odd([(SAN, bytes([0x30, 5, 0x87, 3, 1, 2, 3]))]),
    "twice": odd(
        [(SAN, b"\x30\x00"), ("2.5.29.99", b"\x30\x00")],
        swap=(b"\x06\x03\x55\x1d\x63", b"\x06\x03\x55\x1d\x11"),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_certificates_are_refused_as_any_other(name):
    header = {"x5c": [base64.b64encode(ODD[name]).decode()]}
    refused(forged(header=header), "neither an access token|names no node")
    assert uris_or_none(ODD[name]) in ([], None)


def uris_or_none(data):
    try:
        return uris(load_der(data, "x"))
    except InvalidArgument:
        return None


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "....", "e30.e30.e30", "x" * 10_000, "é.é.é"])
def test_what_is_no_assertion_at_all(text):
    refused(text, "neither an access token")


def test_bearer():
    assert bearer("Bearer x") == bearer("bearer  x ") == "x"
    for nothing in (None, ""):
        with pytest.raises(Unauthenticated, match="shows no certificate and no token"):
            bearer(nothing)
    for other in ("Basic x", "Bearer", "Bearer  ", "x"):
        with pytest.raises(Unauthenticated, match="must be `Bearer TOKEN`"):
            bearer(other)


def test_an_assertion_is_kept_and_made_again_in_time():
    clock = [NOW]
    assertion = Assertion(KEY, CERTIFICATE, AUTHORITY.certificate, lambda: clock[0])
    first = assertion.text()
    assert assertion.text() is first
    clock[0] += SECONDS * FRESH - 1
    assert assertion.text() is first
    clock[0] += 1
    second = assertion.text()
    assert second != first
    clock[0] -= 1000
    assert assertion.text() != second, "a clock set back"
    assert PROOF.check(first, NOW).name == "a"


def test_signing_requests_prove_the_key():
    request = signing_request(KEY, "a")
    assert key_fingerprint(check_request(request)) == key_fingerprint(KEY.public_key())
    for bad in (b"", b"x", request[:-1], request[:-1] + bytes([request[-1] ^ 1]), request + b"x" * 5000):
        with pytest.raises(InvalidArgument):
            check_request(bad)
    other = x509.CertificateSigningRequestBuilder().subject_name(CERTIFICATE.subject)
    from cryptography.hazmat.primitives.serialization import Encoding

    p384 = other.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()).public_bytes(Encoding.DER)
    with pytest.raises(InvalidArgument, match="P-256"):
        check_request(p384)
    at = request.find(b"\x02\x01\x00")
    with pytest.raises(InvalidArgument, match="damaged"):
        check_request(request[:at] + b"\x02\x01\x05" + request[at + 3 :])
    # The kind of key is looked at first: a signature with a huge one takes long to check.
    damaged = p384[:-1] + bytes([p384[-1] ^ 1])
    with pytest.raises(InvalidArgument, match="P-256"):
        check_request(damaged)
    text = repr(EnrolRequest("eaj_secret", request, "a", ""))
    assert "secret" not in text


def test_the_authority_signs_nothing_that_outlives_it_and_is_known_as_ours():
    assert ends(LONG) == ends(AUTHORITY.certificate)
    assert is_ours(AUTHORITY.certificate)
    assert not is_ours(CERTIFICATE)
    assert peer_name(CERTIFICATE) == ("node", "a")
    assert fingerprint(CERTIFICATE) == fingerprint(der(CERTIFICATE))


def test_keys_are_read_back_or_refused():
    assert load_key(key_pem(KEY), "key").public_key() == KEY.public_key()
    with pytest.raises(InvalidArgument, match="no private key"):
        load_key(b"nonsense", "key")
