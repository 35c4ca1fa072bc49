"""A tokenizer that somebody sent, asked in its process; and what the files beside a model say."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from aggregator.bounds.bounds import TOKENIZER_PROCESS
from aggregator.inference.generation import texts, tokenizer_process
from aggregator.inference.generation.coders import BytesCoder, TokenText, read_text_files
from aggregator.inference.generation.texts import DeploymentTexts
from aggregator.inference.generation.tokenizer_process import TokenizerProcess
from aggregator.inference.generation.written_text import WrittenText
from edge_attention.core.errors import DeadlineExceeded, InvalidArgument

TEXT = "The quick brown fox jumps over the lazy dög, naïvely: 日本 🦊🦊!"


def trained(path, pre=None):
    """A byte-level BPE, as most decoders of today have one; its special token begins each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(path / "tokenizer.json"))
    return tokenizer


@asynccontextmanager
async def asked(path, vocabulary=300):
    process = TokenizerProcess(path / "tokenizer.json", vocabulary)
    try:
        yield process
    finally:
        await process.close()


def test_it_is_the_librarys_tokenizer(tmp_path):
    tokenizer = trained(tmp_path)

    async def run():
        async with asked(tmp_path) as process:
            ids = await process.encode(TEXT)
            assert ids == tuple(tokenizer.encode(TEXT).ids)
            assert ids[0] == 0
            assert await process.encode(TEXT, special=False) == ids[1:]
            assert await process.decode([ids, ids[:4], ()]) == (TEXT, tokenizer.decode(ids[:4]), "")
            assert await process.token("</s>") == 1
            assert await process.token("no such") is None
            # Half a surrogate is no text; what is past its vocabulary says nothing.
            assert await process.encode("a\ud800", special=False) == tuple(
                tokenizer.encode("a?", add_special_tokens=False).ids
            )
            assert await process.decode([(5, 10**9)]) == (tokenizer.decode([5]),)
        async with asked(tmp_path, vocabulary=200) as small:
            with pytest.raises(InvalidArgument, match="does not know"):
                await small.encode(TEXT)

    asyncio.run(run())


