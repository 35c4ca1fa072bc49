"""A process that is kept says what it lacks, and the next question is answered all the same."""

from __future__ import annotations

import asyncio

import pytest

from aggregator.bounds.bounds import ProcessBound
from aggregator.engine.kept_process import KeptProcess
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
