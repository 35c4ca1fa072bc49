"""`edge-node`: the command line of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import click

from edge_attention.core.errors import EdgeAttentionError, InvalidArgument
from edge_attention.options import ADDRESS, BYTES, LOG_LEVELS, Daemon, name_sources, read_secret, set_up
from edge_node.options import REPLICA, JoinOptions, join_options

log = logging.getLogger(__name__)

_EPILOG = """
A clinic whose rows never leave, but whose attention results and hashed ids may:

\b
  edge-node --aggregator aggregator.example:50051 --name clinic-1 \\
      --data patients=/data/patients.csv \\
      --allow-release attention --allow-release alignment

Every option is also an environment variable: --memory-limit is EDGE_NODE_MEMORY_LIMIT; options that may
be repeated take several values there, separated by spaces. The first SIGTERM finishes the tasks under
way, the second leaves at once.
"""


@click.command(
    cls=Daemon,
    context_settings={"auto_envvar_prefix": "EDGE_NODE", "show_default": True, "max_content_width": 110},
    epilog=_EPILOG,
)
@click.option("--aggregator", type=ADDRESS, default="127.0.0.1:50051", help="Where the aggregator listens.")
@click.option("--name", help="What the aggregator calls this node; no two may share it.  [default: hostname]")
@click.option(
    "--replica",
    type=click.IntRange(0),
    help="This node's number among others of the same settings: it replaces "
    f"{REPLICA} in --name, --store, --identity and --data.  [default: that in the container's name]",
)
@click.option(
    "--data",
    multiple=True,
    metavar="NAME=FILE",
    help="A dataset to work on: .npz, .csv or .parquet. Its rows stay here. Ids are in the column `id`, or "
    "FILE?id=COLUMN. More to say of a file: docs/data.md. Repeatable.",
)
@click.option(
    "--check-data",
    is_flag=True,
    help="Print what this node would make of each --data, and leave. No value is printed.",
)
@click.option(
    "--allow-release",
    multiple=True,
    metavar="WHAT",
    help="What computed from private data may leave: `job:` and a fingerprint, all that a job needs, as "
    "`edge-attention train --plan` prints it; a release's digest, one of that; `attention`: results of "
    "attention, @GRAPH: over what this encoder made; `alignment`: keyed hashes of ids; "
    "GRAPH[:OUTPUT,...]@DATASET/COLUMN[,...]: what a graph makes of columns. GRAPH: its "
    "SHA-256 or .onnx file. Repeatable.",
)
@click.option(
    "--allow-own-data",
    is_flag=True,
    help="For development on one machine: whatever a program brings a release of may leave, of all --data. "
    "Refused unless the aggregator is at a loopback address.",
)
@click.option(
    "--id-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a secret the nodes share, mixed into the hashes of ids: the aggregator cannot guess ids.",
)
@click.option(
    "--private-failures",
    type=click.IntRange(0),
    default=100,
    help="Tasks a day that may fail for each caller on private data with graphs that are not released, ten "
    "times as many for all: each failure tells a little. 0: none runs.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads a graph runs on.  [default: cores]")
@click.option(
    "--memory-limit",
    type=BYTES,
    help="Bytes stored here at most, as 2GB; with --data half of it for what graphs make of private data.  "
    "[default: half of RAM, or of its control group's limit]",
)
@click.option("--provider", default="auto", help="Execution provider: auto, cpu, cuda, tensorrt, openvino...")
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder in which contexts survive a restart. Without it they end with the process.",
)
@click.option(
    "--allow-graph",
    multiple=True,
    metavar="DIGEST",
    help="A graph to run again though it has ended the process it ran in twice. Repeatable.",
)
@click.option(
    "--no-cell",
    is_flag=True,
    help="Run graphs of others in this process, not in one of their own that is shut in: such a graph can "
    "end the node, take its memory and read what it can.",
)
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Serve Prometheus metrics there; 0: any.")
@click.option("--metrics-host", default="127.0.0.1", help="Address of the metrics port: loopback.")
@click.option(
    "--health-port",
    type=click.IntRange(0, 65535),
    help="Serve the gRPC health service on 127.0.0.1 there; 0: any.",
)
@join_options
@click.option("--log-level", default="info", type=click.Choice(LOG_LEVELS))
@click.version_option(package_name="edge-attention")
def main(
    aggregator: tuple[str, int],
    name: str | None,
    replica: int | None,
    data: tuple[str, ...],
    check_data: bool,
    allow_release: tuple[str, ...],
    allow_own_data: bool,
    id_key: Path | None,
    private_failures: int,
    threads: int | None,
    memory_limit: int | None,
    provider: str,
    store: Path | None,
    allow_graph: tuple[str, ...],
    no_cell: bool,
    metrics_port: int | None,
    metrics_host: str,
    health_port: int | None,
    join: JoinOptions,
    log_level: str,
) -> None:
    """Run an edge node: keep data and contexts on this machine, and compute on them for an aggregator.

    The node dials out and needs no open port. It runs ONNX graphs the aggregator sends; what is computed
    from its datasets leaves only if --allow-release says so.
    """
    set_up(log_level)
    from edge_attention.descriptors import raise_descriptors, require_threads

    try:
        require_threads()
    except EdgeAttentionError as error:
        click.echo(f"edge-node: {error}", err=True)
        sys.exit(2)
    suggested = ""
    if any(REPLICA in str(text) for text in (name, store, join.identity, *data)):
        from edge_node.replica import Replica  # which a node that is one of a kind spares

        try:
            found = Replica(replica, name, store, data, join)
        except EdgeAttentionError as error:
            click.echo(f"edge-node: {error}", err=True)
            sys.exit(2)
        name, suggested, store, data, join = found.name, found.suggested, found.store, found.data, found.join
    if check_data:
        sys.exit(_check_data(data))
    from edge_attention import loop  # these after --help and --version
    from edge_attention.box import usable_memory
    from edge_attention.core.addresses import is_loopback
    from edge_attention.core.tensors import require_name
    from edge_attention.trust.dial import Dial
    from edge_node import executor, failures, link, release, runtime
    from edge_node.cell.refused_graphs import RefusedGraphs
    from edge_node.data import datasets
    from edge_node.health import serving
    from edge_node.log_place import log_place
    from edge_node.metrics_port import serve
    from edge_node.store import store as stores
    from edge_node.store.sequence_files import Files

    raise_descriptors()
    limit = memory_limit or usable_memory() // 2
    try:
        secret = read_secret(id_key, "--id-key")
        if allow_own_data:
            if not is_loopback(aggregator[0]):
                raise InvalidArgument(
                    f"--allow-own-data lets leave whatever a program asks for, and the aggregator is at "
                    f"{aggregator[0]}, not on this machine: use --allow-release, whose value `edge-attention "
                    "train JOB --plan` prints"
                )
            log.warning(
                "--allow-own-data: whatever a program of anybody who reaches the aggregator computes from "
                "this node's data may leave it; for development alone"
            )
        sets = [datasets.read(spec) for spec in data]
        if len({dataset.name for dataset in sets}) < len(sets):
            raise InvalidArgument("two --data have one name; give each its own")
        if sets:
            from edge_node.data.digests import digest_key

            if key := digest_key(store, secret):
                for dataset in sets:
                    dataset.tell_changes(key)
        apart = limit // 2 if sets else 0
        held = stores.Store(limit - apart, Files(store) if store else None, apart)
        refused = None if no_cell else RefusedGraphs(store, allow_graph)
        engine = runtime.Runtime(provider, threads or len(os.sched_getaffinity(0)), limit, refused)
        engine.limit_arena()
        if engine.cells is None:
            log.warning(
                "graphs of others run in this process: one can end the node, take its memory and read "
                "what it can (%s)",
                "--no-cell" if no_cell else "this system lacks what a process of their own needs",
            )
        node = executor.LocalNode(
            held,
            {dataset.name: dataset for dataset in sets},
            release.Releases(allow_release, allow_own_data),
            secret,
            failures.Failures(private_failures, store / "private-failures" if store else None),
            log_place=log_place(),
        )
        address = f"{aggregator[0]}:{aggregator[1]}"
        if join.plain(store):
            called = name or suggested or socket.gethostname()
            dial, name = Dial(address), require_name(called, "--name")
        else:
            from edge_node.identity import node_dial  # knows certificates, which takes 10 MB

            dial, name = node_dial(join, address, name, store, suggested)
        daemon = link.NodeLink(dial, name, node, engine)
        if metrics_port is not None:
            log.info("metrics on %s", serve(daemon.metrics.registry, metrics_host, metrics_port))
    except (EdgeAttentionError, OSError) as error:
        click.echo(f"edge-node: {error}", err=True)
        sys.exit(2)

    async def run() -> tuple[int, str]:
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, daemon.drain)
        gc.freeze()  # what is loaded stays: looking at all of it again holds the loop for some milliseconds
        with contextlib.suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).malloc_trim(0)  # what loading let go is the system's again
        async with serving(health_port, daemon.registered):
            return await daemon.run()

    code, text = loop.run(run())
    engine.close()
    node.failures.close()
    if code == 0:
        try:
            node.store.close()
        except (EdgeAttentionError, OSError) as error:
            log.warning("what is stored is verified at the next start: %s", error)
    if text:
        click.echo(f"edge-node: {text}", err=True)
    log.info("left")
    logging.shutdown()
    sys.stderr.flush()
    # A graph that does not end must not keep the process from ending.
    os._exit(code)


def _check_data(data: tuple[str, ...]) -> int:
    """Prints what each file becomes; the exit code: 2 where the node would not start."""
    from edge_attention.core.printable import shown
    from edge_attention.tables.check import check_file, lines_of

    refused = not data
    for spec in data:
        name, _, file = spec.partition("=")
        check, _ = check_file(file)
        refused = refused or bool(check.refused)
        click.echo("\n".join(map(shown, (f"{name}:", *lines_of(check)))))
    if not data:
        click.echo("edge-node: --check-data looks at --data, and there is none", err=True)
    return 2 if refused else 0


name_sources(main)
