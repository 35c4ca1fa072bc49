"""What was issued and what was taken back: tokens and certificates in `trust/trust.db`.

SQLite in WAL mode: the command line works on it while the daemon runs. Times are seconds since 1970.
"""

from __future__ import annotations

import hmac
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aggregator.store.database import UNWRITABLE
from aggregator.store.folder import is_full, refusal, remedy, unwritable
from aggregator.store.page_sums import PageSums
from aggregator.trust.authority import REGISTRY
from aggregator.trust.enrolment import Holder, admit, require_redeemable
from aggregator.trust.proof import Peer
from aggregator.trust.rows import (
    FROM_1,
    SCHEMA,
    TABLES,
    CertificateRow,
    TokenRow,
    certificate_row,
    token_row,
)
from edge_attention.core.errors import (
    DataLoss,
    DiskFull,
    FailedPrecondition,
    NotFound,
    Revoked,
    Unauthenticated,
    Unavailable,
)
from edge_attention.trust.certificates import moment
from edge_attention.trust.names import Role
from edge_attention.trust.tokens import Token, TokenKind, make_token, secret_hash

__all__ = ["CertificateRow", "Registry", "TokenRow"]

WRITE_SECONDS, READ_SECONDS = 10.0, 1.0
"""How long the database may be locked by another process."""
KEPT_SECONDS = 30 * 86400.0
"""How long certificates that have ended are remembered."""

_TOKEN = "id, kind, role, name, created, expires, uses, used, revoked, label"


