"""`edge-aggregator`: the command line of the service in the middle."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from aggregator.trust.backup_commands import backup, restore
from aggregator.trust.commands import certificate, token
from aggregator.trust.options import check_options, life, log_grpc, operators_files, trust_options
from edge_attention import loop
from edge_attention.core.errors import EdgeAttentionError, FailedPrecondition
from edge_attention.descriptors import require_threads
from edge_attention.failing import ProgramGroup
from edge_attention.options import ADDRESS, BYTES, name_sources, set_up


@click.group(
    "edge-aggregator",
    cls=ProgramGroup,
    invoke_without_command=True,
    context_settings={"auto_envvar_prefix": "EDGE_AGGREGATOR", "show_default": True},
    epilog="\b\nExamples:\n"
    "  edge-aggregator --state state --metrics-port 9464\n"
    "  edge-aggregator --listen 0.0.0.0:50051 --tls --state /var/lib/edge-attention\n\n"
    "Every option is also an environment variable: --metrics-port is EDGE_AGGREGATOR_METRICS_PORT; of "
    "a command, its name comes before: --role of token create is EDGE_AGGREGATOR_TOKEN_CREATE_ROLE.",
)
@click.option(
    "--listen",
    type=ADDRESS,
    default="127.0.0.1:50051",
    metavar="HOST:PORT",
    help="Where nodes and clients connect. Port 0: one that is free, printed.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for what must survive a restart: contexts, runs, parameters. Without it they end with "
    "the process.",
)
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Serve metrics and a page there; 0: any.")
@click.option("--metrics-host", default="127.0.0.1", help="Address of the metrics port; with --tls any.")
@click.option(
    "--lease",
    type=click.FloatRange(0.5, 3600),
    default=10.0,
    help="Seconds a node may be silent before it counts as lost; in a fleet of over 450 nodes longer.",
)
@click.option(
    "--patience",
    type=click.FloatRange(1, 86400),
    default=600.0,
    help="Seconds a training run waits for a node that is away, unless its job says otherwise.",
)
@click.option(
    "--plan-anew",
    type=click.FloatRange(0, 86400),
    default=30.0,
    help="Seconds after which a deployed model is planned anew without a node that is gone, and after twice "
    "as many with one that has come; 0: never.",
)
@click.option(
    "--largest-message",
    type=click.IntRange(8, 2048),
    default=256,
    show_default=True,
    metavar="MIB",
    help="Of gRPC, which has one limit for all: requests and answers of the Open Inference Protocol may be "
    "as large, others have 4 MiB at most. A large one holds up everybody while it comes.",
)
@click.option(
    "--keep-runs",
    type=click.IntRange(0),
    default=0,
    metavar="COUNT",
    help="Runs that have ended which are kept; beyond that the oldest are deleted. 0: all. What goes on, and "
    "what was deployed, stays in any case.",
)
@click.option(
    "--keep-run-days",
    type=click.FloatRange(0, 36500),
    default=0.0,
    metavar="DAYS",
    help="Days after its last commit for which a run that has ended is kept; 0: for ever.",
)
@click.option(
    "--keep-run-bytes",
    type=BYTES,
    metavar="SIZE",
    help="Bytes that runs that have ended may take, as 50GB; beyond that the oldest are deleted.  "
    "[default: any]",
)
@click.option(
    "--keep-blob-days",
    type=click.FloatRange(0.1, 36500),
    default=30.0,
    metavar="DAYS",
    help="Days for which a file that clients sent is kept after its last use, if no run names it.",
)
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]))
@trust_options
@click.version_option(package_name="edge-attention")
@click.pass_context
def main(
    ctx: click.Context,
    listen: tuple[str, int],
    state: Path | None,
    metrics_port: int | None,
    metrics_host: str,
    lease: float,
    patience: float,
    plan_anew: float,
    largest_message: int,
    keep_runs: int,
    keep_run_days: float,
    keep_run_bytes: int | None,
    keep_blob_days: float,
    log_level: str,
    trust: Mapping[str, Any],
) -> None:
    """Run the aggregator: edge nodes dial in here, clients call here.

    It fuses the nodes' partial results exactly, trains, and keeps the committed parameters in --state.
    It stops on SIGTERM or Ctrl-C; nodes keep what they store and come back by themselves.

    Without a command it serves. The commands work on --state, whether it is being served or not.
    """
    if ctx.invoked_subcommand is not None:
        ctx.obj = state
        return
    if not (math.isfinite(lease) and math.isfinite(patience) and math.isfinite(plan_anew)):
        raise click.BadParameter("--lease, --patience and --plan-anew are numbers of seconds")
    if not (math.isfinite(keep_run_days) and math.isfinite(keep_blob_days)):
        raise click.BadParameter("--keep-run-days and --keep-blob-days are numbers of days")
    try:
        check_options(trust, state)
    except EdgeAttentionError as error:
        print(f"edge-aggregator: {error.message}", file=sys.stderr)
        sys.exit(2)
    require_threads()
    grpc_log = log_grpc(trust)
    set_up(log_level)
    try:
        from aggregator.recipes import RECIPES
        from aggregator.server import ServerSettings, serve
        from aggregator.store.retention import DAY, Retention
        from aggregator.trust.trust import TrustSettings
        from edge_attention.wire.open_inference import LARGEST_MESSAGE
    except ModuleNotFoundError as error:
        print(
            f"edge-aggregator: {error.name} is not installed; pip install 'edge-attention[aggregator]'",
            file=sys.stderr,
        )
        sys.exit(1)
    trusted = None
    if trust["tls"]:
        operators = operators_files(trust)
        trusted = TrustSettings(trust["tls_name"], life(trust), operators, trust["bootstrap"], grpc_log)
    largest = min(largest_message << 20, LARGEST_MESSAGE)
    retention = Retention(keep_runs, keep_run_days * DAY, keep_run_bytes or 0, keep_blob_days * DAY)
    settings = ServerSettings(
        *listen, state, metrics_host, metrics_port, lease, patience, trusted, plan_anew, largest, retention
    )
    try:
        loop.run(serve(settings, RECIPES))
    except OSError as error:  # of the state folder, at the start: what serves answers for its own
        from aggregator.store.folder import remedy

        where = Path(os.fsdecode(error.filename)) if error.filename else state or Path(tempfile.gettempdir())
        raise FailedPrecondition(
            f"{where} cannot be used: {error.strerror or error}; {remedy(where, error)}"
        ) from error


name_sources(main)
main.add_command(token)
main.add_command(certificate)
main.add_command(backup)
main.add_command(restore)

if __name__ == "__main__":
    main()
