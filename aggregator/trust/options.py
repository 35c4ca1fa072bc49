"""The options of `edge-aggregator` about trust, and what they mean together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from edge_attention.core.errors import InvalidArgument

F = TypeVar("F", bound=Callable[..., Any])

DAYS = 7.0
"""The life of a certificate, unless the options say otherwise."""

_FILE = click.Path(dir_okay=False, path_type=Path)
"""That it is not there is for its reader to say: to click that is every file in a folder that is closed."""


def _not_on_the_command_line(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is not None and ctx.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE:
        raise click.BadParameter(
            "other users of this machine can read a command line: set EDGE_AGGREGATOR_TLS_KEY_PASSPHRASE, "
            "or give --tls-key-passphrase-file FILE",
            ctx,
            option,
        )
    return value


_OPTIONS = (
    click.option(
        "--tls",
        is_flag=True,
        help="Serve with TLS, and let in only nodes and clients with a certificate or a token. Needs "
        "--state. Required beyond loopback.",
    ),
    click.option(
        "--tls-name",
        multiple=True,
        metavar="NAME",
        help="A further DNS name or address of the server certificate, for browsers and Prometheus. Nodes "
        "and clients need none. Repeatable.",
    ),
    click.option(
        "--certificate-days",
        type=click.FloatRange(0, 3650, min_open=True),
        help="Life of the certificates issued; they are renewed at two thirds of it.  [default: 7]",
    ),
    click.option(
        "--certificate-seconds",
        type=click.FloatRange(1, 315_360_000),
        help="The same in seconds, for trying rotation out; overrides --certificate-days.",
    ),
    click.option(
        "--tls-certificate", type=_FILE, help="The operator's own server certificate and chain, PEM."
    ),
    click.option("--tls-key", type=_FILE, help="Its key, PEM or DER."),
    click.option(
        "--tls-key-passphrase-file",
        type=_FILE,
        help="File with the passphrase of an encrypted key. It is never asked for.",
    ),
    click.option(
        "--tls-key-passphrase",
        metavar="TEXT",
        callback=_not_on_the_command_line,
        help="The same, in the environment only: EDGE_AGGREGATOR_TLS_KEY_PASSPHRASE.",
    ),
    click.option(
        "--tls-authority",
        type=_FILE,
        help="The root it ends in, PEM, unless the chain has it; while a root is replaced, both.",
    ),
    click.option(
        "--bootstrap",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder to write authority.pem, join-token, viewer-token and operator-token into, where they "
        "are missing: for a fleet started as one. Whoever reads it can join and operate.",
    ),
)


def trust_options(function: F) -> F:
    """Adds the options; the command is called with `trust`, a mapping of them, instead."""
    names = ("tls", "tls_name", "certificate_days", "certificate_seconds", "tls_certificate", "tls_key",
             "tls_key_passphrase_file", "tls_key_passphrase", "tls_authority", "bootstrap")  # fmt: skip

    def wrapped(*args: Any, **values: Any) -> Any:
        return function(*args, trust={name: values.pop(name) for name in names}, **values)

    wrapped.__name__, wrapped.__doc__ = function.__name__, function.__doc__
    wrapped.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


def check_options(trust: Mapping[str, Any], state: Path | None) -> None:
    """Refuse what does not fit together.

    Raises:
        InvalidArgument: and what to give instead.
    """
    if not trust["tls"]:
        given = [
            "--" + name.replace("_", "-")
            for name in (
                "tls_name",
                "certificate_days",
                "certificate_seconds",
                "tls_certificate",
                "tls_key",
                "tls_key_passphrase_file",
                "tls_key_passphrase",
                "tls_authority",
                "bootstrap",
            )
            if trust[name] not in (None, (), False)
        ]
        if given:
            raise InvalidArgument(f"{', '.join(given)} without --tls: give --tls too")
        return
    if state is None:
        raise InvalidArgument("--tls needs --state DIR: the authority and what it issued are kept there")
    if (trust["tls_certificate"] is None) != (trust["tls_key"] is None):
        raise InvalidArgument("--tls-certificate and --tls-key go together: give both or neither")
    if trust["tls_authority"] is not None and trust["tls_certificate"] is None:
        raise InvalidArgument("--tls-authority is of the operator's own --tls-certificate: give that too")
    if trust["tls_key_passphrase_file"] is not None and trust["tls_key_passphrase"] is not None:
        raise InvalidArgument(
            "--tls-key-passphrase-file and EDGE_AGGREGATOR_TLS_KEY_PASSPHRASE are two passphrases: give one"
        )
    if trust["tls_key"] is None and (trust["tls_key_passphrase_file"] or trust["tls_key_passphrase"]):
        raise InvalidArgument("a passphrase is of the operator's own --tls-key: give that too")
    if trust["tls_certificate"] is not None and trust["tls_name"]:
        raise InvalidArgument(
            "--tls-name is for the certificate made here; --tls-certificate has its own names"
        )
    for name in trust["tls_name"]:
        if not re.fullmatch(r"[A-Za-z0-9_.:*\[\]-]{1,253}", name):
            raise InvalidArgument(f"--tls-name {name[:80]!r} is neither a DNS name nor an address")


def life(trust: Mapping[str, Any]) -> timedelta:
    if trust["certificate_seconds"] is not None:
        return timedelta(seconds=trust["certificate_seconds"])
    return timedelta(days=DAYS if trust["certificate_days"] is None else trust["certificate_days"])


def log_grpc(trust: Mapping[str, Any]) -> Any:
    """Take over descriptor 2 to read gRPC's log, with --tls only; before gRPC is imported."""
    if not trust["tls"]:
        return None
    from aggregator.trust import grpc_log

    return grpc_log.GrpcLog(quiet=grpc_log.prepare(os.environ))


def operators_files(trust: Mapping[str, Any]) -> Any:
    """The operator's own files (`OperatorsFiles`), None without any; loads what reads certificates."""
    if trust["tls_certificate"] is None:
        return None
    from aggregator.trust.operators_certificate import OperatorsFiles
    from aggregator.trust.operators_files import Passphrase

    passphrase = Passphrase(trust["tls_key_passphrase"], trust["tls_key_passphrase_file"])
    return OperatorsFiles(trust["tls_certificate"], trust["tls_key"], trust["tls_authority"], passphrase)