def test_tokens_by_themselves_are_written_as_within_a_text(tmp_path):
    """Parts of characters as their bytes; special tokens as they are called, though no text shows them."""
    tokenizer = trained(tmp_path)

    async def run():
        async with asked(tmp_path) as process:
            ids = await process.encode(TEXT)
            found = await process.written(ids)
            assert found[0] == TokenText(b"<s>", shown=False)
            assert b"".join(one.data for one in found if one.shown) == TEXT.encode()
            assert {one.shown for one in found[1:]} == {True}
            assert await process.written([1, 10**9]) == (TokenText(b"</s>", shown=False), TokenText(b""))
            assert await process.written([]) == ()

    asyncio.run(run())
    # A space that begins a text is written by some tokenizers within texts alone; bytes have own names.
    pieces = {
        "<s>": 0,
        "<unk>": 1,
        "\u2581to": 2,
        "\u2581be": 3,
        "a": 4,
        "<0xC3>": 5,
        "<0xB6>": 6,
        "\u2581": 7,
    }
    tokenizer = Tokenizer(models.BPE(pieces, [("\u2581", "a")] * 0, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.decode([2, 3]) == "to be"

    async def spaced():
        async with asked(tmp_path) as process:
            found = await process.written([0, 2, 3, 5, 6])
            assert [one.data for one in found] == [b"<s>", b" to", b" be", b"\xc3", b"\xb6"]
            assert [one.shown for one in found] == [False, True, True, True, True]

    asyncio.run(spaced())


def test_tokens_whose_numbers_have_gaps_are_text(tmp_path):
    """Tokens that were added behind a gap, as many models' are, have numbers beyond how many there are."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "far": 5, "further": 4000}, unk_token="a"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    async def run():
        async with asked(tmp_path, vocabulary=4096) as process:
            assert await process.decode([(0, 5, 4000), (4001, 2**31, 2**40)]) == ("a far further", "")

    asyncio.run(run())


def test_text_that_comes_token_by_token_is_the_whole_text(tmp_path):
    tokenizer = trained(tmp_path)

    async def run():
        async with asked(tmp_path) as process:
            written, parts = WrittenText(process, ()), []
            ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
            for number, token in enumerate(ids, start=1):
                text, _ = await written.after([token], number == len(ids))
                parts.append(text)
            assert "".join(parts) == TEXT
            assert "" in parts  # the fox's bytes are tokens of their own
            assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)

    asyncio.run(run())


def test_one_that_takes_for_ever_is_ended_and_the_next_question_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_process, "TOKENIZER_PROCESS", replace(TOKENIZER_PROCESS, seconds=12.0))
    trained(tmp_path, pre_tokenizers.Split(Regex("[wx]+y"), "isolated"))

    async def run():
        async with asked(tmp_path) as process:
            assert await process.decode([()]) == ("",)
            with pytest.raises(InvalidArgument, match="tokenizer-seconds"):
                await process.encode("x" * 1_000_000)
            assert await process.encode("a" * 20_000)

    asyncio.run(run())


def test_who_waits_for_its_turn_waits_until_its_own_deadline(tmp_path):
    """Whatever others ask of the process."""
    trained(tmp_path)

    async def run():
        async with asked(tmp_path) as process:
            async with process._process._turns.turn("ana"):  # somebody else's text
                with pytest.raises(DeadlineExceeded, match="had not answered"):
                    await process.encode("a", seconds=0.01)
                with pytest.raises(DeadlineExceeded, match="longer deadline"):
                    await process.decode([(5,)], seconds=-1.0)
            assert await process.token("</s>") == 1

    asyncio.run(run())


def test_a_long_prompt_does_not_hold_up_the_words_of_texts_that_are_being_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_process, "LONG_TEXT", 100)
    tokenizer = trained(tmp_path)

    async def run():
        async with asked(tmp_path) as process:
            async with process._long._turns.turn("ana"):  # who has a text that takes its time
                coming = asyncio.create_task(process.encode("a" * 100))
                assert await process.decode([(5,)]) == (tokenizer.decode([5]),)
                assert await process.encode("a" * 99) == tuple(tokenizer.encode("a" * 99).ids)
                assert not coming.done()
            assert await coming == tuple(tokenizer.encode("a" * 100).ids)

    asyncio.run(run())


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"model": {"type": "BPE", "vocab": 3}}', '{"version": "1.0"}']
)
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)

    async def run():
        async with asked(tmp_path) as process:
            with pytest.raises(InvalidArgument, match="the deployment's tokenizer: "):
                await process.encode("a text")

    asyncio.run(run())


def test_a_token_may_be_a_byte():
    async def run():
        coder = BytesCoder()
        ids = await coder.encode(TEXT)
        assert bytes(ids).decode() == TEXT
        assert await coder.decode([ids, (0xF0, 0x9F), (300, 65)]) == (TEXT, "\N{REPLACEMENT CHARACTER}", "A")

    asyncio.run(run())


def test_files_beside_a_model_say_what_ends_a_text(tmp_path):
    tokenizer = trained(tmp_path)
    config = {"eos_token": {"content": "</s>"}, "bos_token": "<s>", "chat_template": "{{ messages }}", "x": 1}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

    async def run():
        known = DeploymentTexts(lambda name: (name, tmp_path))
        try:
            found = await known.get("a", 300)
            assert found is await known.get("a", 300)
            assert found.ends == {tokenizer.token_to_id("</s>")}
            assert found.files.special == {"eos_token": "</s>", "bos_token": "<s>"}
            assert found.files.chat_template == "{{ messages }}"
            (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
            (tmp_path / "chat_template.jinja").write_text("another")
            other = await known.get("b", 300)
            assert other.ends == {7}
            assert other.files.chat_template == "another"
        finally:
            await known.close()

    asyncio.run(run())
    (tmp_path / "tokenizer.json").unlink()
    assert read_text_files(tmp_path) is None


def test_who_asks_for_many_models_words_ends_nobodys_call_for_anothers(tmp_path, monkeypatch):
    """One that is being read is the oldest of too many: who waited for it was told that it gave up itself."""
    monkeypatch.setattr(texts, "CODERS", 1)
    trained(tmp_path)
    read, begun, go_on = texts._read, asyncio.Event(), asyncio.Event()

    async def slowly(folder, vocabulary):
        if vocabulary == 1:
            begun.set()
            await go_on.wait()
        return await read(folder, vocabulary)

    monkeypatch.setattr(texts, "_read", slowly)

    async def run():
        known = DeploymentTexts(lambda name: (name, tmp_path))
        try:
            slow = asyncio.create_task(known.get("a", 1))
            await begun.wait()
            assert await known.get("b", 300) is not None
            go_on.set()
            assert await slow is not None
            assert len(known._known) == 1
        finally:
            await known.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[" * 100_000, "is not JSON"),
        ("generation_config.json", "[1]", "no JSON object"),
        ("generation_config.json", '{"eos_token_id": [-1]}', "eos_token_id"),
        ("generation_config.json", b"\xff", "not UTF-8"),
    ],
)
def test_files_that_say_nothing_are_refused(tmp_path, name, content, words):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidArgument, match=words):
        read_text_files(tmp_path)
