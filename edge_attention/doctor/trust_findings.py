"""What is said of certificates, tokens and the files that keep secrets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_attention.doctor.finding import Finding, duration, failed, ok, skipped, warning
from edge_attention.trust.chain import CertificateFault
from edge_attention.trust.hostnames import matches

OVERDUE = 0.25
"""A share of a certificate's life. One is renewed when a third is left: with less left, nobody renews it."""


@dataclass(frozen=True)
class Certificate:
    """What a certificate says. `starts` and `ends` in seconds since 1970; `pin` as in tokens."""

    names: tuple[str, ...]
    starts: float
    ends: float
    pin: str


@dataclass(frozen=True)
class Shown:
    """What the aggregator's port showed in a TLS handshake.

    `pins` are those of the whole chain, its authority's last. `wanted` is the pin of the authority this
    client trusts, empty if it trusts none yet; `signed` whether that one signed the chain; `name` the name
    the client expects. `fault` is what is wrong with the chain, None: nothing; `said` says it, and of which
    certificate.
    """

    certificate: Certificate
    pins: tuple[str, ...]
    wanted: str = ""
    signed: bool = False
    name: str = ""
    fault: CertificateFault | None = None
    said: str = ""


@dataclass(frozen=True)
class Secret:
    """A file with a key or a token: its permission bits, whether it is this user's. mode 0: there is none."""

    path: str
    mode: int
    own: bool = True
    shared: bool = False
    """A group may read it, as of a token that is handed over."""


def days(subject: str, certificate: Certificate, now: float, renewal: str) -> Finding:
    """How long a certificate is good for yet. `renewal`: who renews it, and how it is had anew."""
    left, life = certificate.ends - now, max(certificate.ends - certificate.starts, 1.0)
    data = {
        "starts": certificate.starts,
        "ends": certificate.ends,
        "left_seconds": left,
        "life_seconds": life,
    }
    if now < certificate.starts:
        fix = "set the clock of this machine, or of the one that issued it"
        said = (
            f"the certificate is good only in {duration(certificate.starts - now)}, by this machine's clock"
        )
        return failed("certificate", subject, said, fix, **data)
    if left <= 0:
        return failed("certificate", subject, f"the certificate ended {duration(-left)} ago", renewal, **data)
    said = f"the certificate is good for {duration(left)} yet, of {duration(life)}"
    if left < OVERDUE * life:
        return warning("certificate", subject, f"{said}: its renewal is overdue", renewal, **data)
    return ok("certificate", subject, said, **data)


def authority(shown: Shown) -> Finding:
    """Whether the authority behind the aggregator's certificate is the one this client trusts."""
    root = shown.pins[-1] if shown.pins else ""
    data = {"shown": list(shown.pins), "trusted": shown.wanted}
    if not shown.wanted:
        fix = "give --token, --authority or --identity"
        return skipped(
            "authority", "aggregator", f"it shows {root[:16]}, this client trusts none", fix, **data
        )
    if shown.signed:
        return ok(
            "authority", "aggregator", f"its certificate is signed by {shown.wanted[:16]}, as trusted", **data
        )
    said = f"it shows the authority {root[:16]}, this client trusts {shown.wanted[:16]}"
    if shown.fault:
        said = f"{shown.fault.value}: {shown.said}"
    if shown.fault is CertificateFault.INCOMPLETE:
        fix = "there, put the missing certificate into the file of --tls-certificate"
        return failed("authority", "aggregator", said, fix, **data)
    fix = "check the address; if the aggregator's state folder is new, make a new token, or enrol anew"
    return failed("authority", "aggregator", said, fix, **data)


def chain(shown: Shown) -> Finding:
    """Whether gRPC takes every certificate from the aggregator's to its authority's."""
    data = {"fault": shown.fault.value if shown.fault else "", "said": shown.said}
    if not shown.signed:
        said = "there is no chain to an authority that this client trusts"
        return skipped("chain", "aggregator", said, **data)
    if shown.fault:
        fix = "there, put one that fits into the file of --tls-certificate; docs/security.md says which do"
        return failed("chain", "aggregator", f"{shown.fault.value}: {shown.said}", fix, **data)
    return ok("chain", "aggregator", "gRPC takes each certificate of it", **data)


def name(shown: Shown) -> Finding:
    """Whether the aggregator's certificate is for the name it is reached by."""
    names = shown.certificate.names
    data = {"names": list(names), "wanted": shown.name}
    if not shown.name:
        return skipped("certificate name", "aggregator", "which name is expected is not known", **data)
    if any(matches(shown.name, candidate) for candidate in names):
        return ok("certificate name", "aggregator", f"the certificate is for {shown.name}", **data)
    said = f"the certificate is for {', '.join(names) or 'no name'}, not for {shown.name}"
    fix = (
        f"use a name it has, or start the aggregator with --tls-name {shown.name}; one given with "
        "--tls-certificate has to be issued for it"
    )
    return failed("certificate name", "aggregator", said, fix, **data)


def secrets(subject: str, files: Sequence[Secret]) -> Finding:
    """Whether files with secrets are there, and nobody else's to read."""
    data = {"files": [{"path": file.path, "mode": oct(file.mode)} for file in files]}
    missing = [file.path for file in files if not file.mode]
    if missing:
        fix = "make it anew: enrol with a join token, or copy the file there"
        return failed("key files", subject, f"{', '.join(missing)} is not there", fix, **data)
    # Others never; a group neither, unless the file is handed over to one.
    bad = [file for file in files if file.mode & (0o037 if file.shared else 0o077)]
    if bad:
        said = ", ".join(f"{file.path} has mode {file.mode & 0o777:04o}" for file in bad)
        fix = f"take it from others: chmod {'640' if all(f.shared for f in bad) else '600'} {bad[0].path}"
        return failed("key files", subject, f"others may read secrets: {said}", fix, **data)
    foreign = [file.path for file in files if not file.own]
    if foreign:
        fix = "run the doctor as the user that runs the daemon, or chown the file to that user"
        return warning("key files", subject, f"{', '.join(foreign)} belongs to another user", fix, **data)
    said = ", ".join(f"{file.path} {file.mode & 0o777:04o}" for file in files)
    return ok("key files", subject, said or "no file with secrets is used", **data)


def access(problem: str) -> Finding:
    """Whether the aggregator lets this client in."""
    if problem:
        fix = "make a new token there, `edge-aggregator token create --role user`, and show it with --token"
        return failed("access", "aggregator", problem, fix)
    return ok("access", "aggregator", "it lets this client in")
