"""Nodes and callers in this process that dial in over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib

from edge_attention.trust.dial import Dial
from edge_attention.trust.tokens import read_token
from edge_node.executor import LocalNode
from edge_node.link import NodeLink
from edge_node.release import Releases
from edge_node.runtime import Runtime
from edge_node.store.store import Store


@contextlib.asynccontextmanager
async def caller(port, token=None):
    made = Dial(f"127.0.0.1:{port}", token=read_token(token, "access") if token else None).caller()
    try:
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def node(port, name):
    """A node, dialled in over real gRPC from this process."""
    link = NodeLink(Dial(f"127.0.0.1:{port}"), name, LocalNode(Store(1 << 20), {}, Releases()), Runtime())
    task = asyncio.create_task(link.run())
    try:
        async with asyncio.timeout(180):
            while not link.registered():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield
    finally:
        link.drain()
        link.drain()
        await task
