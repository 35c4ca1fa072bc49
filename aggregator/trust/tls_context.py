"""A server's certificate and key for OpenSSL, which takes files only: they stay in memory all the same."""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator

from edge_attention.core.errors import InvalidArgument
from edge_attention.trust.authorities import Authorities
from edge_attention.trust.certificates import pem


def tls_context(chain: bytes, key: bytes) -> ssl.SSLContext:
    """What serves HTTPS with `chain` and `key`, both PEM.

    Raises:
        InvalidArgument: they do not fit, or OpenSSL does not take them.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load(context, chain, key)
    return context


def load(context: ssl.SSLContext, chain: bytes, key: bytes) -> None:
    """Have `context` show `chain` from now on; raises as `tls_context`."""
    try:
        with _file(key + b"\n" + chain) as path:
            context.load_cert_chain(path)
    except (ssl.SSLError, OSError) as error:
        raise InvalidArgument(
            f"the server's certificate and key do not fit, or one of them is damaged: {error}"
        ) from None


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[str]:
    """The path of a file with `data` that never was on a disk; where the system cannot do that, of a
    temporary one for this user only."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{descriptor}"
        return
    with tempfile.NamedTemporaryFile() as named:
        named.write(data)
        named.flush()
        yield named.name


def rehearse(context: ssl.SSLContext, authorities: Authorities) -> None:
    """A handshake in memory, with a peer that trusts `authorities`: for what only TLS itself finds.

    Raises:
        InvalidArgument: the peer does not take the certificate, and why.
    """
    peer = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    peer.check_hostname = False
    peer.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    peer.load_verify_locations(cadata=pem(*authorities).decode())
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [peer.wrap_bio(back, there), context.wrap_bio(there, back, server_side=True)]
    try:
        for _ in range(10):
            for side in list(sides):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
                    sides.remove(side)
            if not sides:
                return
    except ssl.SSLCertVerificationError as error:
        raise InvalidArgument(f"peers do not take the server's certificate: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise InvalidArgument(
            f"peers do not take the server's certificate: {error.reason or error}"
        ) from None
    raise InvalidArgument("peers do not take the server's certificate: the handshake does not end")
