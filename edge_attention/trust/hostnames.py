"""The names a server certificate is for, and whether an address is one of them, as gRPC judges it."""

from __future__ import annotations

import ipaddress

from cryptography import x509
from cryptography.x509.oid import NameOID

from edge_attention.trust.certificates import DAMAGED


def hostnames(certificate: x509.Certificate) -> tuple[str, ...]:
    """Its DNS names and addresses; without any, its common name, which gRPC takes and others do not."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = (
            *found.get_values_for_type(x509.DNSName),
            *map(str, found.get_values_for_type(x509.IPAddress)),
        )
        if names:
            return names
    except (x509.ExtensionNotFound, *DAMAGED):
        pass
    return tuple(str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))


def has_alternative_names(certificate: x509.Certificate) -> bool:
    """Whether its names stand where all programs look for them (RFC 6125)."""
    try:
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, *DAMAGED):
        return False
    return True


def matches(wanted: str, candidate: str) -> bool:
    """Whether a name in a certificate is of the host `wanted`, a DNS name or an address."""
    try:
        return ipaddress.ip_address(wanted) == ipaddress.ip_address(candidate)
    except ValueError:
        pass
    wanted, candidate = wanted.lower().rstrip("."), candidate.lower()
    if candidate.startswith("*."):
        return wanted.partition(".")[2] == candidate[2:] and bool(wanted.partition(".")[0])
    return wanted == candidate


def is_for(certificate: x509.Certificate, host: str) -> bool:
    return any(matches(host, name) for name in hostnames(certificate))