class Registry:
    """The database in `folder`. Any thread may call.

    `daemon`: this process has the folder for itself but for the command line's, and sums the pages of a
    database that an earlier release wrote.

    Raises:
        DataLoss: the database is damaged.
        FailedPrecondition: it cannot be used.
    """

    def __init__(self, folder: Path, *, daemon: bool = False) -> None:
        self._where = folder / REGISTRY
        self._sums = PageSums(self._where, shared=True)
        self._mutex = threading.RLock()
        self._reading = threading.Lock()
        self._writer = 0  # the thread whose transaction is under way
        self._seen = (-1, 0)
        with self._turn(alone=True):
            self._database = self._sums.open(self._opened, make=daemon)
            # In WAL mode who reads waits for nobody who writes: calls are checked on the event loop.
            self._reader = self._connect(READ_SECONDS)

    def _opened(self) -> sqlite3.Connection:
        """Its caller alone writes."""
        with self._translated():
            database = self._connect(WRITE_SECONDS)
            try:
                self._where.chmod(0o600)
                # Checkpoints are made by `PageSums` alone.
                for pragma in ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=0"):
                    database.execute(f"PRAGMA {pragma}")
                (schema,) = database.execute("PRAGMA user_version").fetchone()
                if schema > SCHEMA:
                    raise FailedPrecondition(
                        f"{self._where} was written by a newer release (schema {schema}, this one reads "
                        f"{SCHEMA}): run that release"
                    )
                if schema < SCHEMA:
                    made = {0: TABLES, 1: FROM_1}.get(schema, ())
                    database.execute("BEGIN IMMEDIATE")
                    for statement in (*made, f"PRAGMA user_version={SCHEMA}", "COMMIT"):
                        database.execute(statement)
            except BaseException:
                self._sums.close(database)
                raise
        return database

    @contextmanager
    def _turn(self, *, alone: bool = False) -> Iterator[None]:
        """Of whoever writes, in whatever process."""
        with self._translated(), self._sums.turn(alone=alone, seconds=WRITE_SECONDS) as mine:
            if not mine:
                raise self._in_use()
            yield

    def _in_use(self) -> Unavailable:
        return Unavailable(
            f"{self._where} is in use: another process has been writing to it for long; try again"
        )

    def _connect(self, timeout: float) -> sqlite3.Connection:
        # isolation_level None: transactions begin and end where `_transaction` says.
        return sqlite3.connect(self._where, isolation_level=None, check_same_thread=False, timeout=timeout)

    def close(self) -> None:
        with self._mutex, self._reading, self._sums.turn(alone=True, seconds=WRITE_SECONDS) as mine:
            if mine:
                self._sums.close(self._database, self._reader)
            else:  # another process writes: it is not the last, and has the log summed
                self._reader.close()
                self._database.close()

    @contextmanager
    def _translated(self, *, writes: bool = True) -> Iterator[None]:
        """`writes`: whether it is tried why the system does not let, which waits for the disk: calls are
        checked on the event loop, and only read."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            text, code = str(error), getattr(error, "sqlite_errorcode", 0) & 0xFF
            failing = code == sqlite3.SQLITE_IOERR
            if code == sqlite3.SQLITE_FULL or (failing and is_full(self._where.parent)):
                raise DiskFull(f"{self._where}: the disk is full; free space there") from None
            if writes and code in UNWRITABLE and (found := refusal(self._where.parent)) is not None:
                raise unwritable(self._where, found) from None
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise self._in_use() from None
            if isinstance(error, sqlite3.OperationalError):
                raise FailedPrecondition(
                    f"{self._where} cannot be used: {text}; run this as the user that runs the aggregator"
                ) from None
            raise DataLoss(f"{self._where} is damaged: {text}; restore it from a backup") from None
        except OSError as error:
            raise FailedPrecondition(
                f"{self._where} cannot be used: {error.strerror}; {remedy(self._where, error)}"
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._mutex, self._turn():
            self._database.execute("BEGIN IMMEDIATE")
            self._writer = threading.get_ident()
            try:
                yield
                self._sums.require_there()
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
            finally:
                self._writer = 0
        if self._sums.due():
            with self._mutex, self._sums.turn(alone=True) as mine:
                if mine:  # or after one of the next changes
                    self._sums.checkpoint(self._database)

    def _rows(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """What is there; inside a transaction of this thread, as that sees it."""
        with self._translated(writes=False):
            if self._writer == threading.get_ident():
                return self._database.execute(statement, values).fetchall()
            with self._reading:
                return self._reader.execute(statement, values).fetchall()

    def version(self) -> int:
        """Another number after anything has changed, by this process or any other."""
        ((changed,),) = self._rows("PRAGMA data_version")
        assert isinstance(changed, int)
        return changed

    def revocations(self) -> int:
        """How many there have been, by this process and any other: what is revoked is never forgotten."""
        changed = self.version()
        if changed != self._seen[0]:
            ((count,),) = self._rows(
                "SELECT (SELECT count(*) FROM certificates WHERE revoked IS NOT NULL) + "
                "(SELECT count(*) FROM tokens WHERE revoked IS NOT NULL)"
            )
            assert isinstance(count, int)
            self._seen = (changed, count)
        return self._seen[1]

    # Tokens

    def create_token(
        self,
        kind: TokenKind,
        role: Role,
        pin: str,
        now: float,
        *,
        name: str = "",
        uses: int | None = None,
        expires: float | None = None,
        label: str = "",
    ) -> Token:
        """A new token. Its secret is in what is returned and nowhere else."""
        token = make_token(kind, pin)
        row = (token.id, kind, role, name, secret_hash(token.secret), now, expires, uses, 0, None, label)
        with self._transaction():
            self._database.execute(f"INSERT INTO tokens VALUES ({', '.join('?' * len(row))})", row)
        return token

    def tokens(self) -> list[TokenRow]:
        """All tokens, oldest first."""
        return [token_row(row) for row in self._rows(f"SELECT {_TOKEN} FROM tokens ORDER BY created, rowid")]

    def token(self, id: str) -> TokenRow:
        """Raises NotFound if there is none."""
        rows = self._rows(f"SELECT {_TOKEN} FROM tokens WHERE id = ?", id)
        if not rows:
            raise NotFound(f"there is no token {id[:40]!r}; `edge-aggregator token list` lists them")
        return token_row(rows[0])

    def revoke_token(self, id: str, now: float) -> TokenRow:
        """Raises NotFound if there is none."""
        with self._transaction():
            row = self.token(id)
            self._database.execute("UPDATE tokens SET revoked = coalesce(revoked, ?) WHERE id = ?", (now, id))
        return row

    def knows(self, token: Token) -> bool:
        """Whether the token is one of this aggregator's, valid or not."""
        try:
            self.require_known(token)
        except Revoked:
            return False
        return True

    def require_known(self, token: Token) -> None:
        """Raises Revoked if the token is none of this aggregator's. Valid or not is not asked."""
        self._known(token)

    def _known(self, token: Token) -> TokenRow:
        """The row of a token whose secret is right."""
        rows = self._rows(f"SELECT secret, {_TOKEN} FROM tokens WHERE id = ?", token.id)
        if not rows or not hmac.compare_digest(str(rows[0][0]), secret_hash(token.secret)):
            raise Revoked(
                f"token {token.id} is not known here: it belongs to another aggregator, or to this one "
                "before its state folder was new; make one with: edge-aggregator token create"
            )
        return token_row(rows[0][1:])

    def access(self, token: Token, now: float) -> Peer:
        """Whom an access token stands for.

        Raises:
            Unauthenticated: it is not known or has expired.
            Revoked: it was revoked.
        """
        row = self._known(token)
        if row.revoked is not None:
            raise Revoked(f"access token {row.id} was revoked at {moment(row.revoked)}: ask for another")
        if row.expires is not None and now >= row.expires:
            raise Unauthenticated(f"access token {row.id} expired at {moment(row.expires)}: ask for another")
        ends = math.inf if row.expires is None else row.expires
        return Peer(row.name or row.id, row.role, token=row.id, ends=ends)

    # Certificates

    def enrol(
        self,
        token: Token,
        name: str,
        suggested: str,
        key: str,
        now: float,
        issue: Callable[[Role, str], CertificateRow],
    ) -> CertificateRow:
        """Take one use of a join token for a certificate of `key`, made by `issue(role, name)`.

        All or nothing. A key that asks again with the token it has just been enrolled with, because the
        answer was lost, is answered again; while the certificate it has is young, with that one, and no use
        is taken.

        Raises:
            Revoked, Unauthenticated, PermissionDenied, AlreadyExists: and why (`aggregator.trust.enrolment`).
        """
        self.require_known(token)  # before anything is written or waited for: a stranger has none
        with self._transaction():
            row = self._known(token)
            wanted = name or row.name or suggested
            holders = self._holders(row.role, wanted)
            again = require_redeemable(row, holders, key, now)
            admit(row, wanted, key, holders, now)
            young = self._young(row.role, wanted, key, now)
            certificate = young or issue(row.role, wanted)
            if row.name:
                # Made for this name: whoever held it does no longer.
                self._database.execute(
                    "UPDATE certificates SET revoked = ? WHERE role = ? AND name = ? AND key <> ? "
                    "AND revoked IS NULL AND ends > ?",
                    (now, row.role, wanted, key, now),
                )
            if not again and young is None:
                self._database.execute("UPDATE tokens SET used = used + 1 WHERE id = ?", (row.id,))
            if young is None:
                self._insert(certificate, now)
        return certificate

    def _young(self, role: Role, name: str, key: str, now: float) -> CertificateRow | None:
        """The certificate `key` has for that name, if more than half of its life is left."""
        rows = self._rows(
            "SELECT * FROM certificates WHERE role = ? AND name = ? AND key = ? AND revoked IS NULL AND "
            "der <> x'' AND ends - ? > (ends - issued) / 2 ORDER BY rowid DESC LIMIT 1",
            role,
            name,
            key,
            now,
        )
        return certificate_row(rows[0]) if rows else None

    def renew(self, certificate: CertificateRow, old: str, now: float) -> None:
        """Remember `certificate`, issued for the one with serial `old`.

        Raises:
            Revoked, Unauthenticated: that one was revoked, or is not known.
        """
        with self._transaction():
            self.require_not_revoked(Peer(certificate.name, certificate.role, certificate=old))
            self._insert(certificate, now)

    def _insert(self, c: CertificateRow, now: float) -> None:
        self._database.execute(
            "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (c.serial, c.role, c.name, c.key, c.token, c.issued, c.ends, c.revoked, c.der),
        )
        # Only the latest of a name matters once it has ended; revoked ones bar their name.
        self._database.execute(
            "DELETE FROM certificates WHERE revoked IS NULL AND ends < ?", (now - KEPT_SECONDS,)
        )

    def _holders(self, role: Role, name: str) -> list[Holder]:
        rows = self._rows(
            "SELECT key, token, issued, ends, revoked FROM certificates WHERE role = ? AND name = ? "
            "ORDER BY rowid",
            role,
            name,
        )
        return [Holder(*row) for row in rows]  # type: ignore[arg-type]

    def certificates(self) -> list[CertificateRow]:
        """The newest certificate of each role and name."""
        rows = self._rows(
            "SELECT * FROM certificates AS c WHERE rowid = (SELECT max(rowid) FROM certificates AS d "
            "WHERE d.role = c.role AND d.name = c.name) ORDER BY role, name"
        )
        return [certificate_row(row) for row in rows]

    def certificate(self, serial: str) -> CertificateRow | None:
        rows = self._rows("SELECT * FROM certificates WHERE serial = ?", serial)
        return certificate_row(rows[0]) if rows else None

    def revoke_certificates(self, name: str, role: Role | None, now: float) -> list[CertificateRow]:
        """Revoke all certificates of `name`, in `role` or in any; those that were the newest.

        Raises:
            NotFound: there is none.
        """
        with self._transaction():
            found = [c for c in self.certificates() if c.name == name and role in (None, c.role)]
            if not found:
                raise NotFound(
                    f"no certificate was issued for {name[:80]!r}; `edge-aggregator certificate list` lists "
                    "them"
                )
            for c in found:
                self._database.execute(
                    "UPDATE certificates SET revoked = ? WHERE role = ? AND name = ? AND revoked IS NULL",
                    (now, c.role, c.name),
                )
        return found

    def require_not_revoked(self, peer: Peer) -> None:
        """Refuse a certificate or token that is no longer good.

        Raises:
            Revoked: it was revoked.
            Unauthenticated: there is no record of that certificate.
        """
        if peer.token:
            row = self.token(peer.token)
            if row.revoked is not None:
                raise Revoked(f"access token {row.id} was revoked at {moment(row.revoked)}: ask for another")
            return
        certificate = self.certificate(peer.certificate)
        if certificate is None:
            # It may have been revoked before the record of that was lost.
            raise Unauthenticated(
                f"the certificate of {peer.role} {peer.name!r} is not known here, as after a loss of this "
                "aggregator's trust.db: enrol again, with a join token and an empty --identity folder"
            )
        if certificate.revoked is not None:
            raise Revoked(
                f"the certificate of {peer.role} {peer.name!r} was revoked at "
                f"{moment(certificate.revoked)}: to let it in again, an operator makes a token for it with "
                f"edge-aggregator token create --role {peer.role} --name {peer.name}"
            )

    def latest_end(self, role: Role, name: str, key: str) -> float:
        """When the last of the certificates of `key` for a name ends that were not revoked; 0: none."""
        rows = self._rows(
            "SELECT max(ends) FROM certificates WHERE role = ? AND name = ? AND key = ? AND revoked IS NULL",
            role,
            name,
            key,
        )
        end = rows[0][0]
        return float(end) if isinstance(end, int | float) else 0.0
