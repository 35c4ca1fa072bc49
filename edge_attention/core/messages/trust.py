"""What a peer and the aggregator say to each other about certificates. Certificates and requests are DER."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Issued:
    """A certificate, its issuer's, and whom it is for."""

    certificate: bytes
    issuer: bytes
    name: str
    role: str


@dataclass(frozen=True)
class EnrolRequest:
    """`token` is a join token's text; `name` "" leaves the name to the token, and then to `suggested`."""

    token: str = field(repr=False)
    signing_request: bytes
    name: str = ""
    suggested: str = ""

    def __repr__(self) -> str:
        return f"EnrolRequest(name={self.name!r})"


@dataclass(frozen=True)
class EnrolResponse:
    issued: Issued


@dataclass(frozen=True)
class RenewRequest:
    signing_request: bytes


@dataclass(frozen=True)
class RenewResponse:
    issued: Issued
