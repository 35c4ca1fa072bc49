"""Runs the checks of trust: what this client shows, what the aggregator shows, how secrets are kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.doctor import measure_trust, trust_findings
from edge_attention.doctor.finding import Finding, failed
from edge_attention.trust.authorities import Authorities, pin_of, read_authorities
from edge_attention.trust.identity import Identity, IdentityFolder
from edge_attention.trust.tokens import parse_token, read_token

Tell = Callable[[Finding], None]

_NODE = "restart the node if it is not connected (it renews by itself), else enrol it anew with a join token"
_CLIENT = (
    "use it once while the aggregator runs (it renews by itself), else: edge-attention enrol --token eaj_..."
)
_SERVER = (
    "see why in the aggregator's log: it renews its own; one given with --tls-certificate is yours to renew"
)


@dataclass(frozen=True)
class TrustAsked:
    """What this client shows and trusts, as on the command line; where daemons on this box keep theirs."""

    token: str | None = None
    token_file: Path | None = None
    authority: Path | None = None
    identity: Path | None = None
    node_identity: Path | None = None
    state: Path | None = None

    @property
    def tls(self) -> bool:
        """Whether a client with these speaks TLS."""
        return any((self.token, self.token_file, self.authority, self.identity))


@dataclass(frozen=True)
class KnownTrust:
    """Whom the client trusts: authorities, or only their pin."""

    authorities: Authorities | None = None
    pin: str = ""


def examine_credentials(trust: TrustAsked, tell: Tell) -> KnownTrust | None:
    """Look at what this client would show; None if it cannot be used."""
    subject = "this client"
    try:
        authorities = read_authorities(trust.authority) if trust.authority is not None else None
        token = (
            read_token(trust.token_file, "access")
            if trust.token_file is not None
            else parse_token(trust.token, "access")
            if trust.token is not None
            else None
        )
        identity = IdentityFolder(trust.identity).load() if trust.identity is not None else None
    except EdgeAttentionError as error:
        tell(failed("credentials", subject, error.message, "correct what the message names"))
        return None
    files = []
    if trust.token_file is not None:
        files.append(measure_trust.secret(trust.token_file, shared=True))
    if identity is not None and trust.identity is not None:
        files.append(measure_trust.secret(trust.identity / "key.pem"))
        _identity(subject, identity, _CLIENT, tell)
        authorities = authorities or identity.authorities
    if files:
        tell(trust_findings.secrets(subject, files))
    if authorities is not None:
        return KnownTrust(authorities, pin_of(authorities))
    return KnownTrust(None, token.pin if token is not None else "")


def examine_files(trust: TrustAsked, tell: Tell) -> None:
    """Look at the secrets of daemons on this box, where somebody said where they are."""
    if trust.node_identity is not None:
        subject = "node on this box"
        try:
            identity = IdentityFolder(trust.node_identity).load()
        except EdgeAttentionError as error:
            tell(failed("credentials", subject, error.message, "correct what the message names"))
        else:
            _identity(subject, identity, _NODE, tell)
            tell(trust_findings.secrets(subject, [measure_trust.secret(trust.node_identity / "key.pem")]))
    if trust.state is not None:
        tell(trust_findings.secrets("aggregator on this box", measure_trust.state_secrets(trust.state)))


def _identity(subject: str, identity: Identity, renewal: str, tell: Tell) -> None:
    facts = measure_trust.facts(identity.certificate)
    tell(trust_findings.days(subject, facts, time.time(), renewal))


def examine_shown(address: str, seconds: float, known: KnownTrust, tell: Tell) -> bool:
    """Look at the certificate of a port that speaks TLS; whether this client would take it."""
    try:
        shown = measure_trust.shown(address, seconds, known.authorities, known.pin)
    except EdgeAttentionError as error:
        tell(failed("certificate", "aggregator", error.message, _SERVER))
        return False
    findings = [
        trust_findings.days("aggregator", shown.certificate, time.time(), _SERVER),
        trust_findings.authority(shown),
        trust_findings.chain(shown),
        trust_findings.name(shown),
    ]
    for finding in findings:
        tell(finding)
    return not any(finding.status.value == "failed" for finding in findings)
