"""A process that is kept says what it lacks, and the next question is answered all the same."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from aggregator.bounds.bounds import ProcessBound
from aggregator.engine import kept_process
from aggregator.engine.kept_process import KeptProcess
from aggregator.trust.acting import context_of
from edge_attention.core.errors import InvalidArgument


def test_a_question_that_takes_too_much_memory_is_its_askers_to_mend():
    pytest.importorskip("jinja2")

    async def run():
        bound = ProcessBound("template", 60.0, 60, 1 << 28)
        process = KeptProcess(bound, "aggregator.http.chat_template", what="the template")
        try:
            with pytest.raises(
                InvalidArgument, match=r"bound template-memory: the template .* 268,435,456 bytes"
            ):
                await process.ask(["{{ 'a' * 400000000 }}", {}])
            assert await process.ask(["{{ a }}!", {"a": "on it goes"}]) == "on it goes!"
        finally:
            await process.close()

    asyncio.run(run())


SLOW = "{% for i in range(90000) %}{% for j in range(WORK) %}{% endfor %}{% endfor %}done"


@asynccontextmanager
async def left_in_the_middle(work, seconds):
    """A process, its id, and a question that was given up while it was at it."""
    bound = ProcessBound("template", 60.0, 600, 1 << 28)
    process = KeptProcess(bound, "aggregator.http.chat_template", what="the template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_process, "LEFT_SECONDS", seconds)
        try:
            assert await process.ask(["a", {}]) == "a"
            before = process._process.pid
            asking = asyncio.create_task(process.ask([SLOW.replace("WORK", str(work)), {}]))
            for _ in range(20):  # the question is written, and it takes longer than that
                await asyncio.sleep(0)
            assert process._turns.busy
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            yield process, before
        finally:
            await process.close()


def test_who_gives_a_question_up_does_not_end_the_process_for_the_others():
    """Else whoever asks and goes away, again and again, has them wait for its start each time."""
    pytest.importorskip("jinja2")

    async def run():
        async with left_in_the_middle(10, 60.0) as (process, before):
            assert await process.ask(["b", {}]) == "b"
            assert process._process.pid == before

    asyncio.run(run())


def test_what_was_given_up_and_does_not_come_to_its_end_is_ended():
    pytest.importorskip("jinja2")

    async def run():
        async with left_in_the_middle(90000, 0.1) as (process, before):
            assert await process.ask(["b", {}]) == "b"
            assert process._process.pid != before

    asyncio.run(run())


def test_questions_of_one_caller_do_not_hold_up_anothers():
    pytest.importorskip("jinja2")

    async def run():
        bound = ProcessBound("template", 60.0, 600, 1 << 28)
        process = KeptProcess(bound, "aggregator.http.chat_template", what="the template")
        order = []

        async def ask(word):
            assert await process.ask([word, {}]) == word
            order.append(word)

        try:
            ana, ben = context_of("user/ana"), context_of("user/ben")
            tasks = [asyncio.create_task(ask("ana"), context=ana) for _ in range(20)]
            await asyncio.sleep(0)
            tasks.append(asyncio.create_task(ask("ben"), context=ben))
            await asyncio.gather(*tasks)
        finally:
            await process.close()
        assert order.index("ben") <= 2

    asyncio.run(run())
