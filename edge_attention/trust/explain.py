"""Why gRPC could not connect, which says little itself: found by trying a TLS handshake."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from datetime import UTC, datetime

from cryptography import x509

from edge_attention.core.addresses import split_address
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.trust.authorities import Authorities, are_ours, pin_of
from edge_attention.trust.bootstrap import TIMEOUT, no_tls, shown
from edge_attention.trust.certificates import pem, pin
from edge_attention.trust.chain import CertificateFault, CertificateTrouble, judge

NO_CLOCK = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
"""When this was written, in seconds since 1970: a clock that shows less is wrong."""


def why_unreachable(
    address: str, authorities: Authorities | None, name: str | None, seconds: float = TIMEOUT
) -> str | None:
    """Why gRPC could not connect to `address`, found by trying a TLS handshake; None if that does not tell.

    Args:
        authorities: what the peer trusts; None: it spoke plaintext.
        name: the name it expects of the server; None: the address's.
        seconds: that it takes, as far as the peer says something now and then.
    """
    ends = time.monotonic() + seconds
    if authorities is None:
        with contextlib.suppress(EdgeAttentionError, OSError):
            shown(address, min(3.0, seconds))
            return (
                f"{address} wants TLS, and this side spoke plaintext: a client needs --token or --identity "
                "(Client(..., token=...) in Python), a node --join-token"
            )
        return None
    try:
        chain = shown(address, min(3.0, seconds))
    except ssl.SSLError as error:
        return no_tls(address, error)
    except (EdgeAttentionError, OSError):
        return None
    host = name or split_address(address)[0]
    now = time.time()
    trouble = judge(chain[0], chain[1:], authorities, host, now) if chain else None
    left = ends - time.monotonic()
    # Where this finds nothing, OpenSSL may; where it does, the aggregator's log is told of it by an alert.
    words = _handshake(address, authorities, host, min(3.0, left)) if left > 0 else None
    if trouble is not None:
        return explained(trouble, address, authorities, chain, now)
    return words and f"the certificate of {address} does not verify: {words}: its operator has to renew it"


def explained(
    trouble: CertificateTrouble,
    address: str,
    authorities: Authorities,
    chain: list[x509.Certificate],
    now: float,
) -> str:
    """What is said of `trouble` with what the server at `address` shows, and who can mend it."""
    ours = are_ours(authorities)
    if trouble.fault in (CertificateFault.WRONG_AUTHORITY, CertificateFault.INCOMPLETE):
        shows = pin(chain[-1])[:16]
        said = (
            f"{address} is not the aggregator this side trusts ({trouble}): its authority is {shows}..., "
            f"the one trusted is {pin_of(authorities)[:16]}...: "
        )
        if trouble.fault is CertificateFault.INCOMPLETE:
            return (
                f"{said}there, put the missing certificate into the file of --tls-certificate; or, if this "
                "is another aggregator, check the address, or enrol anew with a token of it"
            )
        return f"{said}check the address, or enrol anew with a token of that aggregator"
    if trouble.fault is CertificateFault.WRONG_NAME:
        return (
            f"wrong name: the certificate of {address} is not for that name: dial a name that it has, or "
            f"give that aggregator a --tls-certificate for this one ({trouble.said})"
        )
    return f"{address} shows a certificate that is not taken ({trouble}): {_cure(trouble, ours, now)}"


def _cure(trouble: CertificateTrouble, ours: bool, now: float) -> str:
    begins = trouble.certificate.not_valid_before_utc.timestamp()
    if trouble.fault in (CertificateFault.EXPIRED, CertificateFault.NOT_YET_VALID) and now < NO_CLOCK:
        return "this machine's clock is wrong: set it (NTP)"
    if trouble.fault is CertificateFault.EXPIRED:
        if ours:
            return "that aggregator renews its own, so that a clock is wrong, here or there: set it (NTP)"
        return (
            "have its operator renew it and put it into the file of --tls-certificate; nothing is to be "
            "done here"
        )
    if trouble.fault is CertificateFault.NOT_YET_VALID:
        return (
            f"wait until {datetime.fromtimestamp(begins, UTC):%Y-%m-%d %H:%M:%S} UTC, or have its operator "
            "issue it anew; if it is past that, this machine's clock is behind: set the clock (NTP)"
        )
    return (
        "have its operator make one that fits, as docs/security.md says, and give it with --tls-certificate"
    )


def _handshake(address: str, authorities: Authorities, host: str, seconds: float) -> str | None:
    """What OpenSSL has against the server's certificate. The server is sent an alert that says so, which in
    TLS 1.3 would come encrypted and could not be read."""
    context = ssl.create_default_context(cadata=pem(*authorities).decode())
    # As gRPC judges, and no stricter: nothing else is why it could not connect.
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(ssl.SSLError, ValueError):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with (
            socket.create_connection(split_address(address), seconds) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except OSError:
        return None
