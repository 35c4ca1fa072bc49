"""The writer of a stream: in order, one at a time, at once, from any thread; nothing once it has ended."""

import asyncio
import threading
from collections import deque

import grpc.aio
import pytest

from edge_attention.wire.writer import StreamWriter


class Stream:
    """A stream whose other side takes a message when it is told to."""

    def __init__(self):
        self.begun, self.threads, self.error = [], [], None
        self._loop, self._future = asyncio.get_running_loop(), None

    async def write(self, data):
        assert self._future is None or self._future.done(), "one at a time"
        if self.error is not None:
            raise self.error
        self._future = self._loop.create_future()
        self.threads.append(threading.get_ident())
        self.begun.append(data)
        await self._future

    def take(self):
        self._future.set_result(None)

    def end(self):
        self._future.set_exception(asyncio.InvalidStateError("the stream has ended"))


class Desk:
    """A writer, the messages it is to write, and what it said it has written."""

    def __init__(self, write, knows=False):
        self.queue, self.written, self.asked = deque(), [], 0
        more = (lambda: bool(self.queue)) if knows else None
        self.writer = StreamWriter(write, self._next, self.written.append, more)

    def _next(self):
        self.asked += 1
        return self.queue.popleft() if self.queue else None

    def put(self, *messages):
        self.queue.extend(messages)
        self.writer.kick()


def run(scenario, knows=False):
    async def test():
        stream = Stream()
        await asyncio.wait_for(scenario(stream, Desk(stream.write, knows)), 180)

    asyncio.run(test())


async def begin(stream, desk):
    """The first message of a stream: the loop follows it, as gRPC may be given it later."""
    desk.put(b"0")
    stream.take()
    await turns()
    assert desk.written == [1]
    stream.begun.clear()
    stream.threads.clear()
    desk.asked = 0
    desk.written.clear()


async def turns():
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_message_is_begun_in_the_step_that_has_it_and_the_next_when_it_is_taken():
    async def scenario(stream, desk):
        desk.put(b"a", b"bc")
        assert stream.begun == [b"a"], "without a turn of the loop"
        desk.put(b"d")
        await turns()
        assert stream.begun == [b"a"]
        assert desk.written == []
        stream.take()
        await turns()
        assert stream.begun == [b"a", b"bc"]
        assert desk.written == [1]
        stream.take()
        await turns()
        stream.take()
        await turns()
        assert stream.begun == [b"a", b"bc", b"d"]
        assert desk.written == [1, 2, 1]
        desk.put(b"e")
        assert stream.begun[-1] == b"e"

    run(scenario)


def test_another_thread_begins_a_message_itself_and_the_loop_ends_it():
    async def scenario(stream, desk):
        thread = threading.Thread(target=desk.put, args=(b"a", b"b"))
        thread.start()
        thread.join()
        assert stream.begun == [b"a"]
        assert stream.threads == [thread.ident]
        stream.take()  # before the loop has heard of it
        await turns()
        assert stream.begun == [b"a", b"b"]
        assert stream.threads[1] == threading.get_ident()
        assert desk.written == [1]

    run(scenario)


def test_a_kick_while_it_asks_what_is_next_has_it_ask_again():
    async def scenario(stream, desk):
        answers = deque([None, b"a", None])

        def next():
            answer = answers.popleft()
            if answer is None and answers:
                writer.kick()
            return answer

        writer = StreamWriter(stream.write, next)
        writer.kick()
        assert stream.begun == [b"a"]

    run(scenario)


def test_a_stream_that_has_ended_takes_nothing_and_nobody_asks_what_is_next():
    async def at_once(stream, desk):
        stream.error = asyncio.InvalidStateError("the stream has ended")
        desk.put(b"a", b"b")
        desk.put(b"c")
        assert desk.asked == 1
        assert stream.begun == []
        assert desk.written == []
        await desk.writer.idle(10)

    async def meanwhile(stream, desk):
        desk.put(b"a", b"b")
        stream.end()
        await desk.writer.idle(10)
        desk.put(b"c")
        assert desk.asked == 1
        assert stream.begun == [b"a"]
        assert desk.written == []

    async def cancelled(stream, desk):
        desk.put(b"a", b"b")
        stream._future.cancel()
        await desk.writer.idle(10)
        assert desk.asked == 1

    for scenario in (at_once, meanwhile, cancelled):
        run(scenario)


