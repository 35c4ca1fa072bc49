"""The tables of `trust.db`, and a row of each as the rest of the program has it."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_attention.trust.names import Role, require_role
from edge_attention.trust.tokens import TokenKind

SCHEMA = 3
"""3 is 2 with sums of its pages beside it, which earlier releases forget."""

TABLES = (
    """CREATE TABLE tokens (id TEXT PRIMARY KEY, kind TEXT NOT NULL, role TEXT NOT NULL, name TEXT NOT NULL,
        secret TEXT NOT NULL, created REAL NOT NULL, expires REAL, uses INTEGER, used INTEGER NOT NULL,
        revoked REAL, label TEXT NOT NULL)""",
    """CREATE TABLE certificates (serial TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL,
        key TEXT NOT NULL, token TEXT NOT NULL, issued REAL NOT NULL, ends REAL NOT NULL, revoked REAL,
        der BLOB NOT NULL DEFAULT x'')""",
    "CREATE INDEX certificates_by_name ON certificates (role, name)",
)
FROM_1 = ("ALTER TABLE certificates ADD COLUMN der BLOB NOT NULL DEFAULT x''",)


@dataclass(frozen=True)
class TokenRow:
    """A token as it is kept: without its secret. `uses` None: any number; `expires` None: never."""

    id: str
    kind: TokenKind
    role: Role
    name: str
    created: float
    expires: float | None
    uses: int | None
    used: int
    revoked: float | None
    label: str

    def state(self, now: float) -> str:
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and now >= self.expires:
            return "expired"
        return "used" if self.uses is not None and self.used >= self.uses else "valid"


@dataclass(frozen=True)
class CertificateRow:
    """A certificate issued. `key` is its key's fingerprint, `token` the id of what it was enrolled with."""

    serial: str
    role: Role
    name: str
    key: str
    token: str
    issued: float
    ends: float
    revoked: float | None
    der: bytes = field(default=b"", repr=False)

    @property
    def subject(self) -> str:
        return f"{self.role}/{self.name}"

    def state(self, now: float) -> str:
        if self.revoked is not None:
            return "revoked"
        return "ended" if now >= self.ends else "valid"


def token_row(row: tuple[object, ...]) -> TokenRow:
    return TokenRow(*row)  # type: ignore[arg-type]


def certificate_row(row: tuple[object, ...]) -> CertificateRow:
    made = CertificateRow(*row)  # type: ignore[arg-type]
    require_role(made.role)
    return made
