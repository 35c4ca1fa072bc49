"""What a peer with a certificate sends with each call: a signed, short-lived word that it holds the key.

A JSON Web Signature (ES256) as `authorization: Bearer ...`, the certificate in its header `x5c`. It is for
one authority's aggregator (`aud`: SHA-256 of the certificate that signed the peer's) and for minutes only.
"""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections.abc import Callable

import jwt
from cryptography import x509

from edge_attention.trust.certificates import Key, der, fingerprint, uris

SECONDS = 300
"""How long an assertion is good."""
FRESH = 0.5
"""The part of it after which a new one is made."""
SKEW = 60
"""Seconds by which clocks may differ."""

ALGORITHM = "ES256"


def make_assertion(key: Key, certificate: x509.Certificate, audience: str, now: float) -> str:
    claims = {
        "sub": uris(certificate)[0],
        "aud": audience,
        "iat": int(now),
        "exp": int(now) + SECONDS,
        "jti": secrets.token_hex(8),
    }
    chain = [base64.b64encode(der(certificate)).decode()]
    return jwt.encode(claims, key, algorithm=ALGORITHM, headers={"x5c": chain})


class Assertion:
    """The assertion of one certificate, made again before it ends. Any thread may ask."""

    def __init__(
        self,
        key: Key,
        certificate: x509.Certificate,
        issuer: x509.Certificate,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._certificate = certificate
        self._clock = clock
        self._audience = fingerprint(issuer)
        self._mutex = threading.Lock()
        self._text = ""
        self._made = 0.0

    def text(self) -> str:
        now = self._clock()
        with self._mutex:
            # A clock that was set back makes a new one too.
            if not self._text or not 0 <= now - self._made < SECONDS * FRESH:
                self._text = make_assertion(self._key, self._certificate, self._audience, now)
                self._made = now
            return self._text