def test_a_write_that_gives_way_goes_on_in_the_next_turn():
    async def scenario(stream, desk):
        async def write(data):
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            stream.begun.append(data)

        desk = Desk(write)
        desk.put(b"a", b"b")
        await desk.writer.idle(10)
        assert stream.begun == [b"a", b"b"]
        assert desk.written == [1, 1]

    run(scenario)


def test_once_closed_it_begins_nothing_and_one_can_wait_for_what_it_had_begun():
    async def scenario(stream, desk):
        await desk.writer.idle(10)
        desk.put(b"a", b"b")
        desk.writer.close()
        await desk.writer.idle(0.01)
        assert desk.written == [], "its time was over"
        waits = asyncio.create_task(desk.writer.idle(10))
        await turns()
        assert not waits.done()
        stream.take()
        await waits
        desk.put(b"c")
        assert stream.begun == [b"a"]
        assert desk.written == [1]

    run(scenario)


def test_a_message_that_nothing_comes_after_is_followed_by_who_has_the_next_one():
    async def scenario(stream, desk):
        await begin(stream, desk)
        desk.put(b"a")
        assert desk.written == [1], "gRPC was given it"
        stream.take()
        await turns()
        assert desk.asked == 1
        desk.put(b"bc")
        assert stream.begun == [b"a", b"bc"], "without a turn of the loop"
        desk.put(b"d")  # while it is not taken
        assert stream.begun == [b"a", b"bc"]
        stream.take()
        await turns()
        assert stream.begun == [b"a", b"bc", b"d"]
        stream.take()
        thread = threading.Thread(target=desk.put, args=(b"e", b"f"))
        thread.start()
        thread.join()
        assert stream.threads[3] == thread.ident
        stream.take()
        await turns()
        stream.take()
        await desk.writer.idle(10)
        assert stream.begun == [b"a", b"bc", b"d", b"e", b"f"]
        assert sum(desk.written) == 6

    run(scenario, knows=True)


def test_one_waits_for_a_message_that_nobody_follows():
    async def scenario(stream, desk):
        await begin(stream, desk)
        for then in (desk.writer.kick, desk.writer.close):
            desk.put(b"a")
            then()
            waits = asyncio.create_task(desk.writer.idle(10))
            await turns()
            assert not waits.done()
            stream.take()
            await waits
        desk.put(b"b")
        assert stream.begun == [b"a", b"a"]

    run(scenario, knows=True)


def test_of_a_stream_that_ended_under_a_message_nobody_follows_nobody_asks_what_is_next():
    async def scenario(stream, desk):
        await begin(stream, desk)
        desk.put(b"a")
        stream.end()
        await turns()
        desk.put(b"b")
        assert desk.asked == 1
        assert stream.begun == [b"a"]
        await desk.writer.idle(10)

    run(scenario, knows=True)


@pytest.mark.parametrize("knows", [False, True])
def test_threads_that_write_to_one_grpc_stream_lose_nothing_and_keep_their_order(knows):
    """The real stream: both ways from several threads and the loop at a time, while the loop reads."""
    threads, count = 4, 200

    async def echo(requests, context):
        desk = Desk(context.write, knows)
        async for data in requests:
            desk.put(data)
        # All is taken: the client has read it before it says that it is done.
        desk.writer.close()
        await desk.writer.idle(10)

    async def scenario():
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(echo)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Echo": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream = channel.stream_stream("/test/Echo")()
            desk = Desk(stream.write, knows)
            desk.put(b"first")
            assert await stream.read() == b"first"

            def send(thread):
                for number in range(count):
                    desk.put(bytes([thread]) + number.to_bytes(2, "big") + bytes(number))

            jobs = [asyncio.create_task(asyncio.to_thread(send, thread)) for thread in range(threads)]
            found = [await stream.read() for _ in range(threads * count)]
            await asyncio.gather(*jobs)
            desk.writer.close()
            await desk.writer.idle(10)
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
        await server.stop(None)
        for thread in range(threads):
            own = [data for data in found if data[0] == thread]
            assert [int.from_bytes(data[1:3], "big") for data in own] == list(range(count))
            assert all(len(data) == 3 + int.from_bytes(data[1:3], "big") for data in own)
        assert sum(desk.written) == 5 + sum(map(len, found))

    asyncio.run(asyncio.wait_for(scenario(), 180))
