"""Clients and event loops: a Client may be called from within one, an AsyncClient belongs to one."""

import asyncio
import copy
import pickle
import threading

import pytest

from edge_attention import AsyncClient, Client, FailedPrecondition


def test_a_client_is_called_from_within_a_running_event_loop(client):
    async def cell():
        await asyncio.sleep(0)
        return client.nodes(), await asyncio.to_thread(client.nodes)

    assert [len(nodes) for nodes in asyncio.run(cell())] == [1, 1]


def test_an_asyncio_client_in_another_loop_is_refused_and_can_be_closed_there(address):
    client = AsyncClient(address)
    assert len(asyncio.run(client.nodes())) == 1
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="belongs to the event loop of its first call"):
            asyncio.run(client.nodes())
    asyncio.run(client.close())
    with pytest.raises(FailedPrecondition, match="is closed; make another"):
        asyncio.run(client.nodes())


def test_two_loops_in_two_threads_each_with_a_client_of_its_own(address):
    found = []

    async def work():
        async with AsyncClient(address) as client:
            found.extend([len(await client.nodes()) for _ in range(20)])

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [1] * 60


def test_an_asyncio_client_without_a_loop_says_what_to_use(address):
    client = AsyncClient(address)
    with pytest.raises(FailedPrecondition, match="use a Client"):
        client.nodes().send(None)


def test_what_holds_a_connection_is_not_sent_to_another_process(client):
    made = client.create_context("c", query_heads=4, key_heads=2, key_dim=8, value_dim=6)
    for held in (client, client._client, made, made._context, client.run("r1"), client.run("r1")._run):
        for send in (pickle.dumps, copy.deepcopy):
            with pytest.raises(FailedPrecondition, match="cannot be copied, nor sent to another process"):
                send(held)


def test_a_call_of_a_closed_client_is_refused_by_every_handle(address):
    with Client(address) as client, Client(address):
        context = client.create_context("c", query_heads=4, key_heads=2, key_dim=8, value_dim=6)
        run = client.run("r1")
        rounds = iter(run)
        next(rounds)
        client.close()
        for call in (
            client.nodes,
            context.describe,
            run.describe,
            lambda: next(iter(run)),
            lambda: next(rounds),
        ):
            with pytest.raises(FailedPrecondition, match="is closed; make another"):
                call()
