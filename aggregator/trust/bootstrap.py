"""What a fleet on one machine needs to begin: the authority's certificate and first tokens, as files.

    authority.pem  join-token  viewer-token  operator-token      everything: for who runs the fleet
    node/          authority.pem  join-token                     what a node may see
    viewer/        authority.pem  viewer-token                   what a monitor may see

The two folders are handed to others (Compose mounts a volume over each): a node must not read the operator's
token.
"""

from __future__ import annotations

import logging
from pathlib import Path

from aggregator.trust.registry import Registry
from edge_attention.core.errors import EdgeAttentionError, FailedPrecondition
from edge_attention.trust.authorities import Authorities, pin_of
from edge_attention.trust.certificates import pem
from edge_attention.trust.files import write_whole
from edge_attention.trust.names import Role
from edge_attention.trust.tokens import TokenKind, read_token

log = logging.getLogger(__name__)

FILES: tuple[tuple[str, TokenKind, Role, str], ...] = (
    ("join-token", "join", "node", ""),
    ("viewer-token", "access", "viewer", "bootstrap-viewer"),
    ("operator-token", "access", "operator", "bootstrap-operator"),
)
HANDED: dict[str, tuple[str, ...]] = {
    "node": ("authority.pem", "join-token"),
    "viewer": ("authority.pem", "viewer-token"),
}


def write_bootstrap(folder: Path, registry: Registry, authorities: Authorities, now: float) -> list[str]:
    """Write what is missing or no longer good; names of the tokens made. A token replaced is revoked.

    Raises:
        FailedPrecondition: the folder cannot be written.
    """
    made: list[str] = []
    try:
        _make(folder)
        write_whole(folder / "authority.pem", pem(*authorities), 0o640)
        for file, kind, role, name in FILES:
            if _good(folder / file, kind, registry, authorities, now):
                continue
            label = f"bootstrap {file}"
            for row in registry.tokens():
                if row.label == label and row.revoked is None:
                    registry.revoke_token(row.id, now)
            token = registry.create_token(kind, role, pin_of(authorities), now, name=name, label=label)
            write_whole(folder / file, token.text.encode() + b"\n", 0o640)
            made.append(token.id)
            log.info("wrote %s (token %s)", folder / file, token.id)
        for whose, files in HANDED.items():
            _make(folder / whose)
            for file in files:
                write_whole(folder / whose / file, (folder / file).read_bytes(), 0o640)
    except OSError as error:
        raise FailedPrecondition(
            f"--bootstrap {folder} cannot be written: {error.strerror}; make it writable for the aggregator"
        ) from None
    return made


def _make(folder: Path) -> None:
    """Its group may read it, whatever the umask. One that is there already stays as somebody has made it."""
    if folder.is_dir():
        return
    folder.mkdir(mode=0o750, parents=True)
    folder.chmod(0o750)


def _good(file: Path, kind: TokenKind, registry: Registry, authorities: Authorities, now: float) -> bool:
    try:
        token = read_token(file, kind)
        return (
            token.pin == pin_of(authorities)
            and registry.knows(token)
            and (registry.token(token.id).state(now) == "valid")
        )
    except EdgeAttentionError:
        return False
