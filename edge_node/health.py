"""The standard gRPC health service: the node serves it here, and anybody asks it.

    python -m edge_node.health HOST:PORT [--authority FILE] [--service NAME]

Exit code 0: serving. 1: not, or nobody there; one line says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import click

log = logging.getLogger(__name__)

LINK_SERVICE = "edge_attention.v1.EdgeLinkService"
"""Of a node: whether it is registered with its aggregator. "" is whether its process works."""

LOOK_SECONDS = 0.5


@contextlib.asynccontextmanager
async def serving(port: int | None, registered: Callable[[], bool]) -> AsyncIterator[int | None]:
    """Serve a node's health on loopback while the block runs; None: do not. Gives the port.

    Raises:
        UsageError: the port is taken.
    """
    if port is None:
        yield None
        return
    import grpc.aio
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_health.v1._async import HealthServicer

    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    checker = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    try:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError:
        raise click.UsageError(f"--health-port {port} is taken; choose another") from None
    status = health_pb2.HealthCheckResponse

    async def look() -> None:
        while True:
            await checker.set(LINK_SERVICE, status.SERVING if registered() else status.NOT_SERVING)
            await asyncio.sleep(LOOK_SECONDS)

    await server.start()
    log.info("health on 127.0.0.1:%d", bound)
    await checker.set("", status.SERVING)
    task = asyncio.create_task(look(), name="health")
    try:
        yield bound
    finally:
        task.cancel()
        await server.stop(None)


def check(address: str, service: str = "", authority: Path | None = None, timeout: float = 5.0) -> str | None:
    """None if `service` at `address` is serving, else why not.

    Raises:
        EdgeAttentionError: the authority's file cannot be used.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from edge_attention.trust.authorities import read_authorities
    from edge_attention.trust.dial import Dial
    from edge_attention.wire.errors import from_rpc

    dial = Dial(address, authorities=read_authorities(authority) if authority else None)
    channel = dial.channel()
    try:
        request = health_pb2.HealthCheckRequest(service=service)
        reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
    except grpc.RpcError as error:
        return dial.why_now() or from_rpc(error, address).message
    finally:
        channel.close()
    if reply.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return f"{address} answers {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}"


@click.command()
@click.argument("address", metavar="HOST:PORT")
@click.option("--service", default="", help=f"The service asked about; of a node: {LINK_SERVICE}.")
@click.option(
    "--authority",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The aggregator's authority, PEM, if it serves TLS.",
)
@click.option("--timeout", type=click.FloatRange(0.1, 3600), default=5.0, help="Seconds.")
def main(address: str, service: str, authority: Path | None, timeout: float) -> None:
    """Ask a daemon whether it is well: exit code 0 if it is, 1 if not."""
    from edge_attention.core.errors import EdgeAttentionError
    from edge_attention.core.printable import shown

    if not address.rpartition(":")[2].isdigit() or not address.rpartition(":")[0]:
        raise click.BadParameter(f"{address!r} is not HOST:PORT")
    try:
        why = check(address, service, authority, timeout)
    except EdgeAttentionError as error:
        why = error.message
    if why is not None:
        click.echo(f"not healthy: {shown(why)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
