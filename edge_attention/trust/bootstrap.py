"""From an address and a token to an authority to trust: fetch what the server shows, check it by the pin."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from cryptography import x509

from edge_attention.core.addresses import split_address
from edge_attention.core.errors import Unauthenticated, Unreachable
from edge_attention.trust.authorities import Authorities, shown_with_pin
from edge_attention.trust.certificates import load_der, pin

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
        return shown(address, timeout)
    except ssl.SSLError as error:
        raise Unreachable(no_tls(address, error)) from None
    except OSError as error:
        raise Unreachable(
            f"{address} cannot be reached: {error.strerror or error}; is it running, and is the address "
            "right?"
        ) from None


def shown(address: str, timeout: float) -> list[x509.Certificate]:
    """As `shown_chain`; errors are raised as Python has them."""
    with (
        socket.create_connection(split_address(address), timeout) as connection,
        unverified_context().wrap_socket(connection) as tls,
    ):
        return [load_der(data, "the server's certificate") for data in _chain(tls)]


def no_tls(address: str, error: ssl.SSLError) -> str:
    """What is said of a port that does not speak TLS."""
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


def fetch_authorities(address: str, wanted: str, timeout: float = TIMEOUT) -> Authorities:
    """The authorities with the pin `wanted` among what the server at `address` shows.

    That the server's certificate is theirs is for the TLS connection to prove that is made next.

    Raises:
        Unreachable: nobody is there, or it does not speak TLS.
        Unauthenticated: it shows none with that pin.
    """
    chain = shown_chain(address, timeout)
    found = shown_with_pin(chain, wanted)
    if found:
        return found
    last = pin(chain[-1]) if chain else "none"
    raise Unauthenticated(
        f"{address} shows the authority {last[:16]}..., and the token is of {wanted[:16]}...: the address "
        "is of another aggregator, the aggregator's state folder or the authority of its certificate is "
        "new (make another token), or somebody is in between"
    )
