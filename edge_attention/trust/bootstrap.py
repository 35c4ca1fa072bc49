"""From an address and a token to an authority to trust: fetch what the server shows, check it by the pin."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import Any

from cryptography import x509

from edge_attention.core.addresses import split_address
from edge_attention.core.errors import EdgeAttentionError, Unauthenticated, Unreachable
from edge_attention.trust.certificates import der, load_der, pin

TIMEOUT = 10.0


def unverified_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def shown_chain(address: str, timeout: float = TIMEOUT) -> list[x509.Certificate]:
    """The certificates the server at `address` shows. Nothing is verified, and nothing is said to it.

    Raises:
        Unreachable: nobody is there, or it does not speak TLS.
    """
    try:
        return _shown(address, timeout)
    except ssl.SSLError as error:
        raise Unreachable(_no_tls(address, error)) from None
    except OSError as error:
        raise Unreachable(
            f"{address} cannot be reached: {error.strerror or error}; is it running, and is the address "
            "right?"
        ) from None


def _shown(address: str, timeout: float) -> list[x509.Certificate]:
    with (
        socket.create_connection(split_address(address), timeout) as connection,
        unverified_context().wrap_socket(connection) as tls,
    ):
        return [load_der(data, "the server's certificate") for data in _chain(tls)]


def _no_tls(address: str, error: ssl.SSLError) -> str:
    return (
        f"{address} does not speak TLS ({error.reason or error}): start that aggregator with --tls, or leave "
        "out the token"
    )


def _chain(tls: ssl.SSLSocket) -> list[bytes]:
    find: Any = getattr(tls, "get_unverified_chain", None)  # public since Python 3.13
    if find is None:
        find = tls._sslobj.get_unverified_chain  # type: ignore[attr-defined]
    found: list[Any] = find() or []
    return [c if isinstance(c, bytes) else c.public_bytes(ssl._ssl.ENCODING_DER) for c in found]  # type: ignore[attr-defined]


def fetch_authority(address: str, wanted: str, timeout: float = TIMEOUT) -> x509.Certificate:
    """The certificate with the pin `wanted` that the server at `address` shows.

    That the server holds it, and not only shows it, is for the TLS connection to prove that is made next.

    Raises:
        Unreachable: nobody is there, or it does not speak TLS.
        Unauthenticated: it shows no such certificate.
    """
    chain = shown_chain(address, timeout)
    for certificate in reversed(chain):
        if pin(certificate) == wanted:
            return certificate
    found = pin(chain[-1]) if chain else "none"
    raise Unauthenticated(
        f"{address} shows the authority {found[:16]}..., and the token is of {wanted[:16]}...: the address "
        "is of "
        "another aggregator, the aggregator's state folder is new (make another token), or somebody is in "
        "between"
    )


def why_unreachable(
    address: str, authority: x509.Certificate | None, name: str | None, seconds: float = TIMEOUT
) -> str | None:
    """Why gRPC could not connect to `address`, found by trying a TLS handshake; None if that does not tell.

    Args:
        authority: what the peer trusts; None: it spoke plaintext.
        name: the name it expects of the server; None: the address's.
        seconds: that it takes, as far as the peer says something now and then.
    """
    ends = time.monotonic() + seconds
    if authority is None:
        with contextlib.suppress(EdgeAttentionError, OSError):
            _shown(address, min(3.0, seconds))
            return (
                f"{address} wants TLS, and this side spoke plaintext: a client needs --token or --identity "
                "(Client(..., token=...) in Python), a node --join-token"
            )
        return None
    try:
        chain = _shown(address, min(3.0, seconds))
    except ssl.SSLError as error:
        return _no_tls(address, error)
    except (EdgeAttentionError, OSError):
        return None
    left = ends - time.monotonic()
    return _verify(address, chain, authority, name, min(3.0, left)) if left > 0 else None


def _verify(
    address: str,
    chain: list[x509.Certificate],
    authority: x509.Certificate,
    name: str | None,
    seconds: float,
) -> str | None:
    context = ssl.create_default_context(cadata=der(authority))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    host, port = split_address(address)
    try:
        with (
            socket.create_connection((host, port), seconds) as connection,
            context.wrap_socket(connection, server_hostname=name or host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        shown = pin(chain[-1])[:16] if chain else "none"
        if error.verify_code in _TIMES:
            return (
                f"{address} shows a certificate that is {_TIMES[error.verify_code]} by this machine's clock: "
                "set the clock (NTP), here or there"
            )
        if error.verify_code in _NAMES:
            return (
                f"the certificate of {address} is not for that name: dial a name that it has, or give that "
                f"aggregator a --tls-certificate for {host}"
            )
        return (
            f"{address} is not the aggregator this side trusts: its authority is {shown}..., the one trusted "
            f"is {pin(authority)[:16]}...: check the address, or enrol anew with a token of that aggregator"
        )
    except OSError:
        return None


_TIMES = {9: "not valid yet", 10: "no longer valid"}  # X509_V_ERR_CERT_NOT_YET_VALID, ..._HAS_EXPIRED
_NAMES = {62, 64}  # X509_V_ERR_HOSTNAME_MISMATCH, ..._IP_ADDRESS_MISMATCH
