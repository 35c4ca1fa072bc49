"""Puts the operator's certificate together as it is shown, and judges it as a peer would. Pure.

Peers trust what stands at the end of the chain, and tokens carry its pin: it has to outlive renewals, which
may come by another intermediate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from edge_attention.core.errors import InvalidArgument
from edge_attention.trust.authorities import Authorities, anchors
from edge_attention.trust.certificates import DAMAGED, der, ends, issued, moment
from edge_attention.trust.chain import (
    CertificateFault,
    CertificateTrouble,
    Path,
    called,
    find_path,
    judge,
    key_kind,
)
from edge_attention.trust.explain import NO_CLOCK
from edge_attention.trust.hostnames import has_alternative_names, hostnames, is_for

NEAR_END = 0.1
"""A certificate with less than this part of its life left is said to end soon."""


@dataclass(frozen=True)
class GivenChain:
    """What the operator's files hold, and what they are called in errors.

    Attributes:
        certificates: of --tls-certificate, in the order of the file.
        key: of --tls-key; whatever it is a key of.
        authorities: of --tls-authority; None: not given.
        kept: whom peers trusted before, as far as it is known; they need not be told again.
        system: finds the authorities of this machine with a subject.
    """

    where: str
    key_where: str
    authority_where: str
    certificates: Sequence[x509.Certificate]
    key: Any
    authorities: Sequence[x509.Certificate] | None
    kept: Authorities = ()
    system: Callable[[x509.Name], Sequence[x509.Certificate]] = lambda subject: ()


@dataclass(frozen=True)
class ShownChain:
    """What is shown to peers: the server's certificate first, what they are to trust last.

    Attributes:
        warnings: sentences for the log: it works, and something about it will not last.
    """

    certificates: tuple[x509.Certificate, ...]
    authorities: Authorities
    warnings: tuple[str, ...]


def arrange(given: GivenChain, host: str, now: float) -> ShownChain:
    """The chain as it is shown.

    Args:
        host: the address that is listened on; empty: all of this machine.
        now: seconds since 1970.

    Raises:
        InvalidArgument: no peer would take it; says which certificate, what is wrong, and the cure.
    """
    try:
        return _arrange(given, host, now)
    except DAMAGED as error:
        raise InvalidArgument(f"{given.where}: a part of a certificate cannot be read: {error}") from None


def _arrange(given: GivenChain, host: str, now: float) -> ShownChain:
    leaf = _leaf(given, now)
    others = [one for one in (*given.certificates, *(given.authorities or ())) if der(one) != der(leaf)]
    # Of two of one name gRPC tries the first alone: those that are good longest go first.
    others.sort(key=ends, reverse=True)
    authorities, path = _path(given, leaf, others)
    trouble = judge(leaf, others, authorities, None, now)
    if trouble is not None:
        raise InvalidArgument(_refusal(given, trouble, now))
    last = path.certificates[-1]
    further = [one for one in authorities if der(one) != der(last)]
    crossed = [one for one in others if _crossed(one, path, authorities)]
    if len(path.certificates) == 1:
        shown = (leaf, *further)
    else:
        shown = (*path.certificates[:-1], *crossed, *further, last)
    return ShownChain(shown, authorities, tuple(_warnings(given, path, others, authorities, host, now)))


def _crossed(certificate: x509.Certificate, path: Path, authorities: Authorities) -> bool:
    """Whether it is one of the authorities as another root has signed it: for peers that trust that one."""
    return (
        certificate.subject != certificate.issuer
        and certificate not in path.certificates
        and any(
            certificate.subject == one.subject and _of(certificate) == _of(one)
            for one in authorities
            if one.subject == one.issuer
        )
    )


def _leaf(given: GivenChain, now: float) -> x509.Certificate:
    """The certificate of the key; of several the one that is good longest."""
    public = _public(given.key.public_key())
    found = [one for one in given.certificates if _of(one) == public]
    if not found:
        if any(_of(one) == public for one in given.authorities or ()):
            raise InvalidArgument(
                f"the certificate of the key {given.key_where} is in {given.authority_where}, not in "
                f"{given.where}: are --tls-certificate and --tls-authority swapped?"
            )
        names = ", ".join(called(one) for one in given.certificates[:4])
        raise InvalidArgument(
            f"{given.key_where} does not fit {given.where}: the key is of none of its certificates "
            f"({names}); give both of one issue"
        )
    return max(found, key=lambda one: (issued(one) <= now, ends(one)))


def _of(certificate: x509.Certificate) -> bytes:
    try:
        return _public(certificate.public_key())
    except ValueError:
        return b""


def _public(key: Any) -> bytes:
    found: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return found


def _path(
    given: GivenChain, leaf: x509.Certificate, others: Sequence[x509.Certificate]
) -> tuple[Authorities, Path]:
    if given.authorities is not None:
        authorities = anchors(given.authorities, given.authority_where)
        return authorities, find_path(leaf, others, authorities)
    path = find_path(leaf, others, [one for one in (leaf, *others) if one.subject == one.issuer])
    if path.trusted:
        return path.certificates[-1:], path
    kept = tuple(one for one in given.kept if one.subject == one.issuer)
    if (known := find_path(leaf, others, kept)).trusted:
        return kept, known
    top = path.certificates[-1]
    # Not of the last alone: it may be an old root's signature of one that is known here.
    system = [root for one in path.certificates for root in given.system(one.issuer)]
    path = find_path(leaf, others, system)
    if path.trusted:
        return path.certificates[-1:], path
    # Earlier releases let peers trust an intermediate: such a fleet goes on, and is warned.
    if (known := find_path(leaf, others, given.kept)).trusted:
        return given.kept, known
    if top is leaf:
        raise InvalidArgument(
            f"{given.where}: incomplete chain: {called(leaf)} is signed by {_issuer(top)}, whose "
            f"certificate is not there{_same_name(system)}: add it after the first, and give the root it "
            "ends in with --tls-authority FILE"
        )
    raise InvalidArgument(
        f"{given.where}: incomplete chain: it ends in {called(top)}, which is not a root: nodes, clients "
        "and tokens would trust that, and a renewal by another intermediate would lock all of them out. "
        f"Give the root, {_issuer(top)}{_same_name(system)}, with --tls-authority FILE"
    )


def _issuer(certificate: x509.Certificate) -> str:
    return repr(certificate.issuer.rfc4514_string()[:160])


def _same_name(system: Sequence[x509.Certificate]) -> str:
    return " (that of this name that this machine trusts has not signed it)" if system else ""


def _refusal(given: GivenChain, trouble: CertificateTrouble, now: float) -> str:
    said = f"{given.where}: {trouble}"
    fault = trouble.fault
    if fault in (CertificateFault.EXPIRED, CertificateFault.NOT_YET_VALID) and now < NO_CLOCK:
        return f"{said}: this machine's clock is wrong: set it (NTP)"
    if fault is CertificateFault.EXPIRED:
        return f"{said}: renew it, and put the new one in its place"
    if fault is CertificateFault.NOT_YET_VALID:
        return f"{said}: wait until then, or have it issued anew"
    if fault in (CertificateFault.INCOMPLETE, CertificateFault.WRONG_AUTHORITY):
        return (
            f"{said}: put intermediates into the file, after the server's certificate, and give the root "
            "that has signed the last with --tls-authority"
        )
    if fault is CertificateFault.UNSUPPORTED_KEY:
        return (
            f"{said}: make another key, as with openssl genpkey -algorithm EC -pkeyopt "
            "ec_paramgen_curve:P-256, and a "
            "certificate for it"
        )
    return f"{said}: have it issued anew, without that"


def _warnings(
    given: GivenChain,
    path: Path,
    others: Sequence[x509.Certificate],
    authorities: Authorities,
    host: str,
    now: float,
) -> list[str]:
    leaf, last = path.certificates[0], path.certificates[-1]
    said = []
    if der(given.certificates[0]) != der(leaf):
        said.append(
            f"{given.where} does not begin with the certificate of the key, {called(leaf)}: shown in order"
        )
    crossed = [one for one in others if _crossed(one, path, authorities)]
    unused = [
        one for one in others if one.subject != one.issuer and one not in (*path.certificates, *crossed)
    ]
    if unused:
        said.append(f"{given.where} has certificates that {called(leaf)} does not need: {called(unused[0])}")
    if last is leaf or der(last) == der(leaf):
        said.append(
            f"{called(leaf)} has signed itself, and is what nodes, clients and tokens trust: with another "
            "one in its place all of them have to enrol anew; leave out --tls-certificate, or let an "
            "authority sign it"
        )
    elif last.subject != last.issuer:
        whose = "of --tls-authority" if given.authorities is not None else "that peers trust already"
        said.append(
            f"{called(last)} {whose} is an intermediate: a renewal by another one locks out all nodes, "
            f"clients and tokens; give the root, {_issuer(last)}, with --tls-authority: who gets a token "
            "from then on trusts that"
        )
    left, life = ends(leaf) - now, ends(leaf) - issued(leaf)
    if left < NEAR_END * life:
        said.append(
            f"{called(leaf)} ends at {moment(ends(leaf))}: renew it; the file is read again when it changes"
        )
    names = ", ".join(hostnames(leaf)[:8]) or "none"
    if not has_alternative_names(leaf):
        said.append(
            f"{called(leaf)} has no alternative name: browsers and Prometheus do not take its common name"
        )
    elif host and not is_for(leaf, host):
        said.append(
            f"{called(leaf)} is not for {host}, which is listened on: dial a name that it has ({names})"
        )
    return said


def described(chain: ShownChain) -> str:
    """The chain in a line for the log."""
    leaf = chain.certificates[0]
    return (
        f"{called(leaf)}, {key_kind(leaf)}, for {', '.join(hostnames(leaf)[:8])}, until {moment(ends(leaf))}"
    )
