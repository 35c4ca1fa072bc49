"""A client and a fork: what was made before it says so at once, and a new one works where gRPC allows."""

import threading

import pytest
from programs import run

from edge_attention.client import forks

FORKED = """
import asyncio, concurrent.futures, gc, multiprocessing, os, signal, sys, threading, time
import edge_attention
from edge_attention import AsyncClient, Client, FailedPrecondition

address = sys.argv[1]
SIZES = dict(query_heads=4, key_heads=2, key_dim=8, value_dim=6)
SECONDS = 60.0  # that no child may take

def said(call):
    try:
        return f"returned {call()!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"

def child(call, end=os._exit):
    # What `call` says in a forked child. One that hangs is killed.
    sys.stdout.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writing, said(call).encode())
        os.close(writing)
        end(0)
    os.close(writing)
    until = time.monotonic() + SECONDS
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "hung"
        time.sleep(0.01)
    with os.fdopen(reading) as pipe:
        words = pipe.read()
    return words if not ended[1] else f"ended with {ended[1]} after {words!r}"

def names(client):
    return [node.name for node in client.nodes()]

def new():
    with Client(address) as client:
        return names(client)

async def anew():
    async with AsyncClient(address) as client:
        return [node.name for node in await client.nodes()]
"""

REFUSED = "FailedPrecondition: the client of "


@pytest.fixture
def forked(address):
    def ran(source):
        ended = run(FORKED + source, address)
        assert ended.code == 0, ended.err
        return ended

    return ran


def test_every_call_of_a_client_from_before_the_fork_is_refused_at_once(forked):
    ended = forked("""
import numpy as np
client = Client(address)
names(client)
context = client.create_context("m", **SIZES)
run = client.run("r1")
rounds = iter(run)
next(rounds)
q = np.ones((1, 4, 8), np.float32)
calls = dict(
    nodes=client.nodes, aggregator=client.aggregator, probe=lambda: client.probe("a"),
    contexts=client.contexts,
    create=lambda: client.create_context("n", **SIZES), context=lambda: client.context("m"),
    runs=client.runs, run=lambda: client.run("r1"),
    append=lambda: context.append(q[:, :2], q[:, :2, :6]), attend=lambda: context.attend(q),
    append_dataset=lambda: context.append_dataset("a", "d", b"model", {}),
    describe=context.describe, drop=context.drop,
    next=lambda: next(rounds), rounds=lambda: list(run), events=lambda: list(run.events()),
    run_describe=run.describe, stop=run.stop, resume=run.resume, parameters=run.parameters,
    save=lambda: run.save_parameters("never"), onnx=run.onnx, save_onnx=lambda: run.save_onnx("never"),
)
for name, call in calls.items():
    print(name, child(call))
print("parent", names(client))
""")
    *refused, parent = ended.lines
    assert len(refused) == 23
    for line in refused:
        assert REFUSED in line
        assert "get_context('spawn')" in line
    assert parent.startswith("parent ['a'")


def test_a_client_from_before_the_fork_ends_quietly_in_the_child_and_serves_the_parent(forked):
    ended = forked("""
client = Client(address)
names(client)
rounds = iter(client.run("r1"))
next(rounds)
context = client.create_context("m", **SIZES)

def dropped():
    global client, rounds, context
    client = rounds = context = None
    return gc.collect() >= 0

def raised():
    raise ValueError("mine")

for what, call in dict(close=client.close, drop=dropped, nothing=lambda: 1).items():
    for end in (os._exit, sys.exit):
        print(what, end.__name__, child(call, end))
    print("parent", names(client))
print("rounds", len([1, *rounds]))
client.close()
""")
    assert [line for line in ended.lines if "hung" in line or "ended" in line] == []
    assert ended.lines[0] == "close _exit returned None"
    assert ended.lines[-1] == "rounds 5"
    assert len([line for line in ended.lines if line.startswith("parent ['a'")]) == 3
    assert ended.complaints == []


def test_a_new_client_in_the_child_works_where_grpc_allows_and_is_refused_where_not(forked):
    ended = forked("""
print("before any", child(new), child(lambda: asyncio.run(anew())))
client = Client(address)
print("made, not called", child(new), child(lambda: asyncio.run(anew())))
names(client)
print("open", child(new))
print("open, asyncio", child(lambda: asyncio.run(anew())))
print("grandchild", child(lambda: child(new)))
client.close()
print("closed", child(new), child(lambda: asyncio.run(anew())), child(lambda: child(new)))
client = Client(address)
print("parent", names(client))
""")
    before, made, open, asynchronous, grandchild, closed, parent = ended.lines
    assert before.count("returned ['a'") == made.count("returned ['a'") == 2
    for refused in (open, asynchronous, grandchild):
        assert "FailedPrecondition: no client can be made in process" in refused
        assert "close it before" in refused
    assert closed.count("['a'") == 3
    assert "['a'" in parent


