"""Refused handshakes, read from gRPC's own log: Python is told of them in no other way.

gRPC writes to descriptor 2. A pipe takes its place; what Python writes to stderr goes around it, straight to
the real one, and so does every line that is not about a handshake.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

from edge_attention.core.printable import shown

VERBOSITY = "GRPC_VERBOSITY"

_HANDSHAKE = re.compile(r"\] Handshake failed with error (.*)")
_INFO = re.compile(r"I\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ \w+\.cc:\d+\]")
_LEVEL = "is not suitable for production"


@dataclass(frozen=True)
class RefusedHandshake:
    """Why a handshake failed. `ours`: the peer did not take the certificate that this aggregator shows."""

    reason: str
    ours: bool = False


_CAUSES = (
    ("WRONG_VERSION_NUMBER", "it did not speak TLS: a node or client without a token, or another program"),
    ("HTTP_REQUEST", "it spoke plain HTTP"),
    # How an alert of OpenSSL's reads to BoringSSL at that point of the handshake.
    ("BAD_PACKET_LENGTH", "it broke off: as a rule, it does not trust this aggregator's authority"),
    ("CERTIFICATE_VERIFY_FAILED", "a certificate does not verify"),
    ("NO_SHARED_CIPHER", "it speaks no cipher this aggregator accepts"),
    ("UNSUPPORTED_PROTOCOL", "it speaks a version of TLS that is too old"),
)
_OURS = (
    (
        "UNKNOWN_CA",
        "wrong authority: it does not trust this aggregator's authority: enrol it again with a token of "
        "this one",
    ),
    ("UNSUPPORTED_CERTIFICATE", "wrong use: for it this aggregator's certificate is not one of a server"),
    ("CERTIFICATE_UNKNOWN", "it does not accept this aggregator's certificate"),
    # The same alert for both.
    (
        "BAD_CERTIFICATE",
        "it does not accept this aggregator's certificate: wrong name (it dialled one that the certificate "
        "lacks), or not yet valid by its clock",
    ),
    ("CERTIFICATE_EXPIRED", "expired: by its clock this aggregator's certificate has ended"),
    (
        "NO_COMMON_SIGNATURE_ALGORITHMS",
        "unsupported key: it takes no signature of this aggregator's key; P-256 is taken by all",
    ),
)


def prepare(environment: MutableMapping[str, str]) -> bool:
    """Before gRPC is imported: have it log handshakes. True if it was not to log so much by itself."""
    if environment.get(VERBOSITY, "").upper() in ("INFO", "DEBUG"):
        return False
    environment[VERBOSITY] = "INFO"
    return True


class GrpcLog:
    """Reads descriptor 2 on a thread of its own. `refused(why, line)` is told of failed handshakes."""

    def __init__(self, quiet: bool) -> None:
        """`quiet`: drop gRPC's lines of level INFO, which nobody has asked for."""
        self._quiet = quiet
        self._refused: Callable[[RefusedHandshake, str], None] = lambda refused, line: None
        self._real = os.dup(2)
        read, write = os.pipe()
        sys.stderr.flush()
        sys.stderr = io.TextIOWrapper(
            os.fdopen(os.dup(self._real), "wb", 0), "utf-8", "backslashreplace", write_through=True
        )
        os.dup2(write, 2)
        os.close(write)
        threading.Thread(target=self._read, args=(read,), name="grpc-log", daemon=True).start()

    def tell(self, refused: Callable[[RefusedHandshake, str], None]) -> None:
        self._refused = refused

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb", 0) as pipe:
            rest = b""
            while data := pipe.read(65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._line(line)
                if len(rest) > 65536:
                    self._line(rest)
                    rest = b""

    def _line(self, data: bytes) -> None:
        line = data.decode(errors="replace")
        refused = handshake(line)
        try:
            if refused is not None:
                self._refused(refused, line)
            if (self._quiet and (_INFO.match(line) or _LEVEL in line)) or refused is not None:
                return
            os.write(self._real, shown(line).encode() + b"\n")
        except Exception:  # whoever reads stderr is gone, or the loop has ended: nobody is left to tell
            return


def handshake(line: str) -> RefusedHandshake | None:
    """Why a handshake failed, if `line` of gRPC's log says that one has."""
    match = _HANDSHAKE.search(line)
    if match is None:
        return None
    error = match[1].strip()
    return RefusedHandshake(broken(error), any(sign in error for sign, _ in _OURS))


def broken(error: str) -> str:
    """What an `error` of OpenSSL or BoringSSL at a handshake means, for a person."""
    meant = next((text for sign, text in (*_OURS, *_CAUSES) if sign in error), error)
    return f"a TLS handshake failed: {meant}"
