"""The HTTP port as it is, over a real socket, in front of a house's parts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass

import aiohttp
from house import House

from aggregator.attention.page import AttentionPage
from aggregator.bounds.budget import Budgets
from aggregator.http.doors import families
from aggregator.http.server import HttpServer, Parts
from aggregator.training.page import TrainingPage


@dataclass
class Reply:
    status: int
    headers: object
    body: bytes

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        return json.loads(self.body)


class Port:
    """A server and a client of it."""

    def __init__(self, house, server, client, base):
        self.house, self.server, self.client, self.base = house, server, client, base
        self.where = ("localhost", int(base.rpartition(":")[2]))
        self.tls = client.connector._ssl if base.startswith("https") else None

    async def get(self, path, method="GET", **options):
        url = self.base + path
        async with self.client.request(method, url, allow_redirects=False, **options) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def post(self, path, **options):
        return await self.get(path, "POST", **options)


async def until(condition):
    """Wait for it, 20 seconds at most."""
    async with asyncio.timeout(180):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def run(
    scenario, *, access=None, tls=None, host="127.0.0.1", offers=(), budgets=None, audit=None, serve=None
):
    """Run `scenario(port)` against a server of its own, which serves what is offered besides."""

    async def whole():
        with House() as house:
            pages = {
                "attention": AttentionPage(house.contexts, house.membership, house.attend_activity),
                "training": TrainingPage(house.runs, house.run_activity),
            }
            budgets_here = budgets or Budgets()
            doors = families(offers, budgets_here, house.state.directory)
            parts = Parts(
                house.metrics, house.membership, pages, "127.0.0.1:50051",
                families=doors, budgets=budgets_here, audit=audit, serve=serve,
            )  # fmt: skip
            server = HttpServer(parts, access)
            port = await server.start(host, 0)
            try:
                scheme = "https" if access is not None else "http"
                connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True)
                async with asyncio.timeout(180), aiohttp.ClientSession(connector=connector) as client:
                    await scenario(Port(house, server, client, f"{scheme}://localhost:{port}"))
            finally:
                with contextlib.suppress(Exception):
                    await server.close()

    asyncio.run(whole())