def test_a_channel_of_somebody_elses_counts_too(forked):
    ended = forked("""
import grpc.aio

async def parent():
    async with grpc.aio.insecure_channel(address):
        return child(new)

print(asyncio.run(parent()))
late = time.monotonic() + SECONDS
while any(t.name.endswith("(_poll_wrapper)") for t in threading.enumerate()) and time.monotonic() < late:
    time.sleep(0.01)  # gRPC's thread ends soon after its last channel
print(child(new))
""")
    assert "no client can be made" in ended.lines[0]
    assert ended.lines[1].startswith("returned ['a'")


def test_an_asyncio_client_from_before_the_fork_is_refused(forked):
    ended = forked("""
async def parent():
    client = AsyncClient(address)
    await client.nodes()
    context = await client.create_context("m", **SIZES)
    run = await client.run("r1")

    def step(make):
        # As far as the first thing it waits for: it may not get there.
        coroutine = make()
        try:
            coroutine.send(None)
        finally:
            coroutine.close()

    async def first():
        return [event async for event in run.events()]

    async def close():
        await client.close()

    for make in (client.nodes, client.contexts, context.describe, context.drop, run.describe, run.stop,
                 first):
        print(child(lambda make=make: step(make)))
    print(child(lambda: step(close)))
    print("parent", len(await client.nodes()))
    await client.close()

asyncio.run(parent())
""")
    *refused, closed, parent = ended.lines
    assert len(refused) == 7
    assert all(line.startswith(REFUSED) for line in refused)
    assert closed == "StopIteration: "
    assert parent.startswith("parent")
    assert ended.complaints == []


@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
def test_multiprocessing_and_process_pools(address, tmp_path, how):
    program = tmp_path / "program.py"
    program.write_text(
        FORKED
        + """
def used(given):
    return said(lambda: names(given))

def fresh(_):
    return said(new)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    client = Client(address)
    names(client)
    def pool(call, given):
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
            print(said(lambda: executor.submit(call, given).result(SECONDS)))
    pool(used, client)
    pool(fresh, None)
    client.close()
    pool(fresh, None)
"""
    )
    ended = run(
        "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')", str(program), address, how
    )
    assert ended.code == 0, ended.err
    sent, open, closed = ended.lines
    assert "FailedPrecondition" in sent
    assert "cannot be copied, nor sent to another process" in sent
    assert ("no client can be made" if how == "fork" else "returned ['a'") in open
    assert "returned ['a'" in closed


def test_a_worker_that_inherits_a_client_is_told_through_multiprocessing(forked):
    ended = forked("""
client = Client(address)
names(client)

def work(queue):
    queue.put(said(lambda: names(client)))

context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=work, args=(queue,))
process.start()
print(queue.get(timeout=SECONDS))
process.join(SECONDS)
print(process.exitcode)
print(names(client))
""")
    refused, code, parent = ended.lines
    assert refused.startswith(REFUSED)
    assert code == "0"
    assert parent.startswith("['a'")


def test_a_fork_right_after_the_last_client_was_closed_waits_for_grpc_s_thread(monkeypatch):
    """It may be there for a moment more; then a new client in the child would be refused."""
    for name, value in {"_POLLER": "(mine)", "_open": 0, "_live": False, "END_SECONDS": 60.0}.items():
        monkeypatch.setattr(forks, name, value)
    monkeypatch.setattr(forks, "_closed", forks._closed)
    go = threading.Event()
    poller = threading.Thread(target=go.wait, args=(120,), name="a (mine)", daemon=True)
    poller.start()
    forks.opened()
    forks._before()
    assert forks._live, "one is open"
    forks.closed()
    threading.Timer(0.05, go.set).start()
    forks._before()
    assert not forks._live
    assert not poller.is_alive()


def test_a_call_in_a_child_whose_loop_turns_no_more_ends_with_what_to_do(forked):
    """As gRPC leaves it, once in some 900 forks; here something else holds the loop."""
    ended = forked("""
from edge_attention.client import background

background.STILL_SECONDS = 0.5

def held():
    client = Client(address)
    names(client)
    async def hold():
        time.sleep(SECONDS)
    asyncio.run_coroutine_threadsafe(hold(), background.BACKGROUND._loop)
    return said(lambda: names(client)), said(client.close)

print(child(held))
""")
    (line,) = ended.lines
    assert line.count("FailedPrecondition: gRPC stands still in process ") == 2
    assert "get_context('spawn')" in line
