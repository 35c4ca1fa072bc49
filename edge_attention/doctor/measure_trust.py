"""Measures what certificates say, and how the files of secrets are kept."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from edge_attention.doctor.trust_findings import Certificate, Secret, Shown
from edge_attention.trust.bootstrap import shown_chain
from edge_attention.trust.certificates import der, ends, is_ours, pin
from edge_attention.trust.names import SERVER_NAME


def facts(certificate: x509.Certificate) -> Certificate:
    """What `certificate` says."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = (
            *found.get_values_for_type(x509.DNSName),
            *map(str, found.get_values_for_type(x509.IPAddress)),
            *found.get_values_for_type(x509.UniformResourceIdentifier),
        )
    except (x509.ExtensionNotFound, ValueError):
        names = ()
    starts = certificate.not_valid_before_utc.timestamp()
    return Certificate(names, starts, ends(certificate), pin(certificate))


def shown(
    address: str, seconds: float, authority: x509.Certificate | None = None, token_pin: str = ""
) -> Shown:
    """What the server at `address` shows; raises EdgeAttentionError if it shows nothing.

    `authority` or `token_pin` say whom the client trusts. Nothing is verified during the handshake: a server
    takes a client that breaks it off for an attack.
    """
    chain = shown_chain(address, seconds)
    pins = tuple(pin(certificate) for certificate in chain)
    if authority is None and token_pin:
        authority = next((c for c in chain if pin(c) == token_pin), None)
    name = ""
    if authority is not None:
        name = SERVER_NAME if is_ours(authority) else address.rpartition(":")[0].strip("[]")
    wanted = pin(authority) if authority is not None else token_pin
    signed = authority is not None and signs(chain, authority)
    return Shown(facts(chain[0]), pins, wanted, signed, name)


def signs(chain: list[x509.Certificate], authority: x509.Certificate) -> bool:
    """Whether each certificate of the chain is signed by the next, and one of them by `authority`."""
    for position, certificate in enumerate(chain):
        if der(certificate) == der(authority) or _signed(certificate, authority):
            return True
        if position + 1 == len(chain) or not _signed(certificate, chain[position + 1]):
            return False
    return False


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def secret(path: Path, *, shared: bool = False) -> Secret:
    """How a file is kept; `shared`: its group may read it."""
    try:
        found = path.stat()
    except OSError:
        return Secret(str(path), 0, True, shared)
    return Secret(
        str(path), stat.S_IMODE(found.st_mode) or stat.S_IFREG, found.st_uid == os.geteuid(), shared
    )


def state_secrets(state: Path) -> list[Secret]:
    """How an aggregator's state folder keeps secrets: the keys, and the tokens, which are there as hashes."""
    folder = state / "trust"
    found = sorted(p for p in folder.glob("*") if p.suffix in (".key", ".db"))
    return [secret(folder / "authority.key"), *(secret(p) for p in found if p.name != "authority.key")]
