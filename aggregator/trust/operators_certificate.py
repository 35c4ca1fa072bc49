"""The operator's own certificate: judged as a peer would at the start, and taken up when its files change.

What is new is used only where it is good; until then the old one goes on, and the log says why.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from aggregator.trust.operators_chain import GivenChain, ShownChain, arrange, described
from aggregator.trust.operators_files import NONE, Passphrase, key_pem, read, read_chain, read_key
from aggregator.trust.server_certificate import ServerCertificate
from aggregator.trust.tls_context import rehearse, tls_context
from edge_attention.core.errors import EdgeAttentionError, FailedPrecondition
from edge_attention.trust.authorities import Authorities, pin_of
from edge_attention.trust.certificates import ends, load_certificates, moment, pem
from edge_attention.trust.chain import called
from edge_attention.trust.files import write_whole

log = logging.getLogger(__name__)

TLS_AUTHORITY = "tls-authority.pem"
"""In the trust folder, where the operator's own certificate is served: what tokens pin is of it."""
CHAIN = "operator-chain.pem"
"""In the trust folder: the chain as it is shown, to look at."""

SETTLE_SECONDS = 3.0
"""A certificate and its key are two files, which a renewal writes one after the other."""
AGAIN_SECONDS = 60.0
"""What was refused is looked at so often without having changed: time may help one that is not yet valid."""
REMIND_SECONDS = 3600.0
"""How often the log says that the certificate in use has ended."""


@dataclass(frozen=True)
class OperatorsFiles:
    """What the command line names. `host`: the address listened on, empty: all."""

    certificate: Path
    key: Path
    authority: Path | None = None
    passphrase: Passphrase = NONE
    host: str = ""

    @property
    def all(self) -> list[Path]:
        more = [self.authority, self.passphrase.file]
        return [self.certificate, self.key, *(path for path in more if path is not None)]


class OperatorsCertificate(ServerCertificate):
    """The operator's own files, read again when they change.

    The chain shown ends with the authorities, so that a peer that has only a token can find them. They are
    kept in `folder` (TLS_AUTHORITY), where the command line finds what tokens are of.
    """

    def __init__(self, folder: Path, files: OperatorsFiles, clock: Callable[[], float] = time.time) -> None:
        """Raises FailedPrecondition or InvalidArgument where no peer would take what is there."""
        super().__init__()
        self._folder = folder
        self._files = files
        self._clock = clock
        self._seen: object = None
        self._refused: object = None
        self._said = False
        self._again = 0.0
        self._reminded = 0.0
        self._take(self._stamps())

    def keep(self) -> bool:
        """Take up files that have changed, if they are good; whether that was so. Blocks; raises nothing of
        what is wrong with them."""
        stamps = self._stamps()
        now = time.monotonic()
        self._remind(now)
        if stamps == self._seen:
            return False
        if stamps != self._refused:
            self._refused, self._said, self._again = stamps, False, now + SETTLE_SECONDS
        elif self._said and now < self._again:
            return False
        try:
            self._take(stamps)
        except (EdgeAttentionError, OSError) as error:
            if not self._said and now >= self._again:
                until = moment(ends(self.certificate))
                log.error(
                    "the new certificate is refused, and the old one goes on until %s: %s", until, error
                )
                self._said = True
            if self._said:
                self._again = now + AGAIN_SECONDS
            return False
        return True

    def _remind(self, now: float) -> None:
        if self._clock() > ends(self.certificate) and now >= self._reminded:
            self._reminded = now + REMIND_SECONDS
            log.error(
                "expired: the server's certificate ended at %s, and no peer takes it: renew it, and put "
                "the new one into %s; it is taken up without a restart",
                moment(ends(self.certificate)),
                self._files.certificate,
            )

    def _stamps(self) -> object:
        """What tells a change of the files; links are followed, as certbot changes those."""
        found = []
        for path in self._files.all:
            try:
                stat = path.stat()
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
            except OSError as error:
                found.append((0, 0, error.errno or 0))
        return found

    def _take(self, stamps: object) -> None:
        before = self._kept()
        key = read_key(self._files.key, self._files.passphrase)
        shown = arrange(self._given(key, before), self._files.host, self._clock())
        rehearse(tls_context(pem(*shown.certificates), key_pem(key)), shown.authorities)
        try:
            write_whole(self._folder / CHAIN, pem(*shown.certificates), 0o644)
            write_whole(self._folder / TLS_AUTHORITY, pem(*shown.authorities), 0o644)
        except OSError as error:
            raise FailedPrecondition(
                f"{self._folder} cannot be written: {error.strerror}; check the disk and the folder's rights"
            ) from None
        self.use(shown.certificates, key_pem(key), shown.authorities)
        self._seen = stamps
        self._tell(shown, before)

    def _given(self, key: object, before: Authorities) -> GivenChain:
        files = self._files
        authorities = None
        if files.authority is not None:
            authorities = load_certificates(read(files.authority), str(files.authority))
        return GivenChain(
            str(files.certificate),
            str(files.key),
            str(files.authority or ""),
            read_chain(files.certificate),
            key,
            authorities,
            before,
            system_authorities,
        )

    def _kept(self) -> Authorities:
        """What peers were told to trust before; () at the first start."""
        try:
            return tuple(load_certificates((self._folder / TLS_AUTHORITY).read_bytes(), TLS_AUTHORITY))
        except (OSError, EdgeAttentionError):
            return ()

    def _tell(self, shown: ShownChain, before: Authorities) -> None:
        log.info("the server shows the operator's certificate: %s", described(shown))
        for warning in shown.warnings:
            log.warning("%s", warning)
        if _others_may_read(self._files.key):
            log.warning(
                "the key %s can be read by every user of this machine: chmod o-rwx it", self._files.key
            )
        if not before or set(before) & set(shown.authorities):
            return
        if trusted := [one for one in shown.certificates if one in before]:
            log.warning(
                "nodes and clients that enrolled before, and tokens made before, trust %s, an intermediate: "
                "they go on while that signs; before another one does, let them enrol anew with a new token",
                called(trusted[0]),
            )
        else:
            log.warning(
                "the authority is another one: %s... instead of %s...: nodes and clients that trust that "
                "one, and tokens made before, have to enrol anew; to change a root without that, give "
                "both in one file of --tls-authority for as long as certificates of nodes live",
                pin_of(shown.authorities)[:16],
                pin_of(before)[:16],
            )


def _others_may_read(path: Path) -> bool:
    """A group may be let read a key; all users of a machine may not."""
    try:
        return bool(path.stat().st_mode & 0o007)
    except OSError:
        return False


def system_authorities(subject: x509.Name) -> Sequence[x509.Certificate]:
    """The authorities of this machine with this subject: where a chain of a public authority ends."""
    paths = ssl.get_default_verify_paths()
    for file in (paths.cafile, paths.openssl_cafile):
        if file is not None and os.path.isfile(file):
            try:
                with warnings.catch_warnings():  # some are odd, and nobody here can mend them
                    warnings.simplefilter("ignore")
                    found = load_certificates(Path(file).read_bytes(), file)
            except (OSError, EdgeAttentionError):
                continue
            return [one for one in found if one.subject == subject]
    return ()
