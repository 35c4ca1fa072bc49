"""What becomes of clients that nobody closes: they end quietly, whoever collects them, and soon."""

import gc
import threading
import time
import weakref

import grpc.aio
import numpy as np
import pytest
from programs import run

from edge_attention import Client, FailedPrecondition, Unavailable
from edge_attention.client import background
from edge_attention.client.background import BACKGROUND

FLAGS = ("-X", "dev", "-W", "error::ResourceWarning")
BEGIN = """
import asyncio, gc, sys, threading, time
from edge_attention import AsyncClient, Client
address = sys.argv[1]
SIZES = dict(query_heads=4, key_heads=2, key_dim=8, value_dim=6)
"""
PROGRAMS = {
    "open": "client = Client(address); client.nodes()",
    "never called": "client = Client(address)",
    "in a thread": """
def work():
    global client
    client = Client(address)
    client.nodes()
thread = threading.Thread(target=work); thread.start(); thread.join()
""",
    "a daemon thread in a call": """
client = Client(address)
def work():
    while True:
        client.nodes()
threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
""",
    "a run half read": """
client = Client(address)
rounds = iter(client.run("r1"))
next(rounds)
""",
    "in a cycle": """
for _ in range(20):
    client = Client(address)
    client.nodes()
    client.itself = client
    del client
gc.collect()
""",
    "in a cycle, and nobody is there": """
def left():
    try:
        client = Client("127.0.0.1:1")
        client.itself = client
        client.nodes()
    except Exception:
        pass
for _ in range(20):
    left()
gc.collect()
""",
    "asyncio, open": """
async def main():
    global client
    client = AsyncClient(address)
    await client.nodes()
asyncio.run(main())
""",
    "asyncio, in the middle": """
async def main():
    client = AsyncClient(address)
    async for event in (await client.run("r1")).events():
        break
asyncio.run(main())
""",
    "asyncio, its loop left": """
loop = asyncio.new_event_loop()
client = AsyncClient(address)
loop.run_until_complete(client.nodes())
client = None
gc.collect()
loop.close()
""",
    "both at once": """
client = Client(address)
async def main():
    other = AsyncClient(address)
    thread = threading.Thread(target=lambda: [client.nodes() for _ in range(50)])
    thread.start()
    for _ in range(50):
        await other.nodes()
    while thread.is_alive():
        await asyncio.sleep(0.01)
asyncio.run(main(), debug=False)
""",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_leaves_it_open_ends_quietly(address, program):
    ended = run(BEGIN + PROGRAMS[program] + "\nprint('the end')", address, flags=FLAGS)
    # Asyncio's debug mode tells of slow steps, on a busy machine.
    complaints = [line for line in ended.complaints if not line.startswith("Executing <")]
    assert (ended.code, ended.lines, complaints) == (0, ["the end"], [])


def test_an_exception_is_all_that_is_said_of_a_program_that_ends_by_one(address):
    ended = run(
        BEGIN + "client = Client(address)\nclient.nodes()\nraise ValueError('mine')", address, flags=FLAGS
    )
    assert ended.code == 1
    assert ended.complaints[-1] == "ValueError: mine"
    assert ended.err.count("Traceback") == 1
    assert "Exception ignored" not in ended.err


def test_calls_that_another_loop_has_left_are_no_matter_of_this_one(address):
    """gRPC's queue is of the whole process: who comes next finds how they ended."""
    ended = run(
        BEGIN
        + """
import grpc.aio
client = Client(address)
client.nodes()

async def begin():
    channel = grpc.aio.insecure_channel(address)
    await channel.channel_ready()
    call = channel.unary_unary("/a/b")(b"")
    await asyncio.sleep(0)
    return channel, call

loop = asyncio.new_event_loop()
kept = loop.run_until_complete(begin())
loop.close()
for _ in range(20):
    client.nodes()
    time.sleep(0.01)

def mine():
    raise RuntimeError("mine")

from edge_attention.client.background import BACKGROUND
BACKGROUND._loop.call_soon_threadsafe(mine)
client.nodes()
""",
        address,
    )
    assert ended.code == 0
    assert "RuntimeError: mine" in ended.complaints, "what is not gRPC's is told"
    assert "Event loop is closed" not in ended.err


def test_an_error_that_is_kept_keeps_no_call():
    gc.collect()
    gc.disable()
    try:
        with Client("127.0.0.1:1", patience=0.0) as client, pytest.raises(Unavailable) as caught:
            client.nodes()
        calls = [thing for thing in gc.get_objects() if isinstance(thing, grpc.aio.Call)]
        assert calls == []
        assert "127.0.0.1:1" in str(caught.value)
    finally:
        gc.enable()


def test_a_call_that_failed_is_gone_with_its_error():
    """gRPC goes on dialling while a call is there, whether its channel is closed or not."""
    gc.disable()
    try:
        with Client("127.0.0.1:1") as client:
            for _ in range(3):
                with pytest.raises(Unavailable) as caught:
                    client.nodes()
                error = weakref.ref(caught.value)
                del caught
                assert error() is None, "in a cycle"
    finally:
        gc.enable()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "edge-attention-client"]


def until(true, seconds=120.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_clients_in_cycles_are_closed_when_they_are_collected_on_whichever_thread(address, capsys):
    def left():
        client = Client(address)
        client.nodes()
        client.itself = client  # as any client caught in a traceback is

    with Client(address) as client:
        for _ in range(10):
            left()
        # Garbage is collected on the loop's own thread, too, where nobody can wait for the loop.
        done = threading.Event()
        BACKGROUND._loop.call_soon_threadsafe(lambda: (gc.collect(), done.set()))
        assert done.wait(120)
        until(lambda: len(BACKGROUND._ends) == 1)
        assert client.nodes()
    left()
    gc.collect()
    until(lambda: not BACKGROUND._ends and not threads())
    assert capsys.readouterr().err == ""


def test_a_client_made_in_the_middle_of_another_s_collection_has_a_loop(address):
    for _ in range(30):
        client = Client(address)
        client.itself = client
        del client
        gc.collect()
        with Client(address) as other:
            assert other.nodes()
    until(lambda: not threads())


def test_a_run_left_in_the_middle_is_collected_on_the_loop_s_thread(client, capsys):
    rounds = [iter(client.run("r1"))]
    next(rounds[0])
    done = threading.Event()
    BACKGROUND._loop.call_soon_threadsafe(lambda: (rounds.clear(), gc.collect(), done.set()))
    assert done.wait(120)
    assert client.nodes()
    assert capsys.readouterr().err == ""


def test_closing_in_a_callback_closes_and_does_not_wait_for_itself(address):
    client = Client(address)
    context = client.create_context("c", query_heads=4, key_heads=2, key_dim=8, value_dim=6)
    keys, values = np.ones((3, 2, 8), np.float32), np.ones((3, 2, 6), np.float32)
    context.append(keys, values, progress=lambda done, of: client.close())
    with pytest.raises(FailedPrecondition, match="is closed; make another"):
        client.nodes()
    until(lambda: not threads())


def test_a_client_closed_twice_takes_nobody_else_s_loop(address):
    with Client(address) as other:
        client = Client(address)
        client.close()
        client.close()
        assert other.nodes()
    assert not threads()


def test_the_program_s_end_waits_for_no_close_that_hangs(address, monkeypatch):
    monkeypatch.setattr(background, "EXIT_SECONDS", 0.2)
    own = background.Background()

    async def never():
        await background.asyncio.sleep(600)

    own.acquire(never)
    began = time.monotonic()
    own.exit()
    assert time.monotonic() - began < 300
    assert not threads()
