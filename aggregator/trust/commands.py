"""`edge-aggregator token` and `edge-aggregator certificate`: they work on the state folder, served or not."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.core.tensors import require_name
from edge_attention.failing import json_option

if TYPE_CHECKING:  # imported when needed: `edge-aggregator --help` needs no database and no cryptography
    from aggregator.trust.audit import Audit
    from aggregator.trust.registry import Registry

ROLES = ("node", "viewer", "user", "operator")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
DEFAULT_EXPIRES = {"join": "24h", "access": "90d"}

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class _Opened:
    registry: Registry
    audit: Audit
    pin: str
    folder: Path


def _state_option(function: F) -> F:
    return click.option(
        "--state",
        type=click.Path(file_okay=False, path_type=Path),
        help="The aggregator's state folder.  [default: edge-aggregator's own --state]",
    )(function)


@contextlib.contextmanager
def _opened(state: Path | None) -> Iterator[_Opened]:
    """What is kept in the state folder."""
    from aggregator.trust.audit import Audit
    from aggregator.trust.authority import Authority, folder_of
    from aggregator.trust.operators_certificate import TLS_AUTHORITY
    from aggregator.trust.registry import Registry
    from edge_attention.trust.authorities import Authorities, pin_of
    from edge_attention.trust.certificates import load_pem

    state = state or click.get_current_context().find_object(Path)
    if state is None:
        raise click.UsageError("give the aggregator's state folder: --state DIR, or EDGE_AGGREGATOR_STATE")
    folder = folder_of(state)
    if not folder.is_dir():
        # Not made here: a mistyped folder would print tokens of an authority that no aggregator has.
        raise FailedPrecondition(
            f"{state} is not the state folder of an aggregator with TLS: start edge-aggregator --tls "
            f"--state {state} once, or give the right --state"
        )
    authorities: Authorities = (Authority.open(folder).certificate,)
    with contextlib.suppress(FileNotFoundError):
        authorities = tuple(load_pem((folder / TLS_AUTHORITY).read_bytes(), TLS_AUTHORITY))
    with (
        contextlib.closing(Registry(folder)) as registry,
        contextlib.closing(Audit(folder.parent / "audit.jsonl")) as audit,
    ):
        yield _Opened(registry, audit, pin_of(authorities), folder)


@click.group(epilog="Example: edge-aggregator --state /var/lib/edge-attention token create --role user")
def token() -> None:
    """Make, list and revoke tokens, with which nodes join and clients get access."""


@token.command(
    epilog="Example: edge-aggregator --state /var/lib/edge-attention token create --role node --expires 1h"
)
@click.option("--role", type=click.Choice(ROLES), default="node", help="What it makes of who has it.")
@click.option("--name", help="The only name it is good for; of an access token, whom it stands for.")
@click.option(
    "--join",
    is_flag=True,
    help="A client's certificate (edge-attention enrol) instead of an access token. A node always joins.",
)
@click.option(
    "--uses", type=click.IntRange(1, 1_000_000), help="How often one can join with it.  [default: 1]"
)
@click.option("--unlimited", is_flag=True, help="One can join with it any number of times.")
@click.option(
    "--expires", metavar="SPAN", help="As 30m, 24h, 7d; or never.  [default: 24h to join, 90d for access]"
)
@_state_option
@json_option
def create(
    role: str,
    name: str | None,
    join: bool,
    uses: int | None,
    unlimited: bool,
    expires: str | None,
    state: Path | None,
    as_json: bool,
) -> None:
    """Make a token and print it: it is shown only now."""
    from edge_attention.trust.names import require_role

    kind = "join" if join or role == "node" else "access"
    if uses and unlimited:
        raise click.UsageError("--uses and --unlimited exclude each other")
    if kind == "access" and (uses or unlimited):
        raise click.UsageError("an access token is used until it expires; --uses is for join tokens (--join)")
    if name is not None:
        try:
            require_name(name, "--name")
        except InvalidArgument as error:
            raise click.UsageError(error.message) from None
    now = time.time()
    end = _end(expires or DEFAULT_EXPIRES[kind], now)
    with _opened(state) as opened:
        made = opened.registry.create_token(
            "join" if kind == "join" else "access",
            require_role(role),
            opened.pin,
            now,
            name=name or "",
            uses=None if unlimited or kind == "access" else uses or 1,
            expires=end,
        )
        row = opened.registry.token(made.id)
        opened.audit.write(
            "token_created",
            subject=f"{role}/{name or '*'}",
            token=made.id,
            kind=kind,
            uses=row.uses,
            expires=end,
        )
    if as_json:
        click.echo(json.dumps({"token": made.text, **_described(row, now)}))
        return
    click.echo(made.text)
    click.echo(f"token {made.id}, {_use(row)}; it is not shown again", err=True)


@token.command("list", epilog="Example: edge-aggregator --state /var/lib/edge-attention token list")
@_state_option
@json_option
def list_tokens(state: Path | None, as_json: bool) -> None:
    """List tokens, without their secrets."""
    now = time.time()
    with _opened(state) as opened:
        rows = opened.registry.tokens()
    if as_json:
        click.echo(json.dumps([_described(row, now) for row in rows]))
        return
    _table(
        ("token", "state", "for", "role", "name", "used", "expires"),
        [
            (row.id, row.state(now), row.kind, row.role, row.name or "-", _used(row), _moment(row.expires))
            for row in rows
        ],
        "no tokens; make one with: edge-aggregator token create",
    )


@token.command(epilog="Example: edge-aggregator --state /var/lib/edge-attention token revoke 5f2c81d0")
@click.argument("token_id", metavar="ID")
@_state_option
@json_option
def revoke(token_id: str, state: Path | None, as_json: bool) -> None:
    """Revoke the token ID. Calls with an access token end; certificates had by a join token stay good."""
    with _opened(state) as opened:
        row = opened.registry.revoke_token(token_id, time.time())
        opened.audit.write("token_revoked", subject=f"{row.role}/{row.name or '*'}", token=row.id)
        now_is = opened.registry.token(row.id)
    if as_json:
        click.echo(json.dumps(_described(now_is, time.time())))
        return
    click.echo(f"token {row.id} ({row.role}) is revoked")
    if row.kind == "join" and row.used:
        click.echo(
            "certificates had by it stay good: edge-aggregator certificate list, certificate revoke NAME"
        )


@click.group(epilog="Example: edge-aggregator --state /var/lib/edge-attention certificate revoke clinic-3")
def certificate() -> None:
    """List and revoke the certificates of nodes and clients."""


@certificate.command(
    "list", epilog="Example: edge-aggregator --state /var/lib/edge-attention certificate list"
)
@_state_option
@json_option
def list_certificates(state: Path | None, as_json: bool) -> None:
    """List the newest certificate of each name."""
    now = time.time()
    with _opened(state) as opened:
        rows = opened.registry.certificates()
    if as_json:
        click.echo(json.dumps([_certified(row, now) for row in rows]))
        return
    _table(
        ("name", "role", "state", "ends", "enrolled with"),
        [(row.name, row.role, row.state(now), _moment(row.ends), row.token or "-") for row in rows],
        "no certificates; a node gets one with: edge-node --join-token TOKEN",
    )


@certificate.command(
    "revoke", epilog="Example: edge-aggregator --state /var/lib/edge-attention certificate revoke clinic-3"
)
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), help="Of several with that name, the one in this role.")
@_state_option
@json_option
def revoke_certificate(name: str, role: str | None, state: Path | None, as_json: bool) -> None:
    """Revoke all certificates of NAME: it is shut out within a second, and cannot enrol again by itself."""
    from edge_attention.trust.names import require_role

    now = time.time()
    with _opened(state) as opened:
        rows = opened.registry.revoke_certificates(name, require_role(role) if role else None, now)
        valid = {
            row.id: row
            for row in opened.registry.tokens()
            if row.kind == "join" and row.state(now) == "valid"
        }
        for row in rows:
            opened.audit.write("revoked", subject=row.subject, serial=row.serial)
        gone = {row.serial for row in rows}
        now_are = [row for row in opened.registry.certificates() if row.serial in gone]
    if as_json:
        click.echo(json.dumps([_certified(row, now) for row in now_are]))
        return
    for row in rows:
        click.echo(f"{row.role} {row.name} is revoked")
        if row.token in valid:
            click.echo(
                f"its box may still have join token {row.token}, which is good for other names: "
                f"edge-aggregator token revoke {row.token}"
            )
        click.echo(
            f"to let it in again: edge-aggregator token create --role {row.role} --name {row.name}"
            + ("" if row.role == "node" else " --join")
        )


def _end(text: str, now: float) -> float | None:
    if text == "never":
        return None
    match = _SPAN.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise click.BadParameter(
            f"{text!r} is not a span: 90s, 30m, 24h, 7d, or never", param_hint="--expires"
        )
    return now + float(match[1]) * _SECONDS[match[2]]


def _described(row: Any, now: float) -> dict[str, Any]:
    fields = ("id", "kind", "role", "name", "created", "expires", "uses", "used", "revoked")
    return {field: getattr(row, field) for field in fields} | {"state": row.state(now)}


def _certified(row: Any, now: float) -> dict[str, Any]:
    fields = ("serial", "role", "name", "token", "issued", "ends", "revoked")
    return {field: getattr(row, field) for field in fields} | {"state": row.state(now)}


def _use(row: Any) -> str:
    if row.kind == "access":
        what = f"gives access as {row.role}"
    else:
        times = (
            "any number of times" if row.uses is None else "once" if row.uses == 1 else f"{row.uses} times"
        )
        what = f"joins as {row.role}{f' {row.name}' if row.name else ''}, {times}"
    return f"{what}, until {_moment(row.expires)}" if row.expires is not None else f"{what}, without end"


def _used(row: Any) -> str:
    if row.kind == "access":
        return "-"
    return f"{row.used} of {row.uses}" if row.uses is not None else str(row.used)


def _moment(seconds: float | None) -> str:
    from edge_attention.trust.certificates import moment

    return "never" if seconds is None else moment(seconds)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    if not rows:
        click.echo(empty)
        return
    widths = [max(len(str(row[i])) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        click.echo(
            "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
