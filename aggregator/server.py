"""Puts the aggregator together: one event loop, one gRPC server, one metrics port."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from aggregator.api.service import Api
from aggregator.bounds.budget import Budgets
from aggregator.bounds.capacity import Health, server_options
from aggregator.bounds.sockets import watch_connections
from aggregator.bounds.turns import Turns
from aggregator.engine.bulk import Bulk
from aggregator.engine.counted import answer_room, counted
from aggregator.engine.dispatch import Dispatcher
from aggregator.engine.link import FleetLink, watch_leases
from aggregator.engine.recipe import Engine, Recipe
from aggregator.engine.trip import Trips
from aggregator.fleet.membership import Membership
from aggregator.observe.metrics import Metrics
from aggregator.serving.rpc import service_handlers
from aggregator.store.retention import Retention
from aggregator.store.state import State
from aggregator.trust.actions import audited
from aggregator.trust.audit import Audit
from aggregator.trust.guard import subject
from aggregator.trust.policy import roles_of
from aggregator.trust.reflection import offer_reflection
from aggregator.trust.revocations import Revocations, RevokedNodes
from edge_attention.core.addresses import require_loopback
from edge_attention.core.errors import EdgeAttentionError, Internal, InvalidArgument
from edge_attention.descriptors import raise_descriptors
from edge_attention.wire.open_inference import LARGEST_MESSAGE

# What an aggregator without TLS, or without an HTTP port, does not load: 20 MB of memory.
if TYPE_CHECKING:
    from aggregator.http.guard import PageAccess
    from aggregator.http.server import HttpServer, Parts
    from aggregator.trust.trust import TrustSettings

log = logging.getLogger(__name__)

GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class ServerSettings:
    """What the command line says. Times in seconds."""

    host: str
    port: int
    state: Path | None
    metrics_host: str
    metrics_port: int | None
    lease: float
    patience: float
    trust: TrustSettings | None = None  # None: without TLS, on loopback only
    plan_anew: float = 30.0
    largest_message: int = LARGEST_MESSAGE  # bytes, of gRPC
    retention: Retention = field(default_factory=Retention)


async def serve(settings: ServerSettings, recipes: Sequence[Callable[[Engine], Recipe]]) -> None:
    """Run the aggregator until SIGTERM or SIGINT."""
    raise_descriptors()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(settings, recipes) as port:
        # Scripts and `edge-attention up` wait for this line.
        print(f"listening on {settings.host}:{port}", flush=True)
        gc.freeze()  # what is loaded stays: looking at all of it again holds the loop for 7 ms
        await stop.wait()
        log.info("stopping")


def recipes_of(engine: Engine, makers: Sequence[Callable[[Engine], Recipe]]) -> list[Recipe]:
    """The recipes, made.

    Raises:
        Internal: two have one name.
    """
    made = [make(engine) for make in makers]
    names = [recipe.name for recipe in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise Internal(f"two recipes are called {twice[0]!r}; name one otherwise")
    return made


@contextlib.asynccontextmanager
async def running(
    settings: ServerSettings, recipes: Sequence[Callable[[Engine], Recipe]] | None = None
) -> AsyncIterator[int]:
    """The aggregator, serving while the block runs. Gives the port. `recipes`: None: all there are."""
    if recipes is None:
        from aggregator.recipes import RECIPES  # not loaded by a simulation, which has its own

        recipes = RECIPES
    audit = Audit(settings.state / "audit.jsonl" if settings.state is not None else None)
    try:
        if settings.trust is None:
            require_loopback(settings.host)
            if settings.metrics_port is not None:
                require_loopback(settings.metrics_host)
    except EdgeAttentionError as error:
        if settings.state is not None:
            settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            audit.write("refused", outcome="refused", subject="aggregator", reason=error.message)
        raise
    metrics = Metrics()
    with State(settings.state) as state, contextlib.closing(audit), contextlib.ExitStack() as stack:
        trust = None
        revoked: RevokedNodes = dict
        if settings.trust is not None:
            from aggregator.trust.trust import Trust

            trust = Trust(settings.trust, state.directory, settings.host, metrics, audit)
            stack.callback(trust.close)
            revoked = Revocations(trust.registry).of_nodes
        membership = Membership(settings.lease, lambda: secrets.token_urlsafe(16))
        dispatcher = Dispatcher(membership, metrics.tasks)
        bulk = Bulk(state)
        trips = Trips(dispatcher, bulk)
        budgets, turns = Budgets(metrics.bound_refused), Turns(metrics.bound_refused)
        metrics.watch_bounds(budgets, turns)
        metrics.watch_disk(state.directory)
        http: HttpServer | None = None
        made: list[Recipe] = []
        link = FleetLink(
            membership,
            dispatcher,
            bulk,
            metrics,
            welcome=lambda member: tuple(
                name for recipe in made if recipe.unneeded is not None for name in recipe.unneeded(member)
            ),
            require_name=trust.guard.require_name if trust is not None else None,
            audit=audit,
        )
        metrics.now.watch(membership.members, link.queues)
        engine = Engine(
            state, membership, trips, bulk, link, metrics, budgets, turns,
            settings.patience, settings.plan_anew, lambda: http.port if http is not None else 0,
            settings.retention,
        )  # fmt: skip
        made += recipes_of(engine, recipes)
        api = Api(membership, bulk, revoked, budgets, turns, made)
        served = (*link.endpoints(), *api.endpoints())
        endpoints = [*served, *(endpoint for recipe in made for endpoint in recipe.endpoints)]
        roles = roles_of(endpoints)
        handlers = counted(audited(endpoints, audit), budgets)
        if trust is not None:
            trust.guard.require_roles(roles)
            handlers |= trust.handlers()

        server = grpc.aio.server(options=server_options(settings.largest_message))
        guard = trust.guard if trust is not None else None
        generic = service_handlers(handlers, guard, metrics, subject, answer_room(budgets))
        server.add_generic_rpc_handlers(tuple(generic))
        checker = Health()
        health_pb2_grpc.add_HealthServicer_to_server(checker, server)
        names = sorted({method.service.name for method in handlers})
        offer_reflection(server, [*names, health.SERVICE_NAME], trust.guard if trust else None)
        host = settings.host.strip("[]")
        address = f"[{host}]" if ":" in host else host
        try:
            where = f"{address}:{settings.port}"
            if trust is not None:
                port = server.add_secure_port(where, trust.credentials())
            else:
                port = server.add_insecure_port(where)
        except RuntimeError:
            raise InvalidArgument(
                f"cannot listen on {settings.host}:{settings.port}: the port is taken or the address is not "
                "of this machine; choose another --listen"
            ) from None
        for recipe in made:
            if recipe.recall is not None:
                await asyncio.to_thread(recipe.recall)
        if settings.metrics_port is not None:
            from aggregator.http.doors import families
            from aggregator.http.server import Parts

            pages = {recipe.name: recipe.page for recipe in made if recipe.page is not None}
            scripts = {recipe.name: recipe.script for recipe in made if recipe.script is not None}
            offers = [one for recipe in made for one in recipe.offers]
            parts = Parts(
                metrics, membership, pages, f"{address}:{port}", revoked, scripts,
                families(offers, budgets, state.directory), budgets, audit,
                guard.serving if guard is not None else None,
            )  # fmt: skip
            access = trust.access if trust is not None else None
            http = await _serve_http(settings.metrics_host, settings.metrics_port, parts, access)
        await server.start()
        watching = [
            asyncio.create_task(watch_leases(membership, dispatcher, link, metrics), name="leases"),
            asyncio.create_task(watch_connections(port, metrics.grpc_connections.set), name="connections"),
            *([asyncio.create_task(trust.watch(), name="trust")] if trust is not None else []),
        ]
        for name in ("", *names):
            await checker.set(name, health_pb2.HealthCheckResponse.SERVING)
        for recipe in made:
            if recipe.resume is not None:
                recipe.resume()
        if http is not None:
            http.serving()
        try:
            yield port
        finally:
            if http is not None:
                http.draining()
            await checker.enter_graceful_shutdown()
            for recipe in made:
                if recipe.close is not None:
                    await recipe.close()
            link.close()
            await server.stop(GRACE_SECONDS)
            for task in watching:
                task.cancel()
            if http is not None:
                await http.close()


async def _serve_http(host: str, port: int, parts: Parts, access: PageAccess | None) -> HttpServer:
    from aggregator.http.server import HttpServer, page_url

    http = HttpServer(parts, access)
    port = await http.start(host, port)
    # Scripts and tests wait for this line.
    print(f"metrics on {host}:{port}", flush=True)
    print(f"page at {page_url(host, port, tls=access is not None)}", flush=True)
    return http
