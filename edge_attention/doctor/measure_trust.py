"""Measures what certificates say, and how the files of secrets are kept."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from cryptography import x509

from edge_attention.doctor.trust_findings import Certificate, Secret, Shown
from edge_attention.trust.authorities import Authorities, are_ours, pin_of, shown_with_pin
from edge_attention.trust.bootstrap import shown_chain
from edge_attention.trust.certificates import DAMAGED, ends, pin
from edge_attention.trust.chain import find_path, judge
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
    except (x509.ExtensionNotFound, *DAMAGED):
        names = ()
    starts = certificate.not_valid_before_utc.timestamp()
    return Certificate(names, starts, ends(certificate), pin(certificate))


def shown(address: str, seconds: float, authorities: Authorities | None = None, token_pin: str = "") -> Shown:
    """What the server at `address` shows; raises EdgeAttentionError if it shows nothing.

    `authorities` or `token_pin` say whom the client trusts. Nothing is verified during the handshake: a
    server takes a client that breaks it off for an attack.
    """
    chain = shown_chain(address, seconds)
    pins = tuple(pin(certificate) for certificate in chain)
    if authorities is None and token_pin:
        authorities = shown_with_pin(chain, token_pin) or None
    if authorities is None:
        return Shown(facts(chain[0]), pins, token_pin)
    name = SERVER_NAME if are_ours(authorities) else address.rpartition(":")[0].strip("[]")
    trouble = judge(chain[0], chain[1:], authorities, None, time.time())
    fault, said = (None, "") if trouble is None else (trouble.fault, trouble.said)
    signed = find_path(chain[0], chain[1:], authorities).trusted
    return Shown(facts(chain[0]), pins, pin_of(authorities), signed, name, fault, said)


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
